// Short messages to the operator, shown on the page and announced to screen readers; and the tab title that rings.

import { byId, h } from "/static/dom.js";
import { onLanguage, t } from "/static/i18n.js";

// A warning is about a lasting state, so it stays until it is dismissed or cleared.
const SHOWN_MS = { info: 8_000, error: 30_000 };
const MOST = 4;

export class Notices {
  #shown = []; // {key, level, text(), detail, timer}

  constructor() {
    onLanguage(() => this.#render());
  }

  /** `text`: a function, so that the words follow the language. `key`: a second one replaces the first. */
  show(level, text, { detail = null, key = Symbol("notice") } = {}) {
    this.clear(key);
    const notice = { key, level, text, detail };
    if (SHOWN_MS[level]) notice.timer = setTimeout(() => this.clear(key), SHOWN_MS[level]);
    this.#shown = [...this.#shown, notice].slice(-MOST);
    byId(level === "error" ? "announce-now" : "announce").textContent = text();
    this.#render();
  }

  clear(key) {
    const before = this.#shown.length;
    this.#shown = this.#shown.filter((notice) => notice.key !== key || clearTimeout(notice.timer));
    if (this.#shown.length !== before) this.#render();
  }

  clearAll() {
    for (const { key } of this.#shown) this.clear(key);
  }

  /** Announce to screen readers only: for changes that the page already shows elsewhere. */
  announce(text, { now = false } = {}) {
    byId(now ? "announce-now" : "announce").textContent = text;
  }

  #close({ key }) {
    const onclick = () => this.clear(key);
    return h("button", { type: "button", class: "quiet", "aria-label": t("notice.close"), onclick }, "×");
  }

  #render() {
    byId("notices").replaceChildren(...this.#shown.map((notice) =>
      h("div", { class: "notice", dataset: { testid: "notice", level: notice.level } },
        h("p", {}, notice.text(), notice.detail ? h("span", { class: "detail" }, notice.detail) : ""),
        this.#close(notice))));
  }
}

/** The tab title; it alternates while a call rings, unless the operator's system asks for reduced motion. */
export class Title {
  #ringing = null;
  #timer = null;

  constructor() {
    onLanguage(() => this.#draw(false));
  }

  ring(text) {
    if (text === this.#ringing) return;
    this.#ringing = text;
    clearInterval(this.#timer);
    let odd = true;
    if (text && !matchMedia("(prefers-reduced-motion: reduce)").matches) {
      this.#timer = setInterval(() => this.#draw((odd = !odd)), 1_000);
    }
    this.#draw(true);
  }

  #draw(loud) {
    document.title = this.#ringing && loud ? `☎ ${this.#ringing}` : t("app.name");
  }
}
