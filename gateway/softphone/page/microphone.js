// The operator's microphone: requested once at login and kept open, so that answering a call does not wait for it.

const CONSTRAINTS = { echoCancellation: true, noiseSuppression: true, autoGainControl: true };
const PROBLEMS = { NotAllowedError: "denied", NotFoundError: "absent", NotReadableError: "in_use" };

export class Microphone {
  track = null;
  problem = null; // denied, absent, in_use, insecure, lost or failed
  #onChange;

  constructor(onChange) {
    this.#onChange = onChange;
    navigator.mediaDevices?.addEventListener("devicechange", () => {
      if (["absent", "lost", "in_use"].includes(this.problem)) this.open();
    });
  }

  async open() {
    try {
      // Without HTTPS (or localhost) browsers do not expose navigator.mediaDevices at all.
      if (!navigator.mediaDevices) throw Object.assign(new Error(), { name: "insecure" });
      const stream = await navigator.mediaDevices.getUserMedia({ audio: CONSTRAINTS });
      this.close();
      this.track = stream.getAudioTracks()[0];
      this.track.onended = () => this.#lost();
      this.problem = null;
    } catch (error) {
      this.problem = error.name === "insecure" ? "insecure" : (PROBLEMS[error.name] ?? "failed");
    }
    this.#onChange(this);
  }

  /** Mute: send silence instead of the voice. Packets continue, so no media timeout ends the call. */
  silence(on) {
    if (this.track) this.track.enabled = !on;
  }

  close() {
    if (!this.track) return;
    this.track.onended = null;
    this.track.stop();
    this.track = null;
  }

  #lost() {
    this.track = null;
    this.problem = "lost";
    this.#onChange(this);
    this.open();
  }
}
