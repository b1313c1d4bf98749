// Small DOM helpers. Markup is never built from strings, so names and details from outside are always plain text.

export const byId = (id) => document.getElementById(id);

/** Make an element: `h("li", {class: "row", dataset: {testid: "x"}, onclick: f}, "text", child)`. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name === "dataset") Object.assign(element.dataset, value);
    else if (name.startsWith("on")) element[name] = value;
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `/static/icons.svg#${name}`);
  svg.append(use);
  return svg;
}

/** Set an element's text, and hide the element if the text is empty. */
export function say(element, text) {
  if (element.textContent !== (text ?? "")) element.textContent = text ?? "";
  element.hidden = !text;
}

/**
 * Make `list` hold one child per item, reusing the child with the same key, so that the focus stays where it is.
 * `make(item)` builds a child; `update(child, item)` refreshes it.
 */
export function keyed(list, items, key, make, update) {
  const old = new Map([...list.children].map((child) => [child.dataset.key, child]));
  const children = items.map((item) => {
    const id = String(key(item));
    const child = old.get(id) ?? make(item);
    child.dataset.key = id;
    old.delete(id);
    update(child, item);
    return child;
  });
  for (const gone of old.values()) gone.remove();
  children.forEach((child, index) => {
    if (list.children[index] !== child) list.insertBefore(child, list.children[index] ?? null);
  });
}

/** Run `redraw`. If it removed or hid the focused element inside `areas`, focus the one that `fallback()` returns. */
export function keepFocus(areas, fallback, redraw) {
  const focused = areas.some((area) => area.contains(document.activeElement)) ? document.activeElement : null;
  redraw();
  if (focused && (!focused.isConnected || focused.closest("[hidden]"))) fallback()?.focus({ preventScroll: true });
}

/** Run `work` with the button disabled; further presses are ignored until it is done. */
export async function busy(button, work) {
  if (button.getAttribute("aria-busy") === "true") return;
  button.setAttribute("aria-busy", "true");
  try {
    await work();
  } finally {
    button.removeAttribute("aria-busy");
  }
}
