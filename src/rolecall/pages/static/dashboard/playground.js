// A chat with a model or a role: streamed, with pictures, and with the figures of each answer.

import { Refusal, ask, at, say } from "../shared.js";
import { html, live, nothing, repeat } from "./lit.js";
import { count, millis, rate } from "./format.js";
import { Answer } from "./answer.js";
import { Pictures } from "./pictures.js";

const STORED = "rolecall.playground";
const NEAR_PX = 80;

export class Playground {
  /** @param {import("./start.js").App} app */
  constructor(app) {
    this.app = app;
    this.offered = null; // names of models, where the feed does not tell them
    this.turns = [];
    this.answer = null;
    this.pictures = new Pictures(app);
    this.wish = { target: "", system: "", temperature: "", most: "", ...stored() };
    this.text = "";
    // One that misses the conversation by a little would have the browser leave the page for the picture.
    addEventListener("dragover", (event) => app.view === this && this.pictures.over(event));
    addEventListener("drop", (event) => app.view === this && this.pictures.dropped(event));
    addEventListener("pagehide", () => this.answer?.stop());
  }

  get title() {
    return "Playground";
  }

  async show() {
    const chosen = new URLSearchParams(location.search).get("model");
    if (chosen) {
      this.wish.target = chosen;
    }
    if (!this.app.store.isKnown && this.offered === null) {
      const answer = await ask("/v1/models");
      this.offered = answer.data;
      this.app.draw();
    }
    requestAnimationFrame(() => this.app.view === this && at("words")?.focus({ preventScroll: true })); // once it is shown
  }

  /** Return names of roles and of models that can be asked. */
  targets() {
    const { store } = this.app;
    if (store.isKnown) {
      return { roles: store.roles(), models: store.models.map((row) => row.model) };
    }
    const rows = this.offered ?? [];
    const roles = [...new Set(rows.flatMap((row) => Object.keys(row.role_priority ?? row.roles ?? {})))].sort();
    return { roles, models: rows.map((row) => row.id) };
  }

  target() {
    const { roles, models } = this.targets();
    const all = [...roles.map((role) => `role:${role}`), ...models];
    const usual = roles.includes("chat") ? "role:chat" : all[0] ?? "";
    return all.includes(this.wish.target) ? this.wish.target : usual;
  }

  set(change) {
    Object.assign(this.wish, change);
    sessionStorage.setItem(STORED, JSON.stringify(this.wish));
    this.app.draw();
  }

  // -- asking

  async send() {
    const text = this.text.trim();
    if (this.answer?.isRunning || (!text && !this.pictures.list.length)) {
      return;
    }
    say(at("problem"), null);
    const pictures = this.pictures.take();
    this.turns.push({ role: "user", text, pictures });
    this.text = "";
    await this.reply();
  }

  async reply() {
    const answer = (this.answer = new Answer(() => this.drawAtEnd()));
    this.turns.push({ role: "assistant", answer });
    this.drawAtEnd(true);
    const history = this.history();
    await answer.run(this.body(history));
    const [question, ...before] = history.toReversed();
    if (answer.code === "unsupported_input" && !hasPictures(question) && before.some(hasPictures)) {
      answer.problem += " A picture of this conversation goes with each question: begin a new one for a model that sees none.";
    }
    this.drawAtEnd();
    this.app.speak(answer.problem ? `No answer: ${answer.problem}` : answer.isStopped ? "The answer is stopped." : "The answer is complete.");
    if (answer.status === 401) {
      this.app.failed(new Refusal(answer.problem, 401));
    }
  }

  body(history) {
    const { system, temperature, most } = this.wish;
    const messages = history.map(message);
    return {
      model: this.target(),
      messages: system.trim() ? [{ role: "system", content: system }, ...messages] : messages,
      stream: true,
      stream_options: { include_usage: true },
      ...(temperature === "" ? {} : { temperature: Number(temperature) }),
      ...(most === "" ? {} : { max_tokens: Number(most) }),
    };
  }

  /**
   * Return the turns that go with the question that was just put, which is the last of them. One without an answer does
   * not: what was refused would be refused again, and models want the turns of both to alternate.
   */
  history() {
    return this.turns.slice(0, -1).filter((turn, place) => {
      const { answer } = turn.role === "user" ? this.turns[place + 1] : turn;
      return answer.text || answer.isRunning;
    });
  }

  /** Draw, and stay at the end of the page if that is what was looked at. */
  drawAtEnd(isWanted = false) {
    const { scrollHeight } = document.documentElement;
    const isAtEnd = isWanted || innerHeight + scrollY > scrollHeight - NEAR_PX;
    this.app.draw();
    if (isAtEnd && this.app.view === this) {
      requestAnimationFrame(() => scrollTo(0, document.documentElement.scrollHeight));
    }
  }

  clear() {
    this.answer?.stop();
    this.turns = [];
    this.answer = null;
    this.app.draw();
    at("words").focus();
  }

  // -- drawing

  template() {
    const isRunning = Boolean(this.answer?.isRunning);
    return html`
      <header class="head"><h1>Playground</h1><p class="soft">asks the server as any client does${this.kept()}</p></header>
      <div class="play">
        ${this.settings()}
        <section class="panel talk" aria-label="Conversation">
          ${this.turns.length
            ? html`<ol id="turns" class="turns" aria-label="Turns">${repeat(this.turns, (turn) => turn, turnItem)}</ol>`
            : html`<div class="void inside"><h2>Ask something</h2><p>Pictures can be dropped here, pasted, or chosen from files.</p></div>`}
          ${this.composer(isRunning)}
        </section>
      </div>
    `;
  }

