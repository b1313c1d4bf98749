// Problems of a business number in plain words, one line each. Codes: policy/reasons.py and Meta's own.

import { when } from "/static/format.js";
import { t, words } from "/static/i18n.js";

const HIDDEN = "RESTRICTED_USER_INITIATED_CALLING_CALL_BUTTON_HIDDEN";

function blocked(key, refusal) {
  const again = refusal.retry_at && t("refusal.again", { when: when(refusal.retry_at) });
  const why = [words("reason", refusal.reason, refusal.title), again].filter(Boolean).join(" ");
  return t(key, { why });
}

function blocks({ place, receive }) {
  if (place && receive && place.reason === receive.reason && place.retry_at === receive.retry_at) {
    return [blocked("number.no_calls", place)];
  }
  return [receive && blocked("number.no_incoming", receive), place && blocked("number.no_outgoing", place)];
}

function closed(hours) {
  if (!hours || hours.open) return null;
  return hours.opens_at ? t("number.closed_until", { when: when(hours.opens_at) }) : t("number.closed");
}

/** `{tone, lines}`: tone is "no" if some calls are impossible, "warn" if there are other lines, else null. */
export function numberWords(status) {
  const blocking = blocks(status).filter(Boolean);
  const outside = [status.place, status.receive].some((refusal) => refusal?.reason === "outside_hours");
  const lines = [
    ...blocking,
    ...(status.restrictions.some(({ type }) => type === HIDDEN) ? [t("number.button_hidden")] : []),
    ...status.warnings.map(({ violation, remediation }) => words("violation", violation, remediation ?? violation)),
    ...(outside ? [] : [closed(status.hours)]),
  ].filter(Boolean);
  return { tone: blocking.length ? "no" : lines.length ? "warn" : null, lines };
}
