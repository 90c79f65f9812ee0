// @ts-check
/** Dark or light: as the system has it, until the button says otherwise. */

const KEPT = "moshi-pipe.theme";

/** @param {HTMLButtonElement} button */
export function offerThemes(button) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;

  const isDark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const show = () => {
    const next = isDark() ? "light" : "dark";
    button.dataset.next = next;
    button.setAttribute("aria-label", `Use ${next} colours`);
    button.title = `Use ${next} colours`;
  };

  const kept = localStorage.getItem(KEPT);
  if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  show();
  system.addEventListener("change", show);
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    localStorage.setItem(KEPT, root.dataset.theme);
    show();
  });
}
