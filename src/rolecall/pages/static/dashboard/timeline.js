// Loads and swaps over time: a row for each model, and the same as a table.

import { html, nothing, repeat, svg } from "./lit.js";
import { NONE, clock, moment, span } from "./format.js";
import { figure, who } from "./lines.js";
import { lives } from "./lives.js";

const SPANS = [
  [2, "2 min"],
  [15, "15 min"],
  [60, "1 h"],
];
const WORDS = {
  load: "loading begins",
  ready: "loaded",
  failed: "start failed",
  sleep: "put to sleep",
  wake: "waking begins",
  awake: "awake",
  evicted: "made room",
  unload: "unloading",
  unloaded: "gone",
  crashed: "crashed",
  pinned: "pinned",
  unpinned: "unpinned",
};
const KINDS = [
  ["loading", "loading"],
  ["ready", "ready"],
  ["sleeping", "asleep"],
  ["failed", "failed or crashed"],
];

/**
 * @param {import("./store.js").Store} store
 * @param {{minutes: number, isTable: boolean}} wish
 * @param {(change: object) => void} change
 */
export function timelinePanel(store, wish, change) {
  const now = store.now();
  return html`
    <section class="panel flush" aria-labelledby="timeline-title">
      <div class="panel-head">
        <h2 id="timeline-title">Loads and swaps</h2>
        <div class="row tools">
          ${wish.isTable ? nothing : spans(wish, change)}
          <div class="choices" role="group" aria-label="Form">
            <button type="button" class="small" aria-pressed=${String(!wish.isTable)} @click=${() => change({ isTable: false })}>Chart</button>
            <button type="button" class="small" id="timeline-table-button" aria-pressed=${String(wish.isTable)} @click=${() => change({ isTable: true })}>Table</button>
          </div>
        </div>
      </div>
      ${wish.isTable ? table(store) : chart(store, now, wish.minutes * 60_000)}
    </section>
  `;
}

function spans(wish, change) {
  return html`
    <div class="choices" role="group" aria-label="Time shown">
      ${SPANS.map(([minutes, words]) => html`<button type="button" class="small" aria-pressed=${String(wish.minutes === minutes)}
        @click=${() => change({ minutes })}>${words}</button>`)}
    </div>
  `;
}

function chart(store, now, length) {
  const from = now - length;
  const all = lives(store.timeline, store.models, now);
  const rows = [...all]
    .map(([name, { stretches, marks }]) => ({
      name,
      stretches: stretches.filter((each) => each.to > from),
      marks: marks.filter((each) => each.at > from),
    }))
    .filter(({ stretches, marks }) => stretches.length || marks.length)
    .sort((a, b) => a.name.localeCompare(b.name));
  if (!rows.length) {
    return html`<p class="soft pad">No model was loaded in this time.</p>`;
  }
  const x = (at) => (100 * Math.max(0, at - from)) / length;
  const forgotten = store.forgotten > from ? store.forgotten : null;
  return html`
    <div class="chart">
      <ul class="rows" aria-label=${`Models over the last ${Math.round(length / 60_000)} minutes`}>
        ${repeat(rows, (row) => row.name, (row) => chartRow(store, row, x, forgotten))}
      </ul>
      <div class="axis" aria-hidden="true">${ticks(now, length).map(({ at, words }) => html`<span .style=${`inset-inline-start:${x(at)}%`}>${words}</span>`)}</div>
      <ul class="legend keys" aria-hidden="true">
        ${[...KINDS, ...(forgotten ? [["unknown", "not kept"]] : [])].map(([kind, words]) => html`<li><i class=${`swatch is-${kind}`}></i><span>${words}</span></li>`)}
      </ul>
      ${forgotten ? html`<p class="soft" id="forgotten">What was before ${clock(forgotten)} is not kept: only the last ${store.timeline.length} steps are.</p>` : nothing}
    </div>
  `;
}

function chartRow(store, { name, stretches, marks }, x, forgotten) {
  const hue = store.hue(name);
  const loads = stretches.filter((each) => each.kind === "loading").length;
  const last = stretches.at(-1);
  const words = `${loads === 1 ? "1 load" : `${loads} loads`}${marks.length ? `, ${marks.length} failed` : ""}${last ? `, ${last.kind} at last` : ""}`;
  return html`
    <li>
      <span class="label"><bdi>${name}</bdi><span class="unseen">: ${words}</span></span>
      <svg class=${`lane ${hue}`} width="100%" height="20" aria-hidden="true">
        ${forgotten ? svg`<rect class="is-unknown" x="0" y="0" width=${`${x(forgotten)}%`} height="20"></rect>` : nothing}
        ${stretches.map(({ kind, from, to, words: why }) => svg`<rect class=${`is-${kind}`} x=${`${x(from)}%`} y="3" height="14" rx="2"
          width=${`${Math.max(0.15, x(to) - x(from))}%`}><title>${`${name}: ${why}, ${clock(from)}, ${span((to - from) / 1000)}`}</title></rect>`)}
        ${marks.map(({ at, words: why }) => svg`<rect class="is-failed" x=${`${Math.max(0, x(at) - 0.2)}%`} y="1" width="0.4%" height="18"><title>${`${name}: ${why}, ${clock(at)}`}</title></rect>`)}
      </svg>
    </li>
  `;
}

/** Return round times on the axis, four or so. */
function ticks(now, length) {
  const step = length / 5;
  return Array.from({ length: 6 }, (_, number) => {
    const at = now - length + number * step;
    const minutes = (length - number * step) / 60_000;
    const words = number === 5 ? "now" : minutes < 2 ? `−${Math.round(minutes * 60)} s` : `−${Math.round(minutes)} min`;
    return { at, words };
  });
}

function table(store) {
  const entries = store.timeline.toReversed();
  if (!entries.length) {
    return html`<p class="soft pad">No model was loaded since the server started.</p>`;
  }
  return html`
    <div class="scroll" tabindex="0" role="group" aria-labelledby="timeline-title">
      <table id="timeline" role="table">
        <thead role="rowgroup">
          <tr role="row">
            <th role="columnheader">Time</th>
            <th role="columnheader">Model</th>
            <th role="columnheader">What</th>
            <th role="columnheader" class="number">Seconds</th>
            <th role="columnheader">Why</th>
          </tr>
        </thead>
        <tbody role="rowgroup">
          ${repeat(entries, (entry) => `${entry.ts} ${entry.model} ${entry.event}`, entryRow)}
        </tbody>
      </table>
    </div>
  `;
}

function entryRow(entry) {
  return html`
    <tr role="row">
      <td role="cell" class="time">${moment(entry.ts)}</td>
      ${who(entry.model, "")}
      <td role="cell" class=${["failed", "crashed"].includes(entry.event) ? "state bad" : "state"}>${WORDS[entry.event] ?? entry.event}</td>
      ${figure("seconds", entry.seconds === null ? NONE : entry.seconds.toFixed(1))}
      <td role="cell" class="soft why">${entry.reason ?? ""}</td>
    </tr>
  `;
}
