// One request in full: what became of it, why this model was chosen, and all that the log says.

import { ask, at } from "../shared.js";
import { html, nothing, render } from "./lit.js";
import { count, millis, moment, rate, span } from "./format.js";
import { outcome, statusBadge } from "./lines.js";

const APART_MS = 5000; // the whole log may be searched
const OWN = new Set(["prompt", "response", "ts", "request_id", "error"]); // what has a place of its own

export class Sheet {
  /** @param {import("./start.js").App} app */
  constructor(app) {
    this.app = app;
    this.dialog = /** @type {HTMLDialogElement} */ (at("request"));
    this.id = null;
    this.answer = null;
    this.problem = null;
    this.isUnknown = false;
    this.readAt = -Infinity;
    this.dialog.addEventListener("close", () => this.left());
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) {
        this.dialog.close(); // beside it
      }
    });
  }

  /** A click on a link to a request; with a key held down the browser does as it is used to. */
  follow(event, id) {
    if (event.metaKey || event.ctrlKey || event.shiftKey || event.button) {
      return;
    }
    event.preventDefault();
    this.opener = event.currentTarget;
    if (location.pathname === "/ui/requests") {
      history.pushState(null, "", event.currentTarget.href);
    }
    this.open(id);
  }

  /** Show what the address says: a request, or none. */
  show() {
    const id = location.pathname === "/ui/requests" ? new URLSearchParams(location.search).get("request") : null;
    if (id && id !== this.id) {
      this.open(id);
    } else if (!id && this.dialog.open) {
      this.dialog.close();
    }
  }

  async open(id) {
    [this.id, this.answer, this.problem, this.isUnknown] = [id, null, null, false];
    this.draw();
    if (!this.dialog.open) {
      this.dialog.showModal();
    }
    await this.read(id);
  }

  async read(id) {
    let told;
    this.readAt = performance.now();
    try {
      told = { answer: await ask(`/v1/requests/${encodeURIComponent(id)}`), problem: null };
    } catch (error) {
      told = { problem: error.message, isUnknown: error.status === 404 };
    }
    if (this.id === id && !this.isOver) {
      Object.assign(this, told);
      this.draw();
    }
  }

  get isOver() {
    return this.answer?.state === "finished";
  }

  /** Where the request that is shown may be among those that have just ended, ask again. A snapshot does not tell which. */
  ended(event) {
    if (!this.id || this.isOver) {
      return;
    }
    if (event.data?.some((line) => line.request_id === this.id)) {
      this.read(this.id);
    } else if (event.skipped !== 0 && !this.isUnknown) {
      this.again ??= setTimeout(() => this.readAgain(), this.readAt + APART_MS - performance.now());
    }
  }

  readAgain() {
    this.again = null;
    if (this.id && !this.isOver) {
      this.read(this.id);
    }
  }

  left() {
    this.id = null;
    const query = new URLSearchParams(location.search);
    if (query.has("request")) {
      query.delete("request");
      const text = query.toString();
      history.pushState(null, "", `/ui/requests${text ? `?${text}` : ""}`);
    }
    this.opener?.focus();
  }

  draw() {
    render(this.template(), this.dialog);
  }

  template() {
    return html`
      <div class="sheet-head">
        <h2 id="request-title">Request <code>${this.id}</code></h2>
        <button type="button" class="small" id="request-close" @click=${() => this.dialog.close()}>Close</button>
      </div>
      <div class="sheet-body" tabindex="0" role="region" aria-labelledby="request-title">
        ${this.problem ? html`<p class="note bad" role="alert">${this.problem}</p>` : nothing}
        ${this.answer ? this.body(this.answer) : this.problem ? nothing : html`<p class="soft">Looking it up…</p>`}
      </div>
    `;
  }

  body({ line, decision, state }) {
    return html`
      <p>${summary(line, state)}</p>
      ${line.error ? html`<p class=${`note ${outcome(line) === "bad" ? "bad" : "plain"}`}>${line.error}</p>` : nothing}
      ${decision ? choice(decision, line) : nothing} ${times(line)} ${texts(line)}
      <h3>All of its line</h3>
      <dl class="facts">
        ${Object.entries(line).filter(([name]) => !OWN.has(name)).map(([name, value]) => html`<div>
          <dt>${name}</dt><dd><bdi>${value === null ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value)}</bdi></dd></div>`)}
      </dl>
    `;
  }
}

