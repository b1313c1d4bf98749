// Views of the operator's own call (card, timer, keypad) and of the ringing calls. Button presses are reported
// through `on`.

import { busy, byId, h, icon, keepFocus, keyed, say } from "/static/dom.js";
import { duration, phoneNumber, userName, userNumber } from "/static/format.js";
import { onLanguage, t, words } from "/static/i18n.js";
import { outcomeTone, outcomeWords } from "/static/outcome_words.js";

const KEYS = "123456789*0#";

export class CallView {
  #calls;
  #numberLabel;
  #on;
  #digits = { call_id: null, sent: "", heard: "" };
  muted = false;

  /** `on`: `answer(id)`, `decline(id)`, `hangup()`, `hold(on)`, `mute(on)`, `digit(key)` -> sent?, `canAnswer()`. */
  constructor(calls, numberLabel, on) {
    this.#calls = calls;
    this.#numberLabel = numberLabel;
    this.#on = on;
    byId("keypad").append(...[...KEYS].map((key) => this.#key(key)));
    byId("mute").onclick = () => this.mute();
    byId("hold").onclick = () => this.hold();
    byId("hangup").onclick = () => this.hangup();
    byId("call-close").onclick = () => calls.dismiss();
    onLanguage(() => this.render());
    setInterval(() => this.#tick(), 250);
  }

  answer(call_id = this.#calls.offered.keys().next().value) {
    const card = this.#card(call_id);
    if (card && this.#on.canAnswer()) busy(card.querySelector(".answer-button"), () => this.#on.answer(call_id));
  }

  decline(call_id = this.#calls.offered.keys().next().value) {
    const card = this.#card(call_id);
    if (card) busy(card.querySelector(".decline-button"), () => this.#on.decline(call_id));
  }

  hangup() {
    if (this.#calls.live) busy(byId("hangup"), () => this.#on.hangup());
  }

  mute() {
    if (!this.#calls.talking) return;
    this.muted = !this.muted;
    this.#on.mute(this.muted);
    this.render();
  }

  hold() {
    if (this.#calls.talking) busy(byId("hold"), () => this.#on.hold(this.#calls.current.state !== "held"));
  }

  press(key) {
    if (this.#calls.current?.state !== "active") return;
    if (this.#on.digit(key)) this.#digits.sent += key;
    this.render();
  }

  heard(call_id, digit) {
    this.render();
    if (this.#digits.call_id === call_id) this.#digits.heard += digit;
    this.render();
  }

  render() {
    const { current } = this.#calls;
    if (this.#digits.call_id !== (current?.call_id ?? null)) {
      this.#digits = { call_id: current?.call_id ?? null, sent: "", heard: "" };
      this.muted = false;
    }
    const next = () => (this.#calls.live ? byId("hangup") : current ? byId("call-close") : byId("main"));
    keepFocus([byId("incoming"), byId("call-card")], next, () => {
      this.#renderOffered();
      byId("call-card").hidden = !current;
      if (current) this.#renderCurrent(current);
    });
  }

  #renderCurrent(call) {
    const { live, talking } = this.#calls;
    const held = call.state === "held";
    byId("call-card").dataset.state = call.state;
    byId("call-card").dataset.tone = outcomeTone(call);
    say(byId("call-name"), userName(call.user));
    say(byId("call-sub"), [userNumber(call.user), this.#via(call)].filter(Boolean).join(" · "));
    say(byId("call-state"), live ? words("state", call.state) : outcomeWords(call));
    say(byId("call-detail"), call.outcome?.detail);
    byId("mute").hidden = byId("hold").hidden = byId("keypad").hidden = !talking;
    byId("mute").setAttribute("aria-pressed", this.muted);
    byId("hold").setAttribute("aria-pressed", held);
    byId("hangup").hidden = !live;
    byId("hangup").disabled = call.state === "ending";
    byId("call-close").hidden = live;
    byId("hangup-text").textContent = talking ? t("call.hangup") : t("call.cancel");
    for (const key of byId("keypad").children) key.disabled = held;
    this.#renderDigits();
    this.#tick();
  }

  #renderDigits() {
    const { sent, heard } = this.#digits;
    say(byId("digits-sent"), sent && t("keypad.sent", { digits: sent }));
    say(byId("digits-heard"), heard && t("keypad.heard", { digits: heard }));
  }

  #via(call) {
    const key = call.direction === "USER_INITIATED" ? "call.to_number" : "call.from_number";
    return t(key, { number: this.#numberLabel(call.number_id) });
  }

  #renderOffered() {
    const offered = [...this.#calls.offered.values()];
    const section = byId("incoming");
    section.hidden = offered.length === 0;
    keyed(section, offered, (call) => call.call_id, (call) => this.#makeCard(call), (card, call) => {
      card.querySelector(".incoming-name").textContent = userName(call.user);
      card.querySelector(".incoming-number").textContent = userNumber(call.user);
      card.querySelector(".incoming-via").textContent = this.#via(call);
      card.querySelector(".eyebrow").textContent = t("incoming.title");
      card.querySelector(".answer-button span").textContent = t("incoming.answer");
      card.querySelector(".decline-button").lastChild.textContent = t("incoming.decline");
      card.querySelector(".answer-button").disabled = !this.#on.canAnswer();
      say(card.querySelector(".hint"), this.#calls.live ? t("incoming.in_call") : "");
    });
  }

  #makeCard({ call_id }) {
    const answer = h("button", {
      type: "button", class: "primary answer-button", "aria-keyshortcuts": "a", dataset: { testid: "answer" },
      onclick: () => this.answer(call_id),
    }, icon("phone"), h("span"));
    const decline = h("button", {
      type: "button", class: "danger-quiet decline-button", "aria-keyshortcuts": "d", dataset: { testid: "decline" },
      onclick: () => this.decline(call_id),
    }, icon("hangup"), h("span"));
    return h("article", { class: "card incoming-card", dataset: { testid: "incoming-card", callId: call_id } },
      h("div", { class: "who" }, h("p", { class: "eyebrow" }),
        h("h2", { class: "incoming-name", dataset: { testid: "incoming-name" } }),
        h("p", { class: "sub incoming-number", dataset: { testid: "incoming-number" } }),
        h("p", { class: "sub incoming-via", dataset: { testid: "incoming-via" } })),
      h("div", { class: "incoming-buttons" }, answer, decline),
      h("p", { class: "hint" }));
  }

  #card(call_id) {
    return [...byId("incoming").children].find((card) => card.dataset.key === call_id);
  }

  #key(key) {
    return h("button", { type: "button", dataset: { testid: `key-${key}` }, onclick: () => this.press(key) }, key);
  }

  #tick() {
    const { current, live, talkingSince } = this.#calls;
    const shown = live && talkingSince !== null ? duration((Date.now() - talkingSince) / 1000) : "";
    if (current) say(byId("call-timer"), shown);
  }
}

export const ringingText = (call) => `${userName(call.user)} ${phoneNumber(call.user.number)}`.trim();
