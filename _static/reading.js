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
});

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
