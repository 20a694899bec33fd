// How a line of the request log is shown, wherever it is.

import { html } from "./lit.js";
import { NONE } from "./format.js";

const CLIENT_GONE = 499;

/** Return how a request ended: "good", "gone" or "bad". @param {import("./types.js").Line} line */
export function outcome(line) {
  if (line.status === CLIENT_GONE) {
    return "gone";
  }
  return line.error || line.status === null || line.status >= 400 ? "bad" : "good";
}

/** @param {import("./types.js").Line} line */
export function statusBadge(line) {
  const kind = outcome(line);
  const code = String(line.error ?? "").split(":")[0];
  const words = kind === "good" ? "" : kind === "gone" ? "client left" : code.replaceAll("_", " ");
  return html`<span class=${`badge is-${kind}`}>${line.status ?? "–"}</span>${
    words ? html` <span class=${kind === "bad" ? "cut bad" : "cut soft"} title=${line.error ?? words}>${words}</span>` : ""}`;
}

/** A link that opens a request in full. */
export function requestLink(app, line, words) {
  const query = new URLSearchParams(location.pathname === "/ui/requests" ? location.search : "");
  query.set("request", line.request_id);
  return html`<a href=${`/ui/requests?${query}`} data-open=${line.request_id}
    @click=${(event) => app.sheet.follow(event, line.request_id)}>${words}</a>`;
}

/** The cell that says which model, and something softly beside it. */
export function who(name, words) {
  return html`<td role="cell" class="wide-cell"><bdi>${name ?? NONE}</bdi> <span class="soft"><bdi>${words}</bdi></span></td>`;
}

/** A cell with a figure; `label` names it where there is no room for a head. */
export function figure(label, value) {
  return html`<td role="cell" class=${value === NONE ? "number none" : "number"} data-label=${label}>${value}</td>`;
}
