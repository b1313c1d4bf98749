// The gate's answer in plain words: reason, figures, when it is possible again, remedy. Codes: policy/reasons.py.

import { count, onDay, span, when } from "/static/format.js";
import { has, t, words } from "/static/i18n.js";

// The figures of these reasons are in seconds; all others count calls, requests or conversations.
const IN_SECONDS = new Set(["permission_expired", "after_decline", "window_closed"]);

function figures({ reason, rule, observed, limit }) {
  if (observed == null || limit == null) return null;
  const written = IN_SECONDS.has(reason) ? span : count;
  const known = [rule, reason].find((name) => has(`figures.${name}`)) ?? "other";
  return t(`figures.${known}`, { observed: written(observed), limit: written(limit) });
}

/** The remedy in words; null for "wait" if the answer already shows until when. */
function help({ remedy, retry_at }) {
  return remedy && !(remedy === "wait" && retry_at) ? words("remedy", remedy) : null;
}

/** The name of the rule, with its source if the rule is not the gateway's own. */
export function ruleName({ rule, source }) {
  return source ? `${rule} (${source})` : rule;
}

/** Lines that explain a refusal; the first one gives the reason. */
export function refusalLines(refusal) {
  return [
    words("reason", refusal.reason, refusal.title),
    figures(refusal),
    refusal.retry_at && t("refusal.again", { when: when(refusal.retry_at) }),
    help(refusal),
  ].filter(Boolean);
}

const streakFigures = ({ streak, streak_limit }) => ({ streak: count(streak), limit: count(streak_limit ?? 0) });

/** The answer to `check` for display: `{tone, headline, lines, rule}`. */
export function decisionWords(decision) {
  if (!decision.allowed) {
    const [headline, ...lines] = refusalLines(decision.refusal);
    if (decision.refusal.remedy === "wait_for_reply" && decision.asked_at) {
      lines.push(t("gate.asked", { when: onDay(decision.asked_at) }));
    }
    return { tone: "no", headline, lines, rule: ruleName(decision.refusal) };
  }
  const until = decision.permission_expires_at;
  const lines = [
    until ? t("gate.until", { when: when(until) }) : t("gate.no_end"),
    ...decision.warnings.map((code) => words("warning", code, null, streakFigures(decision))),
  ];
  return { tone: decision.warnings.length ? "warn" : "yes", headline: t("gate.allowed"), lines, rule: null };
}

/** One sentence: when the operator may ask again, and what happened before; null if there is no such instant. */
function askAgain({ ask, asked_at, declined_at }) {
  const again = ask.retry_at && onDay(ask.retry_at);
  if (again && ask.reason === "after_decline" && declined_at) {
    return t("ask.after_decline", { when: again, declined: onDay(declined_at) });
  }
  if (again && ask.reason === "request_limit" && asked_at) {
    return t("ask.request_limit", { when: again, asked: onDay(asked_at) });
  }
  return null;
}

/** The text beside the ask-permission button: the form the request will take, or why it cannot be sent now. */
export function askWords(decision) {
  if (!decision.ask) return words("ask_form", decision.ask_form);
  return askAgain(decision) ?? t("ask.refused", { why: refusalLines(decision.ask).join(" ") });
}
