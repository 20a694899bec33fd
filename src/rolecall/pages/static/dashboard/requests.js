// Requests that are over: chosen by filters, which the address says; new ones come to the top by themselves.

import { ask } from "../shared.js";
import { html, live, nothing, repeat } from "./lit.js";
import { NONE, count, millis, moment, rate } from "./format.js";
import { figure, outcome, requestLink, statusBadge, who } from "./lines.js";

const PAGE = 50;
const MOST = 2000;
const WRITING_MS = 300;
const APART_MS = 5000; // reading the log costs the server more than all else that a page asks
const NAMES = ["model", "role", "status", "since", "key"];
const SINCE = [
  ["", "any time"],
  ["10m", "10 minutes"],
  ["1h", "1 hour"],
  ["24h", "24 hours"],
  ["7d", "7 days"],
];
const STATUS = [
  ["", "any"],
  ["ok", "answered"],
  ["error", "failed"],
  ["499", "client left"],
];
const UNIT_MS = { m: 60_000, h: 3_600_000, d: 86_400_000 };

export class Requests {
  /** @param {import("./start.js").App} app */
  constructor(app) {
    this.app = app;
    this.lines = [];
    this.next = null;
    this.asked = null; // the filters that the lines are of
    this.isStale = false; // whether lines are missing that the server has not told one by one
    this.reading = null;
    this.met = [];
    this.readAt = 0;
    this.note = "";
  }

  get isAsking() {
    return this.reading !== null;
  }

  get title() {
    return "Requests";
  }

  wanted() {
    const query = new URLSearchParams(location.search);
    return Object.fromEntries(NAMES.map((name) => [name, query.get(name) ?? ""]));
  }

  /** Show what the address says. */
  async show() {
    const wanted = JSON.stringify(this.wanted());
    if (this.asked !== wanted || this.isStale) {
      this.asked = wanted;
      this.isStale = false;
      await this.load(false);
    }
  }

  /** Lines are missing: read the list anew, but not again and again, and only while somebody looks at it. */
  renew() {
    this.isStale = this.asked !== null;
    if (!this.isStale || this.isAsking || this.renewing || this.app.view !== this) {
      return; // the reading that is under way, or `show`, sees to it
    }
    const due = Math.max(0, this.readAt + APART_MS - Date.now());
    this.renewing = setTimeout(() => {
      this.renewing = null;
      if (this.isStale && !this.isAsking && this.app.view === this) {
        this.app.guarded(() => this.show());
      }
    }, due);
  }

  async load(isMore) {
    const asked = this.asked;
    this.reading?.abort();
    const reading = (this.reading = new AbortController());
    this.met = []; // what ends meanwhile, which the answer may not have
    const query = new URLSearchParams(Object.entries(JSON.parse(asked)).filter(([, value]) => value));
    query.set("limit", String(PAGE));
    if (isMore && this.next) {
      query.set("before", this.next);
    }
    this.app.draw();
    try {
      const answer = await ask(`/v1/requests?${query}`, { signal: reading.signal });
      if (this.reading === reading) {
        this.take(answer, isMore);
      }
    } catch (error) {
      if (!isMore && this.reading === reading) {
        [this.lines, this.next] = [[], null];
      }
      throw error;
    } finally {
      if (this.reading === reading) {
        this.reading = null;
        this.readAt = Date.now();
        if (this.isStale) {
          this.renew();
        }
      }
      this.app.draw();
    }
  }

  take(answer, isMore) {
    const first = isMore ? this.lines : this.met;
    const known = new Set(first.map((line) => line.request_id));
    this.lines = [...first, ...answer.data.filter((line) => !known.has(line.request_id))];
    this.next = answer.next;
    this.searched = answer.searched_to;
    this.note = answer.skipped ? `${count(answer.skipped)} lines of the log cannot be read.` : "";
  }

  /** Put requests that just ended to the top. @param {{data: object[], skipped: number}} event */
  ended(event) {
    if (this.asked === null) {
      return;
    }
    if (event.skipped) {
      this.renew();
      return;
    }
    const wanted = JSON.parse(this.asked); // not what the address says: another view may be on it
    const known = new Set([...this.lines, ...(this.isAsking ? this.met : [])].map((line) => line.request_id));
    const found = event.data.filter((line) => matches(line, wanted) && !known.has(line.request_id)).toReversed();
    this.lines = [...found, ...this.lines].slice(0, MOST);
    if (this.isAsking) {
      this.met = [...found, ...this.met].slice(0, MOST);
    }
  }

  filter(name, value) {
    const query = new URLSearchParams(location.search);
    query.delete("request");
    if (value) {
      query.set(name, value);
    } else {
      query.delete(name);
    }
    const text = query.toString();
    this.app.go(`/ui/requests${text ? `?${text}` : ""}`, { replace: true });
  }

  written(name, value) {
    clearTimeout(this.writing);
    this.writing = setTimeout(() => this.filter(name, value.trim()), WRITING_MS);
  }

