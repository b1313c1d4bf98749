// Single-key shortcuts and the dialog that lists them. They can be switched off (WCAG 2.1.4).

import { byId } from "/static/dom.js";

const STORED = "softphone.shortcuts";
const FIELDS = "input, select, textarea, [contenteditable]";

/** `actions`: key -> function; `digit(key)` handles keypad keys. */
export function startKeys(actions, digit) {
  const help = byId("help");
  const enabled = byId("shortcuts-on");
  enabled.checked = localStorage.getItem(STORED) !== "off";
  enabled.onchange = () => localStorage.setItem(STORED, enabled.checked ? "on" : "off");
  byId("help-open").onclick = () => help.showModal();
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.isComposing || help.open) return;
    if (event.target.matches?.(FIELDS)) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (!enabled.checked || document.body.dataset.screen !== "phone") return;
    const action = /^[0-9*#]$/.test(event.key) ? () => digit(event.key) : actions[event.key.toLowerCase()];
    if (!action) return;
    event.preventDefault();
    action();
  });
}
