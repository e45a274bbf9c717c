// Light or dark: as the system has it, until the button is pressed. `redraw` is what has colours of its own.
function bindTheme(redraw = () => {}) {
  const button = byId("theme");
  const label = () => {
    button.setAttribute("aria-label", isDark() ? "Change to light colours" : "Change to dark colours");
    button.textContent = isDark() ? "☀" : "☾";
  };
  const changed = () => {
    label();
    redraw();
  };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    changed();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  label();
}
