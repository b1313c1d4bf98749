// The entry point: makes the parts of the page (wire, microphone, legs, calls, views) and connects them.
// To follow an incoming call, start at `push` below: `incoming` -> Calls -> `callsChanged` -> sound, microphone, cards.

import { CallView, ringingText } from "/static/call_view.js";
import { Calls } from "/static/calls.js";
import { Dial } from "/static/dial.js";
import { busy, byId, say } from "/static/dom.js";
import { userName } from "/static/format.js";
import { onLanguage, startLanguage, t, words } from "/static/i18n.js";
import { startKeys } from "/static/keys.js";
import { Legs } from "/static/legs.js";
import { Numbers, Recent } from "/static/lists.js";
import { Login } from "/static/login.js";
import { Microphone } from "/static/microphone.js";
import { Notices, Title } from "/static/notices.js";
import { outcomeWords } from "/static/outcome_words.js";
import { Sounds } from "/static/sounds.js";
import { CLOSED, Wire } from "/static/wire.js";

const RESUME = "softphone.resume";

await startLanguage();

const me = { operator: "", available: false, workers: [], answering: false, awayForMicrophone: false };
const request = (...args) => wire.request(...args);
const notices = new Notices();
const title = new Title();
const sounds = new Sounds();
const microphone = new Microphone(microphoneChanged);
const legs = new Legs(request, { changed: legsChanged, shaky: () => wire.check(), blocked: soundBlocked });
const calls = new Calls(callsChanged);
const numbers = new Numbers();
const recent = new Recent((number_id, user) => dial.fill(number_id, user));
const login = new Login((ticket) => {
  screen("loading");
  wire.login(ticket);
});
const callView = new CallView(calls, (number_id) => numbers.label(number_id), {
  answer: (call_id) => attempt(() => answer(call_id)),
  decline: (call_id) => attempt(() => decline(call_id)),
  hangup: () => attempt(() => request("hangup", { call_id: calls.current.call_id })),
  hold: (on) => attempt(() => request("hold", { call_id: calls.current.call_id, on })),
  mute: muted,
  digit: pressed,
  canAnswer: () => blockedBy() === null,
});
const dial = new Dial(request, {
  dialled: (call) => call && calls.adopt(call),
  failed,
  asked: () => notices.show("info", () => t("ask.sent")),
  blocked: blockedBy,
});
const wire = new Wire({ welcome, push, down, closed, probe: () => ["status", { available: me.available }] });
const systemNotices = new Map(); // call_id -> Notification

// --- screens and the session -------------------------------------------------------------------

function screen(name) {
  document.body.dataset.screen = name;
}

function welcome(data) {
  sessionStorage.setItem(RESUME, data.resume);
  Object.assign(me, { operator: data.operator, available: data.available, workers: data.workers });
  numbers.set(data.numbers);
  dial.setNumbers(data.numbers);
  byId("me").textContent = data.operator;
  byId("link-down").hidden = true;
  screen("phone");
  showStatus();
  const lost = calls.reset(data.calls, data.operator);
  refreshRecent(lost);
  if (microphone.track) haveLegs({ fresh: !data.resumed });
  else microphone.open();
}

function down() {
  if (document.body.dataset.screen === "phone") byId("link-down").hidden = false;
}

/** End the session completely: no call, no leg and no open microphone remains. */
function tearDown() {
  calls.reset([], null);
  calls.dismiss();
  legs.close();
  microphone.close();
  byId("link-down").hidden = true;
}

/** The wire gave up: the session is gone, or it is open in another tab. */
function closed(code) {
  tearDown();
  if (code === CLOSED.REPLACED) {
    screen("elsewhere");
    byId("take-over").focus();
    return;
  }
  const resumed = sessionStorage.getItem(RESUME) !== null;
  sessionStorage.removeItem(RESUME);
  const problems = {
    [CLOSED.UNAUTHORIZED]: resumed ? "session_over" : "unauthorized",
    [CLOSED.TOO_MANY]: "too_many",
  };
  toLogin(problems[code] ?? "offline");
}

function toLogin(problem = null) {
  notices.clearAll();
  screen("login");
  login.show(problem);
}

async function logout() {
  await request("bye").catch(() => {});
  wire.close();
  sessionStorage.removeItem(RESUME);
  tearDown();
  toLogin();
}

