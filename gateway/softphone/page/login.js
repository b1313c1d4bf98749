// The login form: exchanges name and key for a one-time ticket, or takes a ticket that was made elsewhere.
// A ticket is sent only in a request body and in the first WebSocket message, never in a URL.

import { busy, byId, say } from "/static/dom.js";
import { onLanguage, t, words } from "/static/i18n.js";

// Tells the gateway that this device has logged in before, so that wrong keys tried by others do not slow it down.
const DEVICE = "softphone.device.";

async function ticketFor(operator, key) {
  const device = localStorage.getItem(DEVICE + operator);
  const response = await fetch("/v1/tickets", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ operator, key, device }),
  });
  const body = await response.json().catch(() => ({}));
  if (response.ok) {
    localStorage.setItem(DEVICE + operator, body.device);
    return body.ticket;
  }
  const code = response.status === 401 ? "wrong_key" : (body.code ?? "unavailable");
  throw Object.assign(new Error(body.title), { code, title: body.title });
}

export class Login {
  #onTicket;
  #byTicket = false;
  #problem = null;

  constructor(onTicket) {
    this.#onTicket = onTicket;
    byId("login").onsubmit = (event) => this.#submit(event);
    byId("login-other").onclick = () => this.#toggle();
    onLanguage(() => this.#render());
  }

  /** `problem`: the error code, or null. */
  show(problem = null) {
    this.#fail(problem && { code: problem });
    byId(this.#byTicket ? "login-ticket" : byId("login-name").value ? "login-key" : "login-name").focus();
  }

  #toggle() {
    this.#byTicket = !this.#byTicket;
    this.#fail(null);
    byId(this.#byTicket ? "login-ticket" : "login-name").focus();
  }

  #fail(problem) {
    this.#problem = problem;
    this.#render();
  }

  #submit(event) {
    event.preventDefault();
    const name = byId("login-name").value.trim();
    const key = byId("login-key").value;
    const ticket = byId("login-ticket").value.trim();
    if (this.#byTicket ? !ticket : !name || !key) return this.#fail({ code: "empty" });
    busy(event.submitter ?? byId("login"), async () => {
      try {
        this.#fail(null);
        const granted = this.#byTicket ? ticket : await ticketFor(name, key);
        byId("login-key").value = byId("login-ticket").value = "";
        this.#onTicket(granted);
      } catch (error) {
        this.#fail({ code: error.code ?? "offline", title: error.title });
        byId("login-key").select();
      }
    });
  }

  #render() {
    byId("login-by-key").hidden = this.#byTicket;
    byId("login-by-ticket").hidden = !this.#byTicket;
    byId("login-other").textContent = t(this.#byTicket ? "login.use_key" : "login.use_ticket");
    say(byId("login-problem"), this.#problem && words("failed", this.#problem.code, this.#problem.title));
  }
}
