// Requests that are being served, and those that wait for a model.

import { plural } from "../shared.js";
import { html, nothing, repeat } from "./lit.js";
import { NONE, count, epoch, millis, rate, span } from "./format.js";
import { figure, who } from "./lines.js";

const STATES = { waiting: "waiting", loading: "loading", answering: "answering" };
const LOADED = { hand: "loaded by hand", preload: "loaded at the start" };

/** @param {import("./store.js").Store} store */
export function livePanel(store, acts) {
  const { active, data } = store.live;
  return html`
    <section class="panel flush" id="live-panel" tabindex="-1" aria-labelledby="live-title">
      <div class="panel-head">
        <h2 id="live-title">Being served <span class="soft figure" data-figure="active">${active}</span></h2>
        ${active > data.length ? html`<p class="soft">the first ${data.length} of ${active}</p>` : nothing}
      </div>
      ${data.length ? liveTable(store, data, acts) : html`<p class="soft pad">No request is being served.</p>`}
    </section>
  `;
}

function liveTable(store, data, acts) {
  return html`
    <div class="scroll" tabindex="0" role="group" aria-labelledby="live-title">
      <table id="live" role="table">
        <thead role="rowgroup">
          <tr role="row">
            <th role="columnheader">Model</th>
            <th role="columnheader">State</th>
            <th role="columnheader" class="number">Time</th>
            <th role="columnheader" class="number"><abbr title="Time to first token">TTFT</abbr></th>
            <th role="columnheader" class="number">Tokens</th>
            <th role="columnheader" class="number">Tokens/s</th>
            <th role="columnheader"><span class="unseen">Stop</span></th>
          </tr>
        </thead>
        <tbody role="rowgroup">
          ${repeat(data, (row) => row.request_id, (row) => liveRow(store, row, acts))}
        </tbody>
      </table>
    </div>
  `;
}

function liveRow(store, row, acts) {
  const isStopped = store.stopping.has(row.request_id);
  const name = row.model ?? row.requested_model;
  const pictures = row.images ? plural(row.images, "picture") : "";
  const from = [row.role ? `role ${row.role}` : "", row.key ?? "", pictures].filter(Boolean).join(" · ");
  return html`
    <tr role="row" data-request=${row.request_id}>
      ${who(name, from)}
      <td role="cell" class="state"><span class=${`dot is-${row.state}`} aria-hidden="true"></span>${
        isStopped ? "stopping" : row.state === "answering" && row.ttft_ms === null && row.stream ? "reading" : STATES[row.state]}</td>
      ${figure("time", span((store.now() - epoch(row.started)) / 1000))}
      ${figure("TTFT", millis(row.ttft_ms))}
      ${figure("tokens", count(row.tokens || null))}
      ${figure("tokens/s", rate(row.tokens_per_second))}
      <td role="cell" class="end"><button type="button" class="small" data-act="stop" ?disabled=${isStopped}
        aria-label=${`Stop the request to ${name}`} @click=${() => acts.stop(row)}>Stop</button></td>
    </tr>
  `;
}

/** @param {import("./store.js").Store} store */
export function queuePanel(store) {
  const { waiting, data } = store.queue;
  return html`
    <section class="panel flush" aria-labelledby="queue-title">
      <div class="panel-head">
        <h2 id="queue-title">Waiting for a model <span class="soft figure" data-figure="waiting">${waiting}</span></h2>
        ${waiting > data.length ? html`<p class="soft">the first ${data.length} of ${waiting}</p>` : nothing}
      </div>
      ${data.length ? queueTable(store, data) : html`<p class="soft pad">Nothing waits.</p>`}
    </section>
  `;
}

function queueTable(store, data) {
  return html`
    <div class="scroll" tabindex="0" role="group" aria-labelledby="queue-title">
      <table id="queue" role="table">
        <thead role="rowgroup">
          <tr role="row">
            <th role="columnheader">Model</th>
            <th role="columnheader" class="number">Place</th>
            <th role="columnheader" class="number">Waits</th>
            <th role="columnheader" class="number">Expected in</th>
          </tr>
        </thead>
        <tbody role="rowgroup">
          ${repeat(data, (row) => row.request_id ?? `${row.model} ${row.waiting_since}`, (row) => queueRow(store, row))}
        </tbody>
      </table>
    </div>
  `;
}

function queueRow(store, row) {
  const eta = row.eta_s === null ? (row.state === "ready" ? "when it is free" : NONE) : span(row.eta_s);
  const words = LOADED[row.purpose] ?? (row.role ? `role ${row.role}` : "");
  return html`
    <tr role="row" data-request=${row.request_id ?? ""}>
      ${who(row.model, words)}
      ${figure("place", row.position)}
      ${figure("waits", span((store.now() - epoch(row.waiting_since)) / 1000))}
      ${figure("expected in", eta)}
    </tr>
  `;
}
