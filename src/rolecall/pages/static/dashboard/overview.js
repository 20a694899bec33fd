// The dashboard itself: what runs now.

import { Refusal, ask, at, plural } from "../shared.js";
import { html, nothing, repeat } from "./lit.js";
import { count, epoch, millis, moment, rate, short, span } from "./format.js";
import { memoryPanel } from "./memory.js";
import { modelsPanel } from "./models.js";
import { livePanel, queuePanel } from "./traffic.js";
import { timelinePanel } from "./timeline.js";
import { figure, requestLink, statusBadge, who } from "./lines.js";

const RECENT = 8;
const LET_GO_MS = 1000;

export class Overview {
  /** @param {import("./start.js").App} app */
  constructor(app) {
    this.app = app;
    this.wish = { text: "", loaded: false };
    this.timeline = { minutes: 15, isTable: false };
    this.acts = {
      load: (row) => this.begin(row, "load"),
      unload: (row) => this.unload(row),
      pin: (row) => this.act(row, row.pinned ? "unpin" : "pin"),
      output: (row, opener) => app.output.open(row.model, opener),
      stop: (row) => this.stop(row),
      find: (change) => {
        Object.assign(this.wish, change);
        app.draw();
      },
    };
  }

  get title() {
    return "Dashboard";
  }

  template() {
    const { store } = this.app;
    return html`
      <header class="head">
        <h1>Dashboard</h1>
        <p class="soft">${about(store)}</p>
      </header>
      ${problems(store.server.problems ?? {})} ${figures(store)} ${memoryPanel(store)}
      ${modelsPanel(store, this.acts, this.wish)}
      <div class="pair">${livePanel(store, this.acts)} ${queuePanel(store)}</div>
      ${timelinePanel(store, this.timeline, (change) => {
        Object.assign(this.timeline, change);
        this.app.draw();
      })}
      ${recent(this.app)}
    `;
  }

  /** Ask for something, and tell of it if it is refused. */
  async act(row, verb, signal) {
    await this.app.guarded(() => ask(`/v1/models/${encodeURIComponent(row.model)}/${verb}`, { method: "POST", signal }));
  }

  /**
   * Begin what may take minutes, and let go of the answer if it does: the stream tells what becomes of it, and a
   * browser has six connections to a server. Leaving does not withdraw it.
   */
  async begin(row, verb) {
    const leaving = new AbortController();
    const timer = setTimeout(() => leaving.abort(), LET_GO_MS);
    await this.act(row, verb, leaving.signal);
    clearTimeout(timer);
  }

  async unload(row) {
    const doubts = against(row, this.app.store);
    if (!doubts.length || confirm([...doubts, "Unload it all the same?"].join(" "))) {
      await this.begin(row, "unload");
    }
  }

  async stop(row) {
    const { store } = this.app;
    store.stopping.add(row.request_id);
    at("live-panel").focus({ preventScroll: true }); // the button is about to go, and the focus would with it
    this.app.draw();
    await this.app.guarded(async () => {
      try {
        await ask(`/v1/requests/${encodeURIComponent(row.request_id)}/cancel`, { method: "POST" });
        this.app.speak(`Stopped the request to ${row.model ?? row.requested_model}.`);
      } catch (error) {
        store.stopping.delete(row.request_id);
        if (!(error instanceof Refusal && error.status === 404)) {
          throw error; // else it is over by itself
        }
      }
    });
  }
}

/** What speaks against unloading a model. Who waits only for its being loaded does not: that is given up with it. */
function against({ model, in_flight: answering, waiting }, store) {
  const loads = store.queue.data.filter((row) => row.model === model && row.purpose !== "request").length;
  const asking = waiting - loads;
  return [
    answering ? `${model} is answering ${plural(answering, "request")}.` : "",
    asking > 0 ? `${plural(asking, "request")} ${asking === 1 ? "waits" : "wait"} for ${model} and will have it loaded again.` : "",
  ].filter(Boolean);
}

function about(store) {
  const { profile, version, started_at: started } = store.server;
  return [
    profile ? `profile ${profile}` : "",
    version ? `rolecall ${version}` : "",
    started ? `up ${span((store.now() - epoch(started)) / 1000)}` : "",
  ].filter(Boolean).join(" · ");
}

function problems(found) {
  return Object.entries(found).map(([name, words]) => html`<p class="note bad" data-problem=${name}>${words}</p>`);
}

function figures(store) {
  const { totals, live, queue } = store;
  const speed = live.data.reduce((sum, row) => sum + (row.tokens_per_second ?? 0), 0);
  const rows = [
    ["active", "being served", live.active],
    ["waiting", "waiting", queue.waiting],
    ["speed", "tokens/s now", speed, speed ? rate(speed) : "0"],
    ["requests", "requests", totals.requests],
    ["errors", "errors", totals.errors],
    ["completion_tokens", "tokens written", totals.completion_tokens],
    ["prompt_tokens", "tokens read", totals.prompt_tokens],
    ["loads", "loads", totals.loads],
    ["evictions", "evictions", totals.evictions],
  ];
  return html`
    <dl class="figures" aria-label="Since the server started">
      ${rows.map(([name, words, value, shown]) => html`<div class=${name === "errors" && totals.errors ? "bad" : ""}>
        <dt>${words}</dt><dd data-total=${name} title=${shown ? nothing : count(value)}>${shown ?? short(value)}</dd></div>`)}
    </dl>
    ${totals.log_lines_dropped
      ? html`<p class="note bad">${count(totals.log_lines_dropped)} lines of the request log were lost: it cannot be written fast enough.</p>`
      : nothing}
  `;
}

function recent(app) {
  const lines = app.store.history.slice(0, RECENT);
  return html`
    <section class="panel flush" aria-labelledby="recent-title">
      <div class="panel-head">
        <h2 id="recent-title">Last requests</h2>
        <a href="/ui/requests">All requests</a>
      </div>
      ${lines.length ? recentTable(app, lines) : html`<p class="soft pad">No request has ended yet. <a href="/ui/playground">Ask something</a>.</p>`}
    </section>
  `;
}

function recentTable(app, lines) {
  return html`
    <div class="scroll" tabindex="0" role="group" aria-labelledby="recent-title">
      <table id="recent" role="table">
        <thead role="rowgroup">
          <tr role="row">
            <th role="columnheader">Begun</th>
            <th role="columnheader">Model</th>
            <th role="columnheader">Status</th>
            <th role="columnheader" class="number"><abbr title="Time to first token">TTFT</abbr></th>
            <th role="columnheader" class="number">Tokens</th>
            <th role="columnheader" class="number">Tokens/s</th>
            <th role="columnheader" class="number">Duration</th>
          </tr>
        </thead>
        <tbody role="rowgroup">
          ${repeat(lines, (line) => line.request_id, (line) => html`
            <tr role="row">
              <td role="cell" class="time">${requestLink(app, line, moment(line.ts))}</td>
              ${who(line.model ?? line.requested_model, line.role ? `role ${line.role}` : "")}
              <td role="cell" class="state">${statusBadge(line)}</td>
              ${figure("TTFT", millis(line.ttft_ms))}
              ${figure("tokens", count(line.completion_tokens))}
              ${figure("tokens/s", rate(line.tokens_per_second))}
              ${figure("took", millis(line.duration_ms))}
            </tr>`)}
        </tbody>
      </table>
    </div>
  `;
}

