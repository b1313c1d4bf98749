// The calls this operator can see: those that ring here and may be answered, and the operator's own call.
// Pure bookkeeping over `CallView`s: no DOM, no sound. One listener is told about changes.

const TALKING = new Set(["active", "held"]);

export class Calls {
  offered = new Map(); // call_id -> CallView, oldest first
  current = null; // the operator's own call: live, or ended and still shown
  talkingSince = null; // ms, wall clock of this machine
  #onChange;

  /** `onChange(before, after)`: `current` before and after. The offered calls may have changed too. */
  constructor(onChange) {
    this.#onChange = onChange;
  }

  get live() {
    return this.current !== null && this.current.state !== "ended";
  }

  get talking() {
    return this.live && TALKING.has(this.current.state);
  }

  /** After login or reconnect: take over the server's list. Returns the id of an own call that is no longer in it. */
  reset(list, operator) {
    const ringing = (call) => call.direction === "USER_INITIATED" && !call.accepted_at && call.operator !== operator;
    const waiting = list.filter((call) => call.state !== "ended" && ringing(call));
    const own = list.find((call) => call.state !== "ended" && !ringing(call)) ?? null;
    const lost = this.live && this.current.call_id !== own?.call_id ? this.current.call_id : null;
    this.offered = new Map(waiting.map((call) => [call.call_id, call]));
    if (own || lost) this.#become(own);
    else this.#onChange(this.current, this.current);
    return lost;
  }

  offer(call) {
    this.offered.set(call.call_id, call);
    this.#onChange(this.current, this.current);
  }

  /** Remove a ringing call. Returns it, or null if it was not ringing. */
  gone(call_id) {
    const call = this.offered.get(call_id) ?? null;
    this.offered.delete(call_id);
    this.#onChange(this.current, this.current);
    return call;
  }

  /** Apply a push about one of this operator's calls. */
  update(call) {
    this.offered.delete(call.call_id);
    const other = this.live && this.current.call_id !== call.call_id;
    if (other && call.state === "ended") this.#onChange(this.current, this.current);
    else this.#become(call);
  }

  /** Apply a call from a reply, unless a push about the same call has arrived first: the push is newer. */
  adopt(call) {
    if (this.current?.call_id !== call.call_id) this.update(call);
  }

  /** Remove the ended call from view. */
  dismiss() {
    if (this.current && !this.live) this.#become(null);
  }

  #become(call) {
    const before = this.current;
    this.current = call;
    if (!call || before?.call_id !== call.call_id) this.talkingSince = null;
    if (this.talking && this.talkingSince === null) this.talkingSince = this.#began(before, call);
    this.#onChange(before, call);
  }

  // If we saw the call begin, use our own clock. If it was in progress (page reload), use the server's timestamp.
  #began(before, call) {
    if (before?.call_id === call.call_id || !call.accepted_at) return Date.now();
    return Math.min(Date.now(), Date.parse(call.accepted_at));
  }
}
