// Which lines of the request log a list is of: the server's own rules, as in insight/log_reader.py. Pure.

import { outcome } from "./lines.js";

const UNIT_MS = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000, w: 604_800_000 };
const COMPARISONS = {
  ">=": (a, b) => a >= b,
  "<=": (a, b) => a <= b,
  ">": (a, b) => a > b,
  "<": (a, b) => a < b,
  "!=": (a, b) => a !== b,
  "": (a, b) => a === b,
};
const PARTS = /\[(!|(?!!))((?:\]|[^\]])[^\]]*)\]|[^]/gu;

/**
 * Return whether a line is one of those that are asked for; a filter that the server refuses takes none.
 * @param {import("./types.js").Line} line
 * @param {{model: string, role: string, status: string, since: string, key: string}} filters "" asks for all
 * @param {number} now ms since the epoch
 */
export function isWanted(line, { model, role, status, since, key }, now) {
  return (
    (!model || isLike(line.model, model) || isLike(line.requested_model, model)) &&
    (!role || isLike(line.role, role.replace(/^role:/, ""))) &&
    (!key || line.key === key) &&
    (!status || hasStatus(line, status)) &&
    (!since || Date.parse(line.ts) >= begin(since, now))
  );
}

function hasStatus(line, text) {
  if (text === "ok" || text === "error") {
    return (text === "ok") === (outcome(line) === "good");
  }
  const [, hundreds] = /^([1-5])xx$/.exec(text) ?? [];
  const [, comparison, code] = /^(>=|<=|>|<|!=|)\s*(\d{3})$/.exec(text) ?? [];
  if (typeof line.status !== "number") {
    return false;
  }
  return hundreds ? Math.floor(line.status / 100) === Number(hundreds) : Boolean(code) && COMPARISONS[comparison](line.status, Number(code));
}

/** Return when that begins (ms since the epoch). @param {string} since a span, or a time */
function begin(since, now) {
  if (/^(\d+[smhdw])+$/.test(since)) {
    const parts = [...since.matchAll(/(\d+)([smhdw])/g)];
    return now - parts.reduce((sum, [, amount, unit]) => sum + amount * UNIT_MS[unit], 0);
  }
  return Date.parse(/^\d{4}-\d\d-\d\d$/.test(since) ? `${since}T00:00` : since);
}

/** Whether a name fits a pattern as a shell has them: `*`, `?`, `[abc]`, `[!a-z]`. */
function isLike(value, pattern) {
  return typeof value === "string" && (value === pattern || (expression(pattern)?.test(value) ?? false));
}

/** Return it as a regular expression, in which no `*` is tried twice: that might take years. */
function expression(pattern) {
  const between = [""]; // the stars
  for (const [part, not, members] of pattern.matchAll(PARTS)) {
    if (part === "*") {
      between.push("");
    } else {
      between[between.length - 1] += members
        ? `[${not && "^"}${members.replace(/[\\[\]^]/g, "\\$&")}]`
        : part === "?" ? "[^]" : part.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");
    }
  }
  const last = between.length - 1;
  const source = between.map((part, place) =>
    place === 0 ? part : place === last ? `[^]*${part}` : `(?=([^]*?${part}))\\${place}`);
  try {
    return new RegExp(`^${source.join("")}$`, "u");
  } catch {
    return null; // a range that ends before it begins
  }
}
