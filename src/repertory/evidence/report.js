"use strict";
(() => {
  const themes = ["system", "light", "dark"];
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const name = document.getElementById("theme-name");

  // A file opened from disk may have no storage: the choice then lasts as long as the page.
  const remembered = () => {
    try { return localStorage.getItem("repertory-theme"); } catch { return null; }
  };
  const remember = (theme) => {
    try { localStorage.setItem("repertory-theme", theme); } catch { /* nothing to keep it in */ }
  };
  const show = (theme) => {
    if (theme === "system") { delete root.dataset.theme; } else { root.dataset.theme = theme; }
    name.textContent = theme;
    button.setAttribute("aria-label", `Theme: ${theme}. Change to ${themes[(themes.indexOf(theme) + 1) % 3]}.`);
  };

  let theme = themes.includes(remembered()) ? remembered() : "system";
  show(theme);
  button.hidden = false;
  button.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    show(theme);
    remember(theme);
  });

  // Printed pages show what is folded away on screen.
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details:not([open])")) {
      details.open = true;
      details.dataset.printed = "";
    }
  });
  addEventListener("afterprint", () => {
    for (const details of document.querySelectorAll("details[data-printed]")) {
      details.open = false;
      delete details.dataset.printed;
    }
  });
})();
