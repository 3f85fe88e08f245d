// A box above the glossary that leaves only the terms that contain what is typed.
(() => {
  const letters = document.querySelector("nav.letters");
  if (!letters) return;

  const plain = (text) => text.normalize("NFD").replace(/[\u0300-\u036f]/g, "").toLowerCase();

  // An entry: its terms, in one or two languages, and its meaning.
  const lists = [...document.querySelectorAll("dl.glossary")];
  const entries = [];
  for (const list of lists) {
    let entry = null;
    for (const part of list.children) {
      if (!entry || (part.tagName === "DT" && entry.meaning)) {
        entry = { parts: [], terms: "", meaning: "" };
        entries.push(entry);
      }
      entry.parts.push(part);
      if (part.tagName === "DT") entry.terms += `${plain(part.textContent)}\n`;
      else entry.meaning += plain(part.textContent);
    }
  }

  const box = document.createElement("p");
  box.className = "filter";
  box.innerHTML =
    '<label for="filter">Find a term</label> ' +
    '<input id="filter" type="search" autocomplete="off" spellcheck="false"> ' +
    '<output for="filter"></output>';
  letters.before(box);
  const [input, said] = [box.querySelector("input"), box.querySelector("output")];

  // Terms that contain the text; if there are none, the meanings that do.
  function show() {
    const wanted = plain(input.value.trim());
    let found = entries.filter((entry) => entry.terms.includes(wanted));
    let where = "";
    if (!found.length) {
      found = entries.filter((entry) => entry.meaning.includes(wanted));
      where = found.length ? ", in their meanings" : "";
    }
    const shown = new Set(found);
    for (const entry of entries)
      for (const part of entry.parts) part.hidden = !shown.has(entry);
    for (const list of lists) {
      list.hidden = ![...list.children].some((part) => !part.hidden);
      list.previousElementSibling.hidden = list.hidden;
    }
    letters.hidden = wanted !== "";
    said.textContent = wanted ? `${found.length} of ${entries.length}${where}` : "";
  }

  input.addEventListener("input", show);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      input.value = "";
      show();
    }
  });
  // A link to a term that is filtered out shows all of them again.
  window.addEventListener("hashchange", () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.closest("[hidden]")) {
      input.value = "";
      show();
      target.scrollIntoView();
    }
  });
})();
