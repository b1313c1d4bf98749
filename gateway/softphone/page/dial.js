// The dialler: asks the gate while the operator types, shows its answer, and enables the call button only then.

import { busy, byId, h, keyed } from "/static/dom.js";
import { dialable, phoneNumber } from "/static/format.js";
import { askWords, decisionWords, refusalLines, ruleName } from "/static/gate_words.js";
import { onLanguage, t, words } from "/static/i18n.js";

const PAUSE_MS = 600;
const SHORTEST = 8; // fewest digits that are checked while typing
const LONGEST_WAIT_MS = 24 * 3_600_000;
const ASKABLE = new Set(["no_permission", "permission_expired", "permission_revoked"]);

const digits = (text) => (text ?? "").replace(/\D/g, "");

export class Dial {
  #on;
  #request;
  #numbers = [];
  #answer = null; // {to, number_id, decision} or {to, number_id, failure}
  #asked = 0; // counts checks; an answer to an older check is stale
  #pause = null;
  #again = null;

  /** `on`: `dialled(call)`, `failed(error)`, `asked()`, `blocked()` -> why no call can be made now, or null. */
  constructor(request, on) {
    this.#request = request;
    this.#on = on;
    byId("dial").onsubmit = (event) => this.#submit(event);
    byId("dial-input").oninput = () => this.#typed();
    byId("dial-from").onchange = () => this.#typed();
    byId("dial-call").onclick = () => this.#call();
    byId("ask-permission").onclick = () => this.#ask();
    onLanguage(() => this.render());
  }

  setNumbers(numbers) {
    this.#numbers = numbers;
    this.render();
  }

  /** Fill in a number (call back) and ask the gate about it. */
  fill(number_id, user) {
    byId("dial-from").value = number_id;
    byId("dial-input").value = user.number ? phoneNumber(user.number) : user.user_id;
    byId("dial-input").focus();
    this.check();
  }

  /** Push: the gate's answer about a contact changed. Show it if that contact is in the field. */
  contact({ number_id, user, decision }) {
    const { to, number_id: from } = this.#target();
    if (!to || from !== number_id) return;
    if (digits(user.number) === digits(to) || user.user_id === to) this.#show({ to, number_id, decision });
    // Brazil's ninth digit: WhatsApp's form of the number can differ from the one that was typed.
    else if (digits(user.number).slice(-8) === digits(to).slice(-8)) this.check();
  }

  /** Check again if an answer is shown: a call that ended may have changed it. */
  refresh() {
    if (this.#current()) this.check();
  }

  async check() {
    const { to, number_id } = this.#target();
    clearTimeout(this.#pause);
    const mine = ++this.#asked;
    if (!to) return this.#show(null);
    try {
      const decision = await this.#request("check", { number_id, to });
      if (mine === this.#asked) this.#show({ to, number_id, decision });
    } catch (failure) {
      if (mine === this.#asked) this.#show({ to, number_id, failure });
    }
  }

  render() {
    this.#renderNumbers();
    const decision = this.#current()?.decision;
    const blocked = this.#on.blocked();
    byId("dial-call").disabled = !decision?.allowed || blocked !== null;
    byId("dial-block").hidden = !(decision?.allowed && blocked);
    byId("dial-block").textContent = blocked ?? "";
    this.#renderAnswer();
    this.#renderAsk(decision);
  }

  #target() {
    return { to: dialable(byId("dial-input").value), number_id: byId("dial-from").value };
  }

  /** The shown answer, if it matches the fields as they are now. */
  #current() {
    const { to, number_id } = this.#target();
    return this.#answer?.to === to && this.#answer.number_id === number_id ? this.#answer : null;
  }

  #show(answer) {
    this.#answer = answer;
    clearTimeout(this.#again);
    const at = answer?.decision?.refusal?.retry_at ?? answer?.decision?.permission_expires_at;
    const wait = at ? Date.parse(at) - Date.now() + 500 : null;
    if (wait > 0 && wait < LONGEST_WAIT_MS) this.#again = setTimeout(() => this.check(), wait);
    this.render();
  }

  #typed() {
    clearTimeout(this.#pause);
    this.#asked += 1;
    const { to } = this.#target();
    if (digits(to).length >= SHORTEST) this.#pause = setTimeout(() => this.check(), PAUSE_MS);
    this.render();
  }

  #submit(event) {
    event.preventDefault();
    busy(byId("dial-check"), async () => {
      await this.check();
      if (!byId("dial-call").disabled) byId("dial-call").focus();
    });
  }

  #call() {
    const { to, number_id } = this.#target();
    busy(byId("dial-call"), async () => {
      try {
        this.#on.dialled(await this.#request("dial", { number_id, to }));
      } catch (failure) {
        if (failure.refusal) await this.check();
        this.#on.failed(failure);
      }
    });
  }

  #ask() {
    const { to, number_id } = this.#target();
    busy(byId("ask-permission"), async () => {
      try {
        await this.#request("ask_permission", { number_id, to });
        this.#on.asked();
      } catch (failure) {
        this.#on.failed(failure);
      }
      await this.check();
    });
  }

  #renderNumbers() {
    const label = (number) => `${number.name} · ${phoneNumber(number.number)}`;
    keyed(byId("dial-from"), this.#numbers, (number) => number.number_id,
      (number) => h("option", { value: number.number_id }),
      (option, number) => (option.textContent = label(number)));
    byId("dial-from-field").hidden = this.#numbers.length < 2;
  }

  #renderAnswer() {
    const box = byId("gate-answer");
    const answer = this.#current();
    box.hidden = !answer;
    const shown = answer && this.#words(answer);
    box.dataset.tone = shown?.tone ?? "";
    box.dataset.allowed = String(Boolean(answer?.decision?.allowed));
    box.dataset.reason = answer?.decision?.refusal?.reason ?? answer?.failure?.code ?? "";
    box.replaceChildren(...(shown ? [
      h("p", { class: "headline" }, shown.headline),
      ...shown.lines.map((line) => h("p", {}, line)),
      shown.rule ? h("p", { class: "rule" }, t("refusal.rule", { rule: shown.rule })) : "",
    ] : []));
  }

  #words({ decision, failure }) {
    if (decision) return decisionWords(decision);
    const { refusal, code, title } = failure;
    const [headline, ...lines] = refusal ? refusalLines(refusal) : [words("failed", code, title)];
    return { tone: "no", headline, lines, rule: refusal ? ruleName(refusal) : null };
  }

  #renderAsk(decision) {
    const wanted = decision?.ask_form && !decision.allowed && ASKABLE.has(decision.refusal.reason);
    byId("ask").hidden = !wanted;
    if (!wanted) return;
    byId("ask-permission").disabled = decision.ask !== null;
    byId("ask-hint").textContent = askWords(decision);
  }
}