  template() {
    const wanted = this.wanted();
    const isFiltered = Object.values(wanted).some(Boolean);
    return html`
      <header class="head"><h1>Requests</h1><p class="soft">those that are over, newest first, from the request log</p></header>
      <section class="panel flush" aria-label="Requests">
        ${this.filters(wanted, isFiltered)}
        ${this.note ? html`<p class="soft pad">${this.note}</p>` : nothing}
        ${this.lines.length ? this.table() : this.empty(isFiltered)}
        <div class="row centre pad">
          ${this.next ? html`<button type="button" id="older" ?disabled=${this.isAsking} @click=${() => this.app.guarded(() => this.load(true))}>Older requests</button>` : nothing}
        </div>
      </section>
    `;
  }

  filters(wanted, isFiltered) {
    const models = this.app.store.models.map((row) => row.model);
    return html`
      <form class="filters" id="filters" role="search" aria-label="Filter requests" @submit=${(event) => event.preventDefault()}>
        ${this.choice("model", "Model", [["", "any"], ...models.map((name) => [name, name])], wanted)}
        ${this.choice("role", "Role", [["", "any"], ...this.app.store.roles().map((name) => [name, name])], wanted)}
        ${this.choice("status", "Status", STATUS, wanted)} ${this.choice("since", "Within", SINCE, wanted)}
        <div class="field">
          <label for="filter-key">Key</label>
          <input type="text" id="filter-key" autocomplete="off" spellcheck="false" placeholder="any" .value=${live(wanted.key)}
            @input=${(event) => this.written("key", event.target.value)}>
        </div>
        ${isFiltered ? html`<button type="button" class="quiet" id="clear" @click=${() => this.app.go("/ui/requests")}>Clear</button>` : nothing}
      </form>
    `;
  }

  choice(name, words, offered, wanted) {
    const value = wanted[name];
    const all = offered.some(([each]) => each === value) ? offered : [...offered, [value, value]];
    return html`
      <div class="field">
        <label for=${`filter-${name}`}>${words}</label>
        <select id=${`filter-${name}`} @change=${(event) => this.filter(name, event.target.value)}>
          ${repeat(all, ([each]) => each, ([each, text]) => html`<option value=${each} .selected=${each === value}>${text}</option>`)}
        </select>
      </div>
    `;
  }

  empty(isFiltered) {
    if (this.isAsking || this.asked === null) {
      return html`<p class="soft pad">Reading the log…</p>`;
    }
    const words = isFiltered ? "No request is like that." : "No request has ended yet.";
    const searched = this.next ? ` Read back to ${moment(this.searched)}; there is more.` : "";
    return html`<p class="soft pad" id="none">${words}${searched}</p>`;
  }

  table() {
    return html`
      <div class="scroll" tabindex="0" role="group" aria-label="Table of requests">
        <table id="history" role="table">
          <thead role="rowgroup">
            <tr role="row">
              <th role="columnheader">Time</th>
              <th role="columnheader">Model</th>
              <th role="columnheader">Status</th>
              <th role="columnheader" class="narrow-off">Key</th>
              <th role="columnheader" class="number"><abbr title="Waited for the model, loading included">Waited</abbr></th>
              <th role="columnheader" class="number"><abbr title="Time to first token">TTFT</abbr></th>
              <th role="columnheader" class="number"><abbr title="Tokens of the prompt and of the answer">Tokens</abbr></th>
              <th role="columnheader" class="number">Tokens/s</th>
              <th role="columnheader" class="number">Duration</th>
            </tr>
          </thead>
          <tbody role="rowgroup">
            ${repeat(this.lines, (line) => line.request_id, (line) => this.row(line))}
          </tbody>
        </table>
      </div>
    `;
  }

  row(line) {
    const waited = line.queue_ms === null && line.load_ms === null ? null : (line.queue_ms ?? 0) + (line.load_ms ?? 0);
    return html`
      <tr role="row" data-request=${line.request_id}>
        <td role="cell" class="time">${requestLink(this.app, line, moment(line.ts))}</td>
        ${who(line.model ?? line.requested_model, line.role ? `role ${line.role}` : "")}
        <td role="cell" class="state">${statusBadge(line)}</td>
        <td role="cell" class="narrow-off"><bdi class="cut">${line.key ?? NONE}</bdi></td>
        ${figure("waited", millis(waited))}
        ${figure("TTFT", millis(line.ttft_ms))}
        <td role="cell" class="number" data-label="tokens">${count(line.prompt_tokens)} → ${count(line.completion_tokens)}</td>
        ${figure("tokens/s", rate(line.tokens_per_second))}
        ${figure("took", millis(line.duration_ms))}
      </tr>
    `;
  }
}

/** Whether a line that just ended is one of those that are shown, by the server's own rules. */
function matches(line, { model, role, status, since, key }) {
  const isOk = outcome(line) === "good";
  const statusFits = !status || (status === "ok" ? isOk : status === "error" ? outcome(line) !== "good" : String(line.status) === status);
  const [, amount, unit] = /^(\d+)([mhd])$/.exec(since) ?? [];
  const isRecent = !since || !amount || Date.parse(line.ts) > Date.now() - amount * UNIT_MS[unit];
  return (
    (!model || line.model === model || line.requested_model === model) &&
    (!role || line.role === role) &&
    (!key || line.key === key) &&
    statusFits &&
    isRecent
  );
}