// --- pushes ------------------------------------------------------------------------------------

const PUSHES = {
  incoming: ({ call }) => calls.offer(call),
  gone: ({ call_id, reason, detail }) => gone(call_id, reason, detail),
  call: ({ call }) => calls.update(call),
  slots: (message) => numbers.slots(message),
  number: (message) => numbers.status(message),
  contact: (message) => dial.contact(message),
  leg_lost: ({ worker }) => legs.remake(worker),
  workers: ({ workers }) => {
    me.workers = workers;
    if (legs.workers.length) haveLegs();
  },
  digit: ({ call_id, digit }) => callView.heard(call_id, digit),
  notice: ({ level, code, detail }) =>
    notices.show(level, () => words("notice", code), { detail, key: `notice.${code}` }),
};

function push(message) {
  PUSHES[message.type]?.(message);
}

function gone(call_id, reason, detail) {
  const call = calls.gone(call_id);
  if (!call) return;
  // Once the operator has answered a call, the other ringing calls end here as well: no news to this operator.
  const known = reason === "declined" || (reason === "answered_elsewhere" && (me.answering || calls.live));
  const why = () => [words("gone", reason), detail].filter(Boolean).join(" ");
  const text = () => t("gone.of", { name: userName(call.user), why: why() });
  if (!known) notices.show("info", text);
  refreshRecent();
}

// --- requests ----------------------------------------------------------------------------------

// Another operator was faster, or the call ended first. Tell the operator, but not as an error.
const NO_FAULT = new Set(["gone", "already_taken", "busy"]);

/** Run a request and tell the operator if it fails. */
async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    failed(error);
    return null;
  }
}

function failed(error) {
  if (!error.code) throw error;
  const why = error.refusal && (() => words("reason", error.refusal.reason, error.refusal.title));
  const detail = error.code === "graph_error" ? error.title : null;
  const level = NO_FAULT.has(error.code) ? "info" : "error";
  const text = why ?? (() => words("failed", error.code, error.title));
  notices.show(level, text, { detail, key: `failed.${error.code}` });
}

async function act(type, call_id) {
  try {
    const call = await request(type, { call_id });
    if (call?.call_id) calls.adopt(call);
  } catch (error) {
    if (["gone", "already_taken"].includes(error.code)) calls.gone(call_id);
    throw error;
  }
}

async function answer(call_id) {
  me.answering = true;
  await act("accept", call_id).finally(() => (me.answering = false));
}

async function decline(call_id) {
  await act("reject", call_id);
  calls.gone(call_id);
}

/**
 * Refresh the list of recent calls. `lost`: id of an own call that ended while the connection was down; show how it
 * ended. `ended`: the call that has just ended; the page knows its end before the database does.
 */
async function refreshRecent(lost = null, ended = null) {
  const kept = await request("recent", { limit: 20 }).catch(() => null);
  if (!kept) return;
  const list = kept.map((call) => (call.call_id === ended?.call_id ? ended : call));
  recent.set(list);
  const missed = list.find((call) => call.call_id === lost && call.state === "ended");
  if (missed && !calls.current) calls.update(missed);
}

async function setStatus(available) {
  await request("status", { available });
  me.available = available;
  showStatus();
}

// --- reactions to changes ----------------------------------------------------------------------

function callsChanged(before, after) {
  const carried = calls.talking ? after : null;
  legs.talk(carried?.worker ?? null);
  callView.render();
  microphone.silence(carried !== null && (carried.state === "held" || callView.muted));
  dial.render();
  ring();
  if (!after || (before?.call_id === after.call_id && before.state === after.state)) return;
  const now = `${userName(after.user)}: ${words("state", after.state)}`;
  notices.announce(after.state === "ended" ? outcomeWords(after) : now);
  if (after.state === "ended" && before?.state !== "ended") {
    refreshRecent(null, after);
    dial.refresh();
  }
}

function ring() {
  const offered = [...calls.offered.values()];
  title.ring(offered.length ? ringingText(offered[0]) : null);
  if (!offered.length) sounds.quiet();
  else sounds.ring(calls.live);
  if (offered.length && sounds.blocked) soundBlocked();
  for (const call of offered) notify(call);
  for (const [call_id, shown] of systemNotices) {
    if (calls.offered.has(call_id)) continue;
    shown?.close();
    systemNotices.delete(call_id);
  }
}

