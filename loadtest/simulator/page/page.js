// The page that acts as a simulated WhatsApp user: draws GET /sim/state, posts what is clicked.
import { TEXTS } from "/static/texts.js";

const POLL_MS = 400;
const $ = (id) => document.getElementById(id);
let language = localStorage.getItem("language") ?? (navigator.language.startsWith("pt") ? "pt-BR" : "en");
let waId = localStorage.getItem("user") ?? "";
let state = null;
let drawnLog = "";
let trouble = "";  // what the last action was refused with; stays until the next action

const say = (key, values = {}) => TEXTS[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
const me = () => state?.users.find((user) => user.wa_id === waId) ?? state?.users[0];
const moment = (seconds, style = { dateStyle: "short", timeStyle: "short" }) =>
  new Intl.DateTimeFormat(language, style).format(new Date(seconds * 1000));

async function post(action, body = {}) {
  trouble = "";
  try {
    const answer = await fetch(`/sim/users/${me().wa_id}/${action}`, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    });
    if (!answer.ok) trouble = (await answer.json()).error.message;
  } catch {
    trouble = say("unreachable");
  }
  await refresh();
}

async function refresh() {
  try {
    const answer = await fetch("/sim/state?limit=100");
    state = await answer.json();
    draw();
  } catch {
    showTrouble(say("unreachable"));
  }
}

function showTrouble(text) {
  $("trouble").hidden = !text;
  if ($("trouble").textContent !== text) $("trouble").textContent = text;
}

function drawTexts() {
  document.documentElement.lang = language;
  document.title = say("title");
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = say(element.dataset.text);
}

function setText(id, text) {
  // Only when it differs: a live region that is rewritten is read out again.
  if ($(id).textContent !== text) $(id).textContent = text;
}

function draw() {
  const user = me();
  if (!user) return;
  drawUsers(user);
  const business = state.numbers[0];
  const facts = user.numbers[business.phone_number_id];
  setText("who", user.name);
  setText("number", `+${user.wa_id}`);
  drawCall(user.call, business);
  drawPermission(facts, business);
  const until = facts?.window_until ?? 0;
  setText("window", until > state.now ? say("windowOpen", { until: moment(until) }) : say("windowClosed"));
  const { url, verified } = state.callback;
  setText("callback", say(!url ? "callbackNone" : verified ? "callbackOk" : "callbackWaiting"));
  drawLog();
  showTrouble(trouble);
}

function drawUsers(user) {
  const wanted = state.users.map((one) => one.wa_id).join();
  if ($("user").dataset.users !== wanted) {
    $("user").replaceChildren(...state.users.map((one) => new Option(`${one.name} (+${one.wa_id})`, one.wa_id)));
    $("user").dataset.users = wanted;
  }
  if ($("user").value !== user.wa_id) $("user").value = user.wa_id;
}

function drawCall(call, business) {
  const incoming = call?.direction === "BUSINESS_INITIATED";
  const ringing = call?.state === "ringing";
  const active = call?.state === "active";
  const key = !call ? "idle" : ringing ? (incoming ? "ringingIn" : "ringingOut") : call.state;
  setText("state", say(key, { name: business.verified_name }));
  setText("clock", active ? duration(state.now - call.answered_at) : "");
  $("call").disabled = Boolean(call);
  $("accept").disabled = $("decline").disabled = !(incoming && ringing);
  $("hangup").disabled = !call || (incoming && !active);
  for (const field of $("dtmf").elements) field.disabled = !active;
  const level = call?.media.audio_packets ? call.media.level_dbfs : -60;
  $("level").value = Math.max(-60, level);
  const tone = call?.media.tone_purity > 0.7 ? `${Math.round(call.media.tone_hz)} Hz` : null;
  setText("tone", tone ?? say(level > -55 ? "sound" : "silence"));
}

function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

function drawPermission(facts, business) {
  const status = facts?.status ?? "no_permission";
  setText("permission", say(status, { until: facts?.expires_at ? moment(facts.expires_at) : "" }));
  const request = facts?.requests.at(-1);
  $("request").hidden = !request;
  if (request) setText("requestText", `${say("wants", { name: business.verified_name })} ${request.text}`);
  $("once").disabled = request?.state === "accepted" && status === "temporary";
  $("refuse").disabled = request?.state === "rejected";
  $("revoke").disabled = status === "no_permission";
}

function drawLog() {
  const lines = state.log.filter((line) => !line.wa_id || line.wa_id === me().wa_id).reverse();
  const newest = `${language} ${me().wa_id} ${lines.length} ${lines[0]?.at} ${lines[0]?.what}`;
  if (newest === drawnLog) return;
  drawnLog = newest;
  $("log").replaceChildren(...lines.map((line) => {
    const item = document.createElement("li");
    const time = document.createElement("time");
    time.textContent = moment(line.at, { timeStyle: "medium" });
    if (line.what === "violation") item.className = "violation";
    const details = line.what === "ended" ? say(`end_${line.details}`) : line.details;
    item.append(time, say(`did_${line.what}`, { details }));
    return item;
  }));
}

const ACTIONS = {
  call: () => post("call"), accept: () => post("accept"), decline: () => post("decline"), hangup: () => post("hangup"),
  once: () => post("permission", { response: "accept" }),
  always: () => post("permission", { response: "accept", permanent: true }),
  refuse: () => post("permission", { response: "reject" }),
  grant: () => post("grant"), revoke: () => post("revoke"),
};
for (const [id, act] of Object.entries(ACTIONS)) $(id).addEventListener("click", act);
for (const id of ["dtmf", "message"]) {
  $(id).addEventListener("submit", async (event) => {
    event.preventDefault();
    const form = event.target;
    await post(id, Object.fromEntries(new FormData(form)));
    if (!trouble) form.reset();
  });
}
$("user").addEventListener("change", (event) => {
  waId = event.target.value;
  trouble = "";
  localStorage.setItem("user", waId);
  draw();
});
$("language").value = language;
$("language").addEventListener("change", (event) => {
  language = event.target.value;
  localStorage.setItem("language", language);
  drawTexts();
  draw();
});

drawTexts();
async function poll() {
  if (!document.hidden) await refresh();
  setTimeout(poll, POLL_MS);
}
poll();
