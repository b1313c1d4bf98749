// Format phone numbers, instants and durations for display. Pure.

import { currentLanguage, t } from "/static/i18n.js";

// Country codes of one and two digits (list of ITU-T E.164); all others have three.
const SHORT_CODES = new Set(
  ("1 7 20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 " +
    "60 61 62 63 64 65 66 81 82 84 86 90 91 92 93 94 95 98").split(" "),
);

function grouped(digits) {
  const groups = [];
  let rest = digits;
  while (rest.length > 4) {
    groups.push(rest.slice(0, 3));
    rest = rest.slice(3);
  }
  return [...groups, rest].join(" ");
}

/** "+5511900000001" -> "+55 11 90000-0001"; anything that is not an E.164 number is returned unchanged. */
export function phoneNumber(number) {
  if (!/^\+\d{7,15}$/.test(number ?? "")) return number ?? "";
  const digits = number.slice(1);
  const code = [1, 2, 3].map((n) => digits.slice(0, n)).find((c) => c.length === 3 || SHORT_CODES.has(c));
  const rest = digits.slice(code.length);
  if (code === "55" && rest.length >= 10) return `+55 ${rest.slice(0, 2)} ${rest.slice(2, -4)}-${rest.slice(-4)}`;
  if (code === "1" && rest.length === 10) return `+1 ${rest.slice(0, 3)}-${rest.slice(3, 6)}-${rest.slice(6)}`;
  return `+${code} ${grouped(rest)}`;
}

/** Normalise typed or pasted text to what the server expects; a user id (it contains letters) is returned unchanged. */
export function dialable(text) {
  const trimmed = text.trim();
  if (/[a-z]/i.test(trimmed)) return trimmed;
  return trimmed.replace(/[^\d+]/g, "").replace(/^00/, "+").replace(/(?!^)\+/g, "");
}

export const userName = (user) => user.name || phoneNumber(user.number) || user.user_id || t("user.unknown");

/** The number to show beside the name; empty if the name already is the number. */
export const userNumber = (user) => (user.name ? phoneNumber(user.number) : "");

export const count = (value) => new Intl.NumberFormat(currentLanguage()).format(value);

export function duration(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  const two = (value) => String(value).padStart(2, "0");
  const hours = Math.floor(s / 3600);
  return (hours ? `${hours}:${two(Math.floor(s / 60) % 60)}` : `${Math.floor(s / 60)}`) + `:${two(s % 60)}`;
}

/** A duration in its natural unit: "45 minutes", "26 hours", "7 days". */
export function span(seconds) {
  const [unit, length] = seconds < 5_400 ? ["minute", 60] : seconds < 3 * 86_400 ? ["hour", 3_600] : ["day", 86_400];
  const options = { style: "unit", unit, unitDisplay: "long" };
  return new Intl.NumberFormat(currentLanguage(), options).format(Math.floor(seconds / length));
}

const dateFormat = (date, options) => new Intl.DateTimeFormat(currentLanguage(), options).format(date);

function daysFromToday(date, now) {
  const midnight = (d) => Date.UTC(d.getFullYear(), d.getMonth(), d.getDate());
  return (midnight(date) - midnight(now)) / 86_400_000;
}

/** Split an instant in local time: how far away it is, its day in words, and the time of day. */
function spoken(iso, now) {
  const date = new Date(iso);
  const time = dateFormat(date, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
  const days = daysFromToday(date, now);
  if (Math.abs(days) <= 1) {
    const day = new Intl.RelativeTimeFormat(currentLanguage(), { numeric: "auto" }).format(days, "day");
    return { distance: days === 0 ? "today" : "near", day, time };
  }
  if (Math.abs(days) < 7) return { distance: "week", day: dateFormat(date, { weekday: "long" }), time };
  const year = date.getFullYear() === now.getFullYear() ? undefined : "numeric";
  return { distance: "far", day: dateFormat(date, { day: "numeric", month: "short", year }), time };
}

/** An instant in short form: "14:05", "tomorrow 14:05", "Tuesday 14:05", "3 Dec 14:05". */
export function when(iso, now = new Date()) {
  const { distance, day, time } = spoken(iso, now);
  return distance === "today" ? time : `${day} ${time}`;
}

const ON = { today: "on.near", near: "on.near", week: "on.week", far: "on.far" };

/** An instant inside a sentence: "today at 14:05", "on Tuesday at 14:05". */
export function onDay(iso, now = new Date()) {
  const { distance, day, time } = spoken(iso, now);
  return t(ON[distance], { day, time });
}
