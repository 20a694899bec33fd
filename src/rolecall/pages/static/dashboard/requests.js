// Requests that are over: chosen by filters, which the address says; new ones come to the top by themselves.

import { ask } from "../shared.js";
import { html, live, nothing, repeat } from "./lit.js";
import { NONE, count, millis, moment, rate } from "./format.js";
import { figure, requestLink, statusBadge, who } from "./lines.js";
import { isWanted } from "./wanted.js";

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
const [ANEW, RENEWED, OLDER] = ["anew", "renewed", "older"]; // what a reading of the log is for

export class Requests {
  /** @param {import("./start.js").App} app */
  constructor(app) {
    this.app = app;
    this.lines = [];
    this.next = null;
    this.asked = null; // the filters that the lines are of
    this.isStale = false; // whether lines are missing at the top, which the server has not told one by one
    this.most = MOST;
    this.isCut = false; // whether the oldest were let go of
    this.reading = null;
    this.met = []; // what ended while the first page was read, which may not have it
    this.readAt = 0;
    this.isUnread = false; // whether the last reading failed
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
    if (this.asked !== wanted) {
      this.asked = wanted;
      await this.load(ANEW);
    } else if (this.isStale) {
      await this.load(RENEWED);
    }
  }

  /** Lines are missing: read the first page again, but not again and again, and only while somebody looks at it. */
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

  async load(aim) {
    this.reading?.abort();
    const reading = (this.reading = new AbortController());
    reading.aim = aim;
    this.met = [];
    const query = new URLSearchParams(Object.entries(JSON.parse(this.asked)).filter(([, value]) => value));
    query.set("limit", String(PAGE));
    if (aim === OLDER) {
      query.set("before", this.next);
    } else {
      this.isStale = false;
    }
    this.app.draw();
    try {
      const answer = await ask(`/v1/requests?${query}`, { signal: reading.signal });
      if (this.reading === reading) {
        this.read();
        this.take(answer, aim);
        if (this.isStale) {
          this.renew();
        }
      }
    } catch (error) {
      if (this.reading === reading) {
        this.read();
        this.failed(aim);
      }
      throw error;
    } finally {
      this.app.draw();
    }
  }

  read() {
    this.reading = null;
    this.isUnread = false;
    this.readAt = Date.now();
  }

  failed(aim) {
    this.isUnread = true;
    this.isStale ||= aim !== OLDER; // the next snapshot, or the way back to this view, has it tried again
    if (aim === ANEW) {
      [this.lines, this.next] = [[], null];
    }
  }

  /** Put a page of the log where it belongs. What is there already stays, unless lines may be missing between the two. */
  take({ data, next, searched_to: searched, skipped }, aim) {
    const has = new Set(data.map((line) => line.request_id));
    const isOther = (line) => !has.has(line.request_id);
    const place = this.lines.findIndex((line) => has.has(line.request_id));
    this.note = skipped ? `${count(skipped)} lines of the log cannot be read.` : "";
    if (aim === RENEWED && place >= 0) {
      const [above, below] = [this.lines.slice(0, place), this.lines.slice(place).filter(isOther)];
      this.put([...this.met.filter(isOther), ...above, ...data, ...below]);
      return;
    }
    const before = (aim === OLDER ? this.lines : this.met).filter(isOther);
    Object.assign(this, { lines: [...before, ...data], next, searched, isCut: false });
    this.most = Math.max(MOST, this.lines.length);
  }

  put(lines) {
    this.isCut ||= lines.length > this.most;
    this.lines = lines.slice(0, this.most);
  }

  /** Put requests that just ended to the top. @param {{data: object[], skipped: number}} event */
  ended(event) {
    if (this.asked === null || this.isStale) {
      return;
    }
    if (event.skipped) {
      this.renew();
      return;
    }
    const wanted = JSON.parse(this.asked); // not what the address says: another view may be on it
    const now = this.app.store.now();
    const isFirst = this.isAsking && this.reading.aim !== OLDER; // what is there is about to be replaced
    const known = new Set((isFirst ? this.met : this.lines).map((line) => line.request_id));
    const found = event.data.filter((line) => isWanted(line, wanted, now) && !known.has(line.request_id)).toReversed();
    if (isFirst) {
      this.met = [...found, ...this.met];
    } else {
      this.put([...found, ...this.lines]);
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
    this.writing = setTimeout(() => this.app.view === this && this.filter(name, value.trim()), WRITING_MS);
  }

  clear() {
    clearTimeout(this.writing);
    this.app.go("/ui/requests");
  }

  template() {
    const wanted = this.wanted();
    const isFiltered = Object.values(wanted).some(Boolean);
    return html`
      <header class="head"><h1>Requests</h1><p class="soft">those that are over, the last to end first, from the request log</p></header>
      <section class="panel flush" aria-label="Requests">
        ${this.filters(wanted, isFiltered)}
        ${this.note ? html`<p class="soft pad">${this.note}</p>` : nothing}
        ${this.lines.length ? this.table() : this.empty(isFiltered)}
        <div class="row centre pad">
          ${this.isCut
            ? html`<p class="soft">The newest ${count(this.most)} are here; reload the page to read on from these.</p>`
            : this.next
              ? html`<button type="button" id="older" ?disabled=${this.isAsking} @click=${() => this.app.guarded(() => this.load(OLDER))}>Older requests</button>`
              : nothing}
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
        ${isFiltered ? html`<button type="button" class="quiet" id="clear" @click=${() => this.clear()}>Clear</button>` : nothing}
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
    if (this.isUnread) {
      return nothing; // it has been said what is wrong
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
              <th role="columnheader">Begun</th>
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
