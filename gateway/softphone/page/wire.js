// The WebSocket: requests and replies, pushes, and reconnecting after a lost connection.
// What the messages mean is left to others. Message definitions: gateway/wire/messages.py.

const REPLY_MS = 10_000;
const PROBE_MS = 5_000;
// The gateway keeps a call for 15 s after the socket is lost, so the first attempts come quickly.
const BACK_OFF_MS = [250, 500, 1_000, 2_000, 4_000, 8_000];
// A gateway that closes on purpose closes all sockets at once; spread the reconnects over this time.
const SPREAD_MS = 3_000;
const GOING_AWAY = 1001;

export const CLOSED = { UNAUTHORIZED: 4401, REPLACED: 4409, TOO_MANY: 4429 };
const FINAL = new Set([CLOSED.UNAUTHORIZED, CLOSED.REPLACED]);

/** A failed request: `code` as in `Failed.code`, or "offline" / "timeout" from this side. */
export class RequestFailed extends Error {
  constructor({ code, title = "", refusal = null }) {
    super(title || code);
    Object.assign(this, { code, title, refusal });
  }
}

export class Wire {
  #on;
  #socket = null;
  #pending = new Map();
  #nextId = 1;
  #attempt = 0;
  #timer = null;
  #probe = null;
  #heardAt = 0;
  #welcomed = false;
  #resume = null;

  /** `on`: `welcome(data)`, `push(message)`, `down()` (lost, reconnecting), `closed(code)` (given up). */
  constructor(on) {
    this.#on = on;
    addEventListener("online", () => (this.#timer ? this.#open() : this.check()));
  }

  get up() {
    return this.#welcomed;
  }

  /** Log in. A ticket works once: if this fails, `closed` is called and nothing is retried. */
  login(ticket) {
    this.#resume = null;
    this.#open({ ticket });
  }

  /** Resume the session of this token, retrying for as long as it takes. */
  resume(token) {
    this.#resume = token;
    this.#attempt = 0;
    this.#open();
  }

  request(type, fields = {}, timeout_ms = REPLY_MS) {
    if (!this.#welcomed && type !== "hello") return Promise.reject(new RequestFailed({ code: "offline" }));
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => this.#settle(id, null, new RequestFailed({ code: "timeout" })), timeout_ms);
      this.#pending.set(id, { resolve, reject, timer });
      this.#socket.send(JSON.stringify({ type, id, ...fields }));
    });
  }

  /** Probe the connection; no reply in time means that it is lost, even if no close event came. */
  check() {
    if (!this.#welcomed) return;
    const socket = this.#socket;
    this.request(...this.#on.probe(), PROBE_MS).catch((error) => {
      if (error.code === "timeout" && socket === this.#socket) this.#lost(socket, 1006);
    });
  }

  close() {
    this.#resume = null;
    this.#drop();
  }

  #open(credential = { resume: this.#resume }) {
    this.#drop();
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}/v1/softphone`, ["calls.v1"]);
    this.#socket = socket;
    socket.onopen = () => this.#hello(socket, credential);
    socket.onmessage = (event) => this.#received(JSON.parse(event.data));
    socket.onclose = (event) => this.#lost(socket, event.code);
  }

  async #hello(socket, credential) {
    try {
      await this.request("hello", credential);
    } catch (error) {
      if (socket === this.#socket) this.#lost(socket, error.code === "unauthorized" ? CLOSED.UNAUTHORIZED : 1006);
    }
  }

  #received(message) {
    this.#heardAt = performance.now();
    if (message.type === "ok") {
      if (!this.#welcomed) this.#welcome(message.data);
      this.#settle(message.id, message.data, null);
    } else if (message.type === "error") {
      this.#settle(message.id, null, new RequestFailed(message));
    } else {
      this.#on.push(message);
    }
  }

  // The first `ok` answers `hello`. Handle it before later messages, so that no push comes before the page is ready.
  #welcome(data) {
    this.#welcomed = true;
    this.#attempt = 0;
    this.#resume = data.resume;
    const quiet_ms = data.heartbeat_s * 1000;
    this.#probe = setInterval(() => {
      if (performance.now() - this.#heardAt > quiet_ms) this.check();
    }, quiet_ms);
    this.#on.welcome(data);
  }

  #settle(id, data, error) {
    const waiting = this.#pending.get(id);
    if (!waiting) return;
    this.#pending.delete(id);
    clearTimeout(waiting.timer);
    if (error) waiting.reject(error);
    else waiting.resolve(data);
  }

  #lost(socket, code) {
    if (socket !== this.#socket) return;
    this.#drop();
    if (FINAL.has(code) || !this.#resume) {
      this.#on.closed(code);
      return;
    }
    const step = BACK_OFF_MS[Math.min(this.#attempt++, BACK_OFF_MS.length - 1)];
    const wait = code === CLOSED.TOO_MANY ? BACK_OFF_MS.at(-1) : step;
    const spread = code === GOING_AWAY ? SPREAD_MS * Math.random() : 0;
    this.#timer = setTimeout(() => this.#open(), wait * (0.75 + Math.random() / 2) + spread);
    this.#on.down();
  }

  #drop() {
    const socket = this.#socket;
    this.#socket = null;
    this.#welcomed = false;
    clearTimeout(this.#timer);
    clearInterval(this.#probe);
    this.#timer = this.#probe = null;
    for (const id of [...this.#pending.keys()]) this.#settle(id, null, new RequestFailed({ code: "offline" }));
    if (socket) {
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close();
    }
  }
}
