// How a call ended, in a sentence of the operator's language. Codes: gateway/callflow/outcome.py.

import { duration } from "/static/format.js";
import { t, words } from "/static/i18n.js";

// Results shown instead of their reason, because the reason alone would be ambiguous.
const RESULT_FIRST = new Set(["indeterminate"]);

export function outcomeWords(call) {
  if (!call.outcome) return words("state", call.state);
  const { result, reason } = call.outcome;
  if (result === "completed" && call.duration_s != null) {
    return t("result.completed_for", { duration: duration(call.duration_s), reason: words("outcome", reason) });
  }
  if (RESULT_FIRST.has(result)) return words("result", result);
  return words("outcome", reason, words("result", result));
}

/** Good, bad or neutral; decides the colour only. */
export function outcomeTone(call) {
  if (!call.outcome) return "";
  if (call.outcome.result === "completed") return "good";
  return ["gateway", "meta", "indeterminate"].includes(call.outcome.result) ? "bad" : "";
}
