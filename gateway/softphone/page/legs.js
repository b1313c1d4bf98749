// One warm RTCPeerConnection per media worker, made at login, so that answering needs no ICE and no DTLS handshake.
// A leg sends nothing outside a call. What it receives (tones from the server, the contact's voice) is always played.

const GATHER_MS = 2_000;
const CONNECT_MS = 15_000;
const BACK_OFF_MS = [500, 1_000, 2_000, 5_000, 10_000, 15_000];
const DEAD = new Set(["disconnected", "failed", "closed"]);

function gathered(pc) {
  if (pc.iceGatheringState === "complete") return Promise.resolve();
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, GATHER_MS);
    pc.addEventListener("icegatheringstatechange", () => {
      if (pc.iceGatheringState !== "complete") return;
      clearTimeout(timer);
      resolve();
    });
  });
}

class Leg {
  pc = new RTCPeerConnection({ iceServers: [] });
  audio = document.createElement("audio");
  #closed = false;
  #wanted = null;
  #overdue = null;

  /** `on`: `changed()`, `failed()` (once, never after `close`), `blocked()` (the browser does not allow sound yet). */
  constructor(worker, on) {
    this.worker = worker;
    this.on = on;
    this.transceiver = this.pc.addTransceiver("audio", { direction: "sendrecv" });
    this.audio.autoplay = true;
    this.audio.srcObject = new MediaStream([this.transceiver.receiver.track]);
    document.getElementById("audio").append(this.audio);
    this.pc.onconnectionstatechange = () => this.#stateChanged();
  }

  get connected() {
    return this.pc.connectionState === "connected";
  }

  get dtmf() {
    return this.transceiver.sender.dtmf;
  }

  async open(request) {
    this.#overdue = setTimeout(() => this.fail(), CONNECT_MS);
    try {
      await this.pc.setLocalDescription();
      await gathered(this.pc);
      const answer = await request("leg", { worker: this.worker, sdp: this.pc.localDescription.sdp });
      if (!this.#closed) await this.pc.setRemoteDescription({ type: "answer", sdp: answer.sdp });
      this.play();
    } catch (error) {
      if (!this.#closed && error.code !== "offline") console.warn(`leg of worker ${this.worker}: ${error.message}`);
      this.fail();
    }
  }

  /** Send this track; null sends nothing. */
  send(track) {
    if (this.#closed || this.#wanted === track) return;
    this.#wanted = track;
    this.transceiver.sender.replaceTrack(track).catch(() => this.fail());
  }

  play() {
    if (this.audio.paused) this.audio.play().catch((error) => error.name === "NotAllowedError" && this.on.blocked());
  }

  fail() {
    if (this.#closed) return;
    this.close();
    this.on.failed();
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#overdue);
    this.pc.onconnectionstatechange = null;
    this.pc.close();
    this.audio.srcObject = null;
    this.audio.remove();
  }

  #stateChanged() {
    if (this.connected) clearTimeout(this.#overdue);
    if (["failed", "closed"].includes(this.pc.connectionState)) this.fail();
    this.on.changed(this.pc.connectionState);
  }

  async stats() {
    const found = { worker: this.worker, state: this.pc.connectionState, in: {}, out: {}, rtt_ms: null };
    for (const entry of (await this.pc.getStats()).values()) {
      if (entry.type === "inbound-rtp") found.in = inboundFigures(entry);
      if (entry.type === "outbound-rtp") found.out = { packets: entry.packetsSent, bytes: entry.bytesSent };
      if (entry.type === "media-source") found.microphone = { energy: entry.totalAudioEnergy, level: entry.audioLevel };
      if (entry.type === "candidate-pair" && entry.nominated && entry.currentRoundTripTime !== undefined) {
        found.rtt_ms = entry.currentRoundTripTime * 1000;
      }
    }
    return { ...found, out: { ...found.out, energy: found.microphone?.energy ?? null } };
  }
}

const inboundFigures = (entry) => ({
  packets: entry.packetsReceived,
  bytes: entry.bytesReceived,
  lost: entry.packetsLost,
  jitter_ms: entry.jitter * 1000,
  energy: entry.totalAudioEnergy,
  level: entry.audioLevel,
});

export class Legs {
  #legs = new Map();
  #retries = new Map(); // worker -> {attempt, timer}
  #on;
  #request;
  #microphone = null;
  #talking = null;

  /** `on`: `changed()`, `shaky()` (a leg lost its peer: check that the socket is alive), `blocked()`. */
  constructor(request, on) {
    this.#request = request;
    this.#on = on;
  }

  [Symbol.iterator]() {
    return this.#legs.values();
  }

  get workers() {
    return [...this.#retries.keys()];
  }

  /** True when every worker has a leg and all legs are connected. */
  get ready() {
    return this.workers.length > 0 && this.workers.every((worker) => this.#legs.get(worker)?.connected);
  }

  /** Keep one leg for each of `workers`. `fresh`: the server knows none of the old legs, so replace them all. */
  sync(workers, { fresh = false } = {}) {
    for (const worker of this.workers) {
      if (fresh || !workers.includes(worker)) this.#remove(worker);
    }
    for (const worker of workers) {
      const leg = this.#legs.get(worker);
      if (!this.#retries.has(worker)) this.#retries.set(worker, { attempt: 0, timer: null });
      if (!leg || DEAD.has(leg.pc.connectionState)) this.remake(worker);
    }
    this.#on.changed();
  }

  remake(worker) {
    const retry = this.#retries.get(worker);
    if (!retry) return;
    clearTimeout(retry.timer);
    this.#legs.get(worker)?.close();
    const leg = new Leg(worker, {
      changed: (state) => this.#changed(retry, state),
      failed: () => this.#failed(worker, leg),
      blocked: this.#on.blocked,
    });
    this.#legs.set(worker, leg);
    leg.open(this.#request);
    this.#apply();
    this.#on.changed();
  }

  /** Give the microphone to this worker's leg only; null: to no leg. */
  talk(worker) {
    this.#talking = worker;
    this.#apply();
  }

  setMicrophone(track) {
    this.#microphone = track;
    this.#apply();
  }

  /** Send a key's tone; false if the leg cannot (no call, or telephone-event was not negotiated). */
  press(digit) {
    const dtmf = this.#legs.get(this.#talking)?.dtmf;
    if (!dtmf?.canInsertDTMF) return false;
    dtmf.insertDTMF(dtmf.toneBuffer + digit, 160, 70);
    return true;
  }

  playAll() {
    for (const leg of this) leg.play();
  }

  stats() {
    return Promise.all([...this].map((leg) => leg.stats()));
  }

  close() {
    for (const worker of this.workers) this.#remove(worker);
    this.#on.changed();
  }

  #apply() {
    for (const leg of this) leg.send(leg.worker === this.#talking ? this.#microphone : null);
  }

  #changed(retry, state) {
    if (state === "connected") retry.attempt = 0;
    if (state === "disconnected") this.#on.shaky();
    this.#on.changed();
  }

  #failed(worker, leg) {
    const retry = this.#retries.get(worker);
    if (!retry || this.#legs.get(worker) !== leg) return;
    this.#legs.delete(worker);
    const wait = BACK_OFF_MS[Math.min(retry.attempt++, BACK_OFF_MS.length - 1)];
    retry.timer = setTimeout(() => this.remake(worker), wait * (0.75 + Math.random() / 2));
    this.#on.changed();
  }

  #remove(worker) {
    clearTimeout(this.#retries.get(worker)?.timer);
    this.#retries.delete(worker);
    this.#legs.get(worker)?.close();
    this.#legs.delete(worker);
  }
}
