// Local sounds made by oscillators: ringing and key tones. The call's own audio comes through the leg.

const KEYS = { rows: [697, 770, 852, 941], columns: [1209, 1336, 1477], layout: "123456789*0#" };

export class Sounds {
  #context = null;
  #ringing = null;

  /** Browsers allow sound only after a key press or a click: call this from such an event. */
  unlock() {
    this.#context ??= new AudioContext();
    if (this.#context.state === "suspended") this.#context.resume().catch(() => {});
  }

  get blocked() {
    return this.#context?.state !== "running";
  }

  /** Ring until `quiet()`. `soft`: the operator is in a call, so play one short note instead of the melody. */
  ring(soft) {
    if (this.#ringing?.soft === soft) return;
    this.quiet();
    const once = soft ? () => this.#note(660, 0, 0.25, 0.04) : () => this.#melody();
    this.#ringing = { soft, timer: setInterval(once, soft ? 6_000 : 3_000) };
    once();
  }

  quiet() {
    clearInterval(this.#ringing?.timer);
    this.#ringing = null;
  }

  key(digit) {
    const index = KEYS.layout.indexOf(digit);
    this.#note(KEYS.rows[Math.floor(index / 3)], 0, 0.12, 0.03, "sine");
    this.#note(KEYS.columns[index % 3], 0, 0.12, 0.03, "sine");
  }

  #melody() {
    [523.25, 659.25, 783.99, 659.25].forEach((hz, index) => this.#note(hz, index * 0.18, 0.5, 0.12));
    [523.25, 659.25, 783.99].forEach((hz, index) => this.#note(hz, 0.9 + index * 0.18, 0.7, 0.1));
  }

  #note(hz, after_s, length_s, volume, type = "triangle") {
    if (this.blocked) return;
    const start = this.#context.currentTime + after_s;
    const oscillator = new OscillatorNode(this.#context, { type, frequency: hz });
    const gain = new GainNode(this.#context, { gain: 0 });
    gain.gain.setValueAtTime(0, start);
    gain.gain.linearRampToValueAtTime(volume, start + 0.02);
    gain.gain.exponentialRampToValueAtTime(0.0001, start + length_s);
    oscillator.connect(gain).connect(this.#context.destination);
    oscillator.start(start);
    oscillator.stop(start + length_s);
  }
}
