// The two lists beside the calls: the business numbers with their slots in use, and the recent calls.

import { byId, h, icon, keyed, say } from "/static/dom.js";
import { count, duration, phoneNumber, userName, userNumber, when } from "/static/format.js";
import { onLanguage, t } from "/static/i18n.js";
import { numberWords } from "/static/number_words.js";
import { outcomeTone, outcomeWords } from "/static/outcome_words.js";

export class Numbers {
  #numbers = [];

  constructor() {
    onLanguage(() => this.render());
  }

  set(numbers) {
    this.#numbers = numbers;
    this.render();
  }

  slots({ number_id, incoming, outgoing }) {
    this.#numbers = this.#numbers.map((n) => (n.number_id === number_id ? { ...n, incoming, outgoing } : n));
    this.render();
  }

  status({ number_id, status }) {
    this.#numbers = this.#numbers.map((n) => (n.number_id === number_id ? { ...n, status } : n));
    this.render();
  }

  label(number_id) {
    const number = this.#numbers.find((n) => n.number_id === number_id);
    return number ? `${number.name} (${phoneNumber(number.number)})` : number_id;
  }

  render() {
    keyed(byId("numbers"), this.#numbers, (n) => n.number_id, (n) => this.#row(n), (row, n) => {
      row.querySelector(".name").textContent = n.name;
      row.querySelector(".sub").textContent = phoneNumber(n.number);
      for (const direction of ["incoming", "outgoing"]) this.#slots(row.querySelector(`.${direction}`), n, direction);
      this.#note(row.querySelector(".note"), n.status);
    });
  }

  #row({ number_id }) {
    const slots = (direction) =>
      h("div", { class: `slots ${direction}` },
        icon(direction === "incoming" ? "in" : "out"), h("span", { class: "slots-name" }),
        h("span", { class: "slots-count", dataset: { testid: `slots-${number_id}-${direction}` } }),
        h("meter", { min: 0 }));
    return h("li", {}, h("div", { class: "who" }, h("span", { class: "name" }), h("span", { class: "sub" })),
      slots("incoming"), slots("outgoing"),
      h("p", { class: "hint note", role: "status", dataset: { testid: `number-note-${number_id}` } }));
  }

  #note(element, status) {
    const { tone, lines } = numberWords(status);
    say(element, lines.join(" "));
    element.dataset.tone = tone ?? "";
  }

  #slots(element, number, direction) {
    const { used, limit } = number[direction];
    const text = t("slots.of", { used: count(used), limit: count(limit) });
    element.querySelector(".slots-name").textContent = t(`slots.${direction}`);
    const shown = element.querySelector(".slots-count");
    shown.textContent = text;
    Object.assign(shown.dataset, { used, limit });
    const meter = element.querySelector("meter");
    Object.assign(meter, { max: Math.max(limit, 1), high: limit * 0.9, value: used });
    meter.setAttribute("aria-label", `${t(`slots.${direction}`)}: ${text}`);
  }
}

export class Recent {
  #calls = [];
  #callBack;

  constructor(callBack) {
    this.#callBack = callBack;
    onLanguage(() => this.render());
  }

  set(calls) {
    this.#calls = calls;
    this.render();
  }

  render() {
    byId("recent-empty").hidden = this.#calls.length > 0;
    keyed(byId("recent"), this.#calls, (call) => call.call_id, (call) => this.#row(call), (row, call) => {
      const direction = t(`direction.${call.direction}`);
      row.dataset.tone = outcomeTone(call);
      row.querySelector(".direction").setAttribute("title", direction);
      row.querySelector(".unseen").textContent = direction;
      row.querySelector(".name").textContent = userName(call.user);
      say(row.querySelector(".number"), userNumber(call.user));
      row.querySelector("time").textContent = when(call.created_at);
      row.querySelector("time").dateTime = call.created_at;
      row.querySelector(".length").textContent = call.duration_s == null ? "" : duration(call.duration_s);
      row.querySelector(".how").textContent = outcomeWords({ ...call, duration_s: null });
      row.querySelector("button").setAttribute("aria-label", t("recent.call_back_to", { name: userName(call.user) }));
      row.querySelector("button").title = t("recent.call_back");
    });
  }

  #row(call) {
    return h("li", { dataset: { testid: "recent-call", callId: call.call_id } },
      h("span", { class: "direction", dataset: { direction: call.direction } },
        icon(call.direction === "USER_INITIATED" ? "in" : "out"), h("span", { class: "unseen" })),
      h("div", { class: "who" },
        h("span", { class: "name" }), h("span", { class: "sub number" }), h("span", { class: "sub how" })),
      h("div", { class: "at" }, h("time", { class: "sub" }), h("span", { class: "sub length" })),
      h("button", {
        type: "button", class: "quiet", dataset: { testid: "call-back" },
        onclick: () => this.#callBack(call.number_id, call.user),
      }, icon("phone")));
  }
}