  kept() {
    const { isKnown, server } = this.app.store;
    const words = server.log_prompts ? "; prompts and answers are kept in the request log" : "; nothing is kept";
    return isKnown ? words : ""; // a key without the scope admin is not told
  }

  settings() {
    const { roles, models } = this.targets();
    const target = this.target();
    return html`
      <form class="panel fields ask" aria-label="Settings" @submit=${(event) => event.preventDefault()}>
        <div class="field">
          <label for="target">Role or model</label>
          <select id="target" @change=${(event) => this.set({ target: event.target.value })}>
            ${roles.length ? html`<optgroup label="Roles">${repeat(roles, (each) => each, (each) => option(`role:${each}`, each, target))}</optgroup>` : nothing}
            <optgroup label="Models">${repeat(models, (each) => each, (each) => option(each, each, target))}</optgroup>
          </select>
        </div>
        <details class="more" ?open=${Boolean(this.wish.system || this.wish.temperature || this.wish.most)}>
          <summary>More settings</summary>
          <div class="fields">
            <div class="field">
              <label for="system">System message</label>
              <textarea id="system" rows="3" .value=${live(this.wish.system)} @input=${(event) => this.set({ system: event.target.value })}></textarea>
            </div>
            <div class="field">
              <label for="temperature">Temperature</label>
              <input type="number" id="temperature" min="0" max="2" step="0.1" placeholder="the model's" .value=${live(this.wish.temperature)}
                @input=${(event) => this.set({ temperature: event.target.value })}>
            </div>
            <div class="field">
              <label for="most">Most tokens of an answer</label>
              <input type="number" id="most" min="1" step="1" placeholder="no limit" .value=${live(this.wish.most)}
                @input=${(event) => this.set({ most: event.target.value })}>
            </div>
          </div>
        </details>
        <button type="button" id="new" ?disabled=${!this.turns.length} @click=${() => this.clear()}>New conversation</button>
      </form>
    `;
  }

  composer(isRunning) {
    return html`
      <form class="composer" @submit=${(event) => {
        event.preventDefault();
        this.send();
      }}>
        ${this.pictures.template()}
        <label for="words" class="unseen">Message</label>
        <textarea id="words" rows="2" placeholder="Message" .value=${live(this.text)} @input=${(event) => (this.text = event.target.value)}
          @keydown=${(event) => this.pressed(event)} @paste=${(event) => this.pictures.pasted(event)}></textarea>
        <div class="row">
          <label class="button small" for="files">Add pictures</label>
          <input type="file" id="files" class="unseen" accept="image/*" multiple @change=${(event) => this.pictures.chosen(event)}>
          <span class="grow soft hint">Enter sends, Shift+Enter begins a line</span>
          ${this.button(isRunning)}
        </div>
      </form>
    `;
  }

  /** One button, which keeps the focus. */
  button(isRunning) {
    return html`<button id=${isRunning ? "stop" : "send"} type=${isRunning ? "button" : "submit"} class=${isRunning ? "" : "first"}
      @click=${() => isRunning && this.answer.stop()}>${isRunning ? "Stop" : "Send"}</button>`;
  }

  pressed(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      this.send();
    }
  }
}

const option = (value, text, target) => html`<option value=${value} .selected=${value === target}>${text}</option>`;

function stored() {
  try {
    return JSON.parse(sessionStorage.getItem(STORED) ?? "{}");
  } catch {
    return {};
  }
}

const hasPictures = (turn) => Boolean(turn.pictures?.length);

function message({ role, text, pictures, answer }) {
  if (role === "assistant") {
    return { role, content: answer.text };
  }
  if (!pictures.length) {
    return { role, content: text };
  }
  const images = pictures.map((each) => ({ type: "image_url", image_url: { url: each.data } }));
  return { role, content: [...images, ...(text ? [{ type: "text", text }] : [])] };
}

function turnItem(turn) {
  return turn.role === "user"
    ? html`<li class="turn user"><h2 class="unseen">You</h2>
        ${turn.pictures.length ? html`<p class="thumbs">${turn.pictures.map((each) => html`<img src=${each.address} alt=${each.name}>`)}</p>` : nothing}
        <p class="text">${turn.text}</p></li>`
    : html`<li class="turn assistant">${answerParts(turn.answer)}</li>`;
}

function answerParts(answer) {
  return html`
    <h2 class="from"><bdi>${answer.model ?? (answer.isRunning ? "…" : "no answer")}</bdi></h2>
    ${answer.reasoning
      ? html`<details class="thoughts"><summary>${answer.text || !answer.isRunning ? "Thoughts" : "Thinking…"}</summary><p class="text soft">${answer.reasoning}</p></details>`
      : nothing}
    <p class="text" aria-busy=${String(answer.isRunning)}>${answer.text}${answer.isRunning ? html`<span class="cursor" aria-hidden="true"></span>` : nothing}</p>
    ${answer.problem ? html`<p class="note bad" role="alert">${answer.problem}</p>` : nothing}
    <p class="soft figures-line">${figures(answer)}</p>
  `;
}

function figures(answer) {
  const parts = [
    answer.state,
    answer.ttft === null ? "" : `first token after ${millis(answer.ttft)}`,
    answer.tokens === null ? "" : `${count(answer.tokens)} tokens`,
    answer.speed === null ? "" : `${rate(answer.speed)} tokens/s`,
    answer.read === null ? "" : `${count(answer.read)} tokens read`,
  ];
  return parts.filter(Boolean).join(" · ");
}