function summary(line, state) {
  const name = line.model ?? line.requested_model ?? "no model";
  const isOver = state === "finished";
  const parts = [
    line.completion_tokens === null ? "" : `${count(line.completion_tokens)} tokens`,
    line.tokens_per_second === null ? "" : `${rate(line.tokens_per_second)} tokens/s`,
    line.ttft_ms === null ? "" : `first token after ${millis(line.ttft_ms)}`,
    line.duration_ms === null ? "" : `${millis(line.duration_ms)} in all`,
  ].filter(Boolean);
  return html`${isOver ? statusBadge(line) : ""} <b><bdi>${name}</bdi></b>${isOver ? "" : ` is ${state}`} <span class="soft">${moment(line.ts)}${
    parts.length ? ` · ${parts.join(" · ")}` : ""}</span>`;
}

/** Why this model, in words; and the others, where they are still known. */
function choice({ words, role, candidates, rejected }, line) {
  return html`
    <h3>Why this model</h3>
    <p class="decision" id="decision"><b><bdi>${line.model ?? "None"}</bdi></b> for the role <bdi>${role}</bdi>: ${words ?? "the log does not say why"}</p>
    ${candidates?.length || rejected?.length
      ? html`
          <table class="small-table" role="table">
            <caption class="soft">Models for the role <bdi>${role}</bdi>, the best first</caption>
            <thead role="rowgroup"><tr role="row"><th role="columnheader">Model</th><th role="columnheader" class="number">Priority</th><th role="columnheader">At the time</th></tr></thead>
            <tbody role="rowgroup">
              ${(candidates ?? []).map((each) => html`<tr role="row"><td role="cell"><bdi>${each.model}</bdi></td>
                <td role="cell" class="number" data-label="priority">${each.priority ?? "–"}</td><td role="cell" class="soft">${standing(each)}</td></tr>`)}
              ${(rejected ?? []).map((each) => html`<tr role="row"><td role="cell"><bdi>${each.model}</bdi></td>
                <td role="cell" class="number" data-label="priority">–</td><td role="cell" class="soft">left out: ${each.reason ?? each.why}</td></tr>`)}
            </tbody>
          </table>`
      : nothing}
  `;
}

function standing({ loaded, costs_swap: swaps, swap_s: seconds }) {
  if (loaded) {
    return "was loaded";
  }
  return swaps ? `would need a swap${seconds === null ? "" : ` of ${span(seconds)}`}` : "would be loaded beside the others";
}

/** The time from arrival to the end, as one bar. */
function times(line) {
  const total = line.duration_ms;
  if (!total) {
    return nothing;
  }
  const [queue, load] = [line.queue_ms ?? 0, line.load_ms ?? 0];
  const first = line.ttft_ms === null ? null : Math.max(0, line.ttft_ms - queue - load);
  const rest = Math.max(0, total - queue - load - (first ?? 0));
  const last = { good: "answer", gone: "until the client left", bad: "until it failed" }[outcome(line)];
  const parts = [
    ["waiting", "waited", queue],
    ["loading", "model loaded", load],
    ["reading", "until the first token", first],
    // Without a model all of it was waiting: how much of that was loading is not in the log.
    [line.model === null ? "waiting" : "writing", first === null ? last : "from the first token to the last", rest],
  ].filter(([, , ms]) => ms);
  return html`
    <h3>Where the time went</h3>
    <div class="stack thin" aria-hidden="true">${parts.map(([kind, , ms]) => html`<i class=${`part-${kind}`} .style=${`inline-size:${(100 * ms) / total}%`}></i>`)}</div>
    <ul class="legend">${parts.map(([kind, words, ms]) => html`<li><i class=${`swatch part-${kind}`} aria-hidden="true"></i><span>${words}</span> <span class="amount">${millis(ms)}</span></li>`)}</ul>
  `;
}

function texts(line) {
  if (line.prompt === undefined && line.response === undefined) {
    return nothing;
  }
  const prompt = typeof line.prompt === "string" ? line.prompt : JSON.stringify(line.prompt, null, 2);
  return html`
    <h3>Prompt and answer</h3>
    ${line.prompt === undefined ? nothing : html`<pre class="text" tabindex="0">${prompt}</pre>`}
    ${line.response === undefined ? nothing : html`<pre class="text" tabindex="0">${line.response}</pre>`}
  `;
}
