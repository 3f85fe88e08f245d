// What the theme leaves undone for readers with a keyboard, and for paper. No page needs it to be read.
document.addEventListener("DOMContentLoaded", () => {
  // The theme takes the focus away from a button that was used; a keyboard needs it there.
  document.querySelectorAll(".theme-switch-button, .search-button, .sidebar-toggle").forEach((button) =>
    button.addEventListener("click", (event) => { if (event.detail === 0) button.focus(); }),
  );
  // A link to what is folded opens the fold.
  const open = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const code = target?.querySelector(":scope.cell > details");
    if (code) code.open = true;
    for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  };
  window.addEventListener("hashchange", open);
  open();
  setMathematics().then(fit);
  document.addEventListener("toggle", fit, true); // what was folded had no width
  let width = innerWidth;
  window.addEventListener("resize", () => {
    if (innerWidth !== width) requestAnimationFrame(fit);
    width = innerWidth;
  });
});

// MathJax is heavier than a page, so it comes when a formula is near the screen, when the reader does anything, or
// three seconds after the page. It sets ten formulas at a time: in between, the page can scroll.
function setMathematics() {
  const source = document.querySelector('script[type="text/plain"][src*="mathjax"]');
  if (!source) return Promise.resolve();
  const formulas = [...document.querySelectorAll(".math")];
  const load = () => {
    if (source.isConnected) document.head.append(Object.assign(document.createElement("script"), { src: source.src }));
    source.remove();
  };
  const near = new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && load(), { rootMargin: "100% 0px" });
  formulas.forEach((one) => near.observe(one));
  for (const event of ["scroll", "pointerdown", "keydown"]) addEventListener(event, load, { once: true, passive: true });
  addEventListener("load", () => setTimeout(load, 3000));
  const done = new Promise((resolve) => {
    const pageReady = async () => {
      near.disconnect();
      for (let i = 0; i < formulas.length; i += 10) {
        await MathJax.typesetPromise(formulas.slice(i, i + 10));
        await new Promise((next) => setTimeout(next));
      }
      resolve();
    };
    window.MathJax = { ...window.MathJax, startup: { pageReady } };
  });
  window.MathJax.startup.promise = done; // as MathJax itself names it, later
  return done;
}

// Equations that are wider than their column are set smaller, to 13 pixels at least.
const SMALLEST = 13;
function fit() {
  const all = (selector) => [...document.querySelectorAll(`article ${selector}`)].filter((box) => box.clientWidth);
  const equations = all('mjx-container[display="true"]');
  equations.forEach((one) => {
    one.dataset.size ??= one.style.fontSize;
    one.style.fontSize = one.dataset.size;
  });
  const sizes = equations.map((one) => (parseFloat(getComputedStyle(one).fontSize) * 0.98 * one.clientWidth) / one.scrollWidth);
  const wide = equations.map((one) => one.scrollWidth > one.clientWidth + 1);
  equations.forEach((one, i) => wide[i] && (one.style.fontSize = `${Math.max(SMALLEST, sizes[i])}px`));
  // What is still wider than its box gets a mark; of a table, the first column stays in sight if it leaves room for others.
  const boxes = [...equations, ...all("span.math"), ...all(".output.text_html"), ...all(".pst-scrollable-table-container")];
  const found = boxes.map((box) => {
    const first = box.querySelector("table:not(:has([rowspan], [colspan])) tbody tr > :first-child");
    return [box.scrollWidth > box.clientWidth + 1, first?.offsetWidth < 0.4 * box.clientWidth];
  });
  found.forEach(([scrolls, narrow], i) => {
    boxes[i].classList.toggle("scrolls", scrolls);
    boxes[i].classList.toggle("pinned", scrolls && narrow);
  });
}

// Paper shows what is folded on the screen, but not how figures are drawn.
const FOLDS = "article details:not([open]):not(.cell.tag_hide-input:not(.tag_exported) > details)";
window.addEventListener("beforeprint", () =>
  document.querySelectorAll(FOLDS).forEach((fold) => {
    fold.open = true;
    fold.dataset.printed = "";
  }),
);
window.addEventListener("afterprint", () =>
  document.querySelectorAll("details[data-printed]").forEach((fold) => {
    fold.open = false;
    delete fold.dataset.printed;
  }),
);
