// The page's language and its strings: one flat table per language in strings.<language>.json.

import { byId } from "/static/dom.js";

const LANGUAGES = ["en", "pt-BR"];
const STORED = "softphone.language";
const tables = new Map();
const listeners = new Set();
let language = "en";

export const currentLanguage = () => language;

/** Return the string of `key` with `{name}` replaced; a missing string shows its key, so that it gets noticed. */
export function t(key, values = {}) {
  const text = tables.get(language)?.[key] ?? tables.get("en")?.[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

export const has = (key) => tables.get("en")?.[key] !== undefined;

/** Return the words for a code from the server; for an unknown code, the server's own text. */
export function words(prefix, code, fallback = null, values = {}) {
  const key = `${prefix}.${code}`;
  return has(key) ? t(key, values) : (fallback ?? String(code));
}

/** Call `render` now and whenever the language changes. */
export function onLanguage(render) {
  listeners.add(render);
  render();
}

function translate(root) {
  for (const element of root.querySelectorAll("[data-i18n]")) element.textContent = t(element.dataset.i18n);
  for (const attribute of ["aria-label", "title"]) {
    for (const element of root.querySelectorAll(`[data-i18n-${attribute}]`)) {
      element.setAttribute(attribute, t(element.getAttribute(`data-i18n-${attribute}`)));
    }
  }
}

async function load(name) {
  if (tables.has(name)) return;
  const response = await fetch(`/static/strings.${name}.json`);
  if (!response.ok) throw new Error(`strings of ${name}: HTTP ${response.status}`);
  tables.set(name, await response.json());
}

async function choose(name) {
  await load(name);
  language = name;
  document.documentElement.lang = name;
  translate(document);
  for (const render of listeners) render();
}

function preferred() {
  const wanted = [localStorage.getItem(STORED), ...(navigator.languages ?? [navigator.language])];
  for (const name of wanted) {
    if (LANGUAGES.includes(name)) return name;
    if (name?.toLowerCase().startsWith("pt")) return "pt-BR";
    if (name?.toLowerCase().startsWith("en")) return "en";
  }
  return "en";
}

export async function startLanguage() {
  const select = byId("lang");
  select.onchange = () => {
    localStorage.setItem(STORED, select.value);
    choose(select.value);
  };
  await Promise.all([load("en"), load(preferred())]);
  select.value = preferred();
  await choose(preferred());
}