function notify(call) {
  if (systemNotices.has(call.call_id)) return;
  notices.announce(`${t("incoming.title")}: ${ringingText(call)}`, { now: true });
  systemNotices.set(call.call_id, null);
  if (!("Notification" in window) || Notification.permission !== "granted") return;
  const options = { body: ringingText(call), tag: call.call_id, requireInteraction: true };
  const shown = new Notification(t("incoming.title"), options);
  shown.onclick = () => window.focus();
  systemNotices.set(call.call_id, shown);
}

function haveLegs(options) {
  legs.sync(me.workers, options);
}

function legsChanged() {
  byId("legs-ready").dataset.ready = String(legs.ready);
  const none = microphone.problem && legs.workers.length === 0;
  byId("legs-text").textContent = t(legs.ready ? "legs.ready" : none ? "legs.none" : "legs.connecting");
  allowCalls();
}

/** Update everything that shows whether calls can be made and taken. */
function allowCalls() {
  dial.render();
  callView.render();
}

async function microphoneChanged() {
  legs.setMicrophone(microphone.track);
  say(byId("microphone-text"), microphone.problem && words("microphone", microphone.problem));
  byId("microphone-card").hidden = !microphone.problem;
  if (!wire.up) return;
  if (microphone.track && !legs.workers.length) haveLegs({ fresh: true });
  legsChanged();
  // An operator without a working microphone must not receive calls.
  if (microphone.problem && me.available) {
    me.awayForMicrophone = true;
    await attempt(() => setStatus(false));
  } else if (microphone.track && me.awayForMicrophone) {
    me.awayForMicrophone = false;
    await attempt(() => setStatus(true));
  }
}

/** Return in words why no call can be made or taken now, or null. */
function blockedBy() {
  if (calls.live) return t("blocked.in_call");
  if (!microphone.track) return t("blocked.microphone");
  return legs.ready ? null : t("blocked.legs");
}

function muted(on) {
  microphone.silence(on || calls.current.state === "held");
  notices.announce(t(on ? "call.muted" : "call.unmuted"));
}

function pressed(key) {
  const sent = legs.press(key);
  if (sent) sounds.key(key);
  else notices.show("warning", () => t("keypad.unable"), { key: "keypad" });
  return sent;
}

function soundBlocked() {
  notices.show("warning", () => t("sound.blocked"), { key: "sound" });
}

function showStatus() {
  byId("status").setAttribute("aria-checked", String(me.available));
  byId("status-text").textContent = t(me.available ? "status.available" : "status.away");
}

// --- start -------------------------------------------------------------------------------------

for (const kind of ["pointerdown", "keydown"]) {
  addEventListener(kind, () => {
    sounds.unlock();
    notices.clear("sound");
    legs.playAll();
  }, { capture: true });
}
addEventListener("visibilitychange", () => document.visibilityState === "visible" && wire.check());
// The page cannot know whether it is closed or reloaded, so the gateway waits a moment for it to come back.
addEventListener("pagehide", () => wire.up && request("leaving").catch(() => {}));
addEventListener("pageshow", ({ persisted }) => {
  const kept = sessionStorage.getItem(RESUME);
  if (persisted && kept && document.body.dataset.screen === "phone") wire.resume(kept);
});
byId("status").onclick = () => busy(byId("status"), () => attempt(() => setStatus(!me.available)));
byId("logout").onclick = () => busy(byId("logout"), logout);
byId("take-over").onclick = () => {
  screen("loading");
  wire.resume(sessionStorage.getItem(RESUME));
};
byId("microphone-retry").onclick = () => busy(byId("microphone-retry"), () => microphone.open());
startKeys({
  a: () => callView.answer(), d: () => callView.decline(), h: () => callView.hangup(), m: () => callView.mute(),
  o: () => callView.hold(), "/": () => byId("dial-input").focus(), "?": () => byId("help").showModal(),
}, (key) => callView.press(key));
onLanguage(() => {
  byId("link-down").textContent = t("link.down");
  showStatus();
  legsChanged();
  say(byId("microphone-text"), microphone.problem && words("microphone", microphone.problem));
});
window.softphone = { legs, stats: () => legs.stats() };

const stored = sessionStorage.getItem(RESUME);
if (stored) wire.resume(stored);
else toLogin();
