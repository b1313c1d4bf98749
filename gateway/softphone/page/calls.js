// Which calls there are for this operator: those that ring here and may be answered, and the one call of their own.
// Pure bookkeeping over `CallView`s; what changed is told to one listener. Knows no page and no sound.

const TALKING = new Set(["active", "held"]);

export class Calls {
  offered = new Map(); // call_id -> CallView, oldest first
  current = null; // own call: live, or ended and still shown
  talkingSince = null; // wall clock of this machine, ms
  #onChange;

  /** `onChange(before, after)`: `current` before and after; the offered ones may have changed as well. */
  constructor(onChange) {
    this.#onChange = onChange;
  }

  get live() {
    return this.current !== null && this.current.state !== "ended";
  }

  get talking() {
    return this.live && TALKING.has(this.current.state);
  }

  /** Login or return: the server's list is the truth. Answers with the id of an own call that is not in it. */
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

  /** Stop ringing. Answers with the call that rang, if it did. */
  gone(call_id) {
    const call = this.offered.get(call_id) ?? null;
    this.offered.delete(call_id);
    this.#onChange(this.current, this.current);
    return call;
  }

  /** A push about a call of this operator's. */
  update(call) {
    this.offered.delete(call.call_id);
    const other = this.live && this.current.call_id !== call.call_id;
    if (other && call.state === "ended") this.#onChange(this.current, this.current);
    else this.#become(call);
  }

  /** A call out of a reply: a push about the same call may have come first and knows better. */
  adopt(call) {
    if (this.current?.call_id !== call.call_id) this.update(call);
  }

  /** Put the ended call away. */
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

  // Seen to begin: now, whatever the clocks say. Found in progress (a reload): the server's instant.
  #began(before, call) {
    if (before?.call_id === call.call_id || !call.accepted_at) return Date.now();
    return Math.min(Date.now(), Date.parse(call.accepted_at));
  }
}
