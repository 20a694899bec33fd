// Numbers and times as people read them; "–" stands for what is not known.

export const NONE = "–";

const whole = new Intl.NumberFormat("en");
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });

/** @param {number|null|undefined} value */
export function count(value) {
  return value === null || value === undefined ? NONE : whole.format(value);
}

/** Return a number that has little room: from a million on with four digits. @param {number|null|undefined} value */
export function short(value) {
  return Math.abs(value ?? 0) < 1e6 ? count(value) : compact.format(value);
}

/** Return an amount of memory; below 1 GB in MB. @param {number|null|undefined} mb */
export function memory(mb) {
  if (mb === null || mb === undefined) {
    return NONE;
  }
  return mb < 1000 ? `${whole.format(Math.round(mb))} MB` : `${(mb / 1024).toFixed(1)} GB`;
}

/** Return how long something takes or took, to two parts at the most. @param {number|null|undefined} s */
export function span(s) {
  if (s === null || s === undefined || !Number.isFinite(s)) {
    return NONE;
  }
  if (s < 10) {
    return `${Math.max(0, s).toFixed(1)} s`;
  }
  if (s < 90) {
    return `${Math.round(s)} s`;
  }
  const minutes = Math.round(s / 60);
  if (minutes < 90) {
    return `${minutes} min`;
  }
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** @param {number|null|undefined} ms */
export function millis(ms) {
  if (ms === null || ms === undefined) {
    return NONE;
  }
  return ms < 1000 ? `${Math.round(ms)} ms` : span(ms / 1000);
}

/** @param {number|null|undefined} perSecond */
export function rate(perSecond) {
  if (perSecond === null || perSecond === undefined) {
    return NONE;
  }
  return perSecond < 100 ? perSecond.toFixed(1) : whole.format(Math.round(perSecond));
}

/** @param {number} ms since the epoch */
export function clock(ms) {
  return new Date(ms).toLocaleTimeString("en-GB");
}

/** Return time of day, with the day unless that is today. @param {string|number} when */
export function moment(when) {
  const date = new Date(when);
  const time = date.toLocaleTimeString("en-GB");
  return date.toDateString() === new Date().toDateString()
    ? time
    : `${date.toLocaleDateString("en-GB", { day: "numeric", month: "short" })} ${time}`;
}

/** Return milliseconds since the epoch of a time in seconds or as ISO 8601. @param {string|number|null} when */
export function epoch(when) {
  if (when === null || when === undefined) {
    return NaN;
  }
  return typeof when === "number" ? when * 1000 : Date.parse(when);
}
