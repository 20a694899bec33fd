// What a model's engine prints, as it prints it.

import { Refusal, at, events } from "../shared.js";
import { html, nothing, render } from "./lit.js";

const FIRST_LINES = 500;
const MOST_LINES = 5000;
const AGAIN_MS = 2000;
const HIDDEN_MS = 15_000; // as for the feed: a browser has six connections to a server, over all its tabs
const NEAR_PX = 24;

export class Output {
  constructor() {
    this.dialog = /** @type {HTMLDialogElement} */ (at("output"));
    this.model = null;
    this.isFollowing = true;
    this.isConnected = false;
    this.state = "";
    this.problem = null;
    this.leaving = new AbortController();
    this.dialog.addEventListener("close", () => this.left());
    document.addEventListener("visibilitychange", () => this.looked());
    addEventListener("pagehide", () => this.dialog.close());
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) {
        this.dialog.close();
      }
    });
  }

  open(model, opener) {
    Object.assign(this, { model, opener, isFollowing: true, problem: null, state: "connecting…" });
    this.draw();
    this.text = this.dialog.querySelector("pre");
    this.text.replaceChildren();
    this.dialog.showModal();
    this.begin();
  }

  begin() {
    Object.assign(this, { problem: null, isConnected: false });
    this.leaving = new AbortController();
    this.follow(this.model, this.leaving.signal);
  }

  /** A tab that nobody looks at lets go, and takes it up again when it is seen. */
  looked() {
    clearTimeout(this.hiding);
    if (this.dialog.open && document.hidden) {
      this.hiding = setTimeout(() => this.leaving.abort(), HIDDEN_MS);
    } else if (this.dialog.open && this.leaving.signal.aborted) {
      this.begin();
    }
  }

  left() {
    clearTimeout(this.hiding);
    this.leaving.abort();
    this.opener?.focus();
  }

  async follow(model, signal) {
    const path = `/v1/models/${encodeURIComponent(model)}/output?follow=1&lines=${FIRST_LINES}`;
    while (!signal.aborted) {
      try {
        for await (const event of events(path, { signal })) {
          this.take(event);
        }
      } catch (error) {
        if (signal.aborted) {
          return;
        }
        if (error instanceof Refusal && error.status >= 400 && error.status < 500) {
          this.problem = error.message;
          this.lost("");
          return;
        }
      }
      this.lost("The connection is lost; trying again…");
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    }
  }

  take(event) {
    const { scrollTop } = this.text;
    if (!this.isConnected) {
      this.isConnected = true;
      this.text.replaceChildren(); // what was there before the connection broke is told again, as far as it is kept
      this.lines = 0;
    }
    if (event.type === "restart") {
      this.append("— started anew —\n", "mark");
    }
    if (event.skipped) {
      this.append(`— ${event.skipped.toLocaleString("en")} lines left out —\n`, "mark");
    }
    if (event.lines?.length) {
      this.append(`${event.lines.join("\n")}\n`, "");
    }
    this.say(this.text.childElementCount ? "" : "It has printed nothing yet.");
    this.text.scrollTop = this.isFollowing ? this.text.scrollHeight : scrollTop;
  }

  append(text, kind) {
    const part = document.createElement("span");
    part.className = kind;
    part.textContent = text;
    part.dataset.lines = String(text.split("\n").length - 1);
    this.text.append(part);
    this.lines += Number(part.dataset.lines);
    while (this.lines > MOST_LINES && this.text.childElementCount > 1) {
      this.lines -= Number(this.text.firstElementChild.dataset.lines);
      this.text.firstElementChild.remove();
    }
  }

  lost(state) {
    this.isConnected = false;
    this.say(state);
  }

  say(state) {
    this.state = state;
    this.draw();
  }

  scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.text;
    const isAtEnd = scrollHeight - scrollTop - clientHeight < NEAR_PX;
    if (isAtEnd !== this.isFollowing) {
      this.isFollowing = isAtEnd;
      this.draw();
    }
  }

  end() {
    this.isFollowing = true;
    this.text.scrollTop = this.text.scrollHeight;
    this.text.focus({ preventScroll: true }); // the button is about to go, and the focus would with it
    this.draw();
  }

  draw() {
    render(
      html`
        <div class="sheet-head">
          <h2 id="output-title">Output of <bdi>${this.model}</bdi></h2>
          <div class="row">
            ${this.isFollowing
              ? html`<span class="soft" id="output-following">${this.isConnected ? "following" : ""}</span>`
              : html`<button type="button" class="small" id="output-follow" @click=${() => this.end()}>Follow</button>`}
            <button type="button" class="small" id="output-close" @click=${() => this.dialog.close()}>Close</button>
          </div>
        </div>
        ${this.problem ? html`<p class="note bad" role="alert">${this.problem}</p>` : nothing}
        ${this.state ? html`<p class="soft pad" role="status">${this.state}</p>` : nothing}
        <pre class="output" tabindex="0" role="log" aria-live="off" aria-labelledby="output-title" @scroll=${() => this.scrolled()}></pre>
      `,
      this.dialog,
    );
  }
}
