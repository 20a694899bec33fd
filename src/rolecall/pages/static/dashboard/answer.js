// One answer of a chat as it comes: its text, its thoughts, the model that gave it, and how fast it was.

import { Refusal, send } from "../shared.js";

const PATH = "/v1/chat/completions";

export class Answer {
  /** @param {() => void} changed is called whenever there is more of it */
  constructor(changed) {
    this.changed = changed;
    Object.assign(this, { text: "", reasoning: "", model: null, problem: null, status: 0, code: "", state: "waiting for a model…" });
    Object.assign(this, { ttft: null, tokens: null, read: null, speed: null, isRunning: true, isStopped: false });
    this.leaving = new AbortController();
    this.began = performance.now();
    this.first = null;
    this.pieces = 0;
  }

  stop() {
    if (this.isRunning) {
      this.isStopped = true;
      this.leaving.abort();
    }
  }

  /** Ask, and read until the end; what goes wrong is kept in `problem`. @param {object} json */
  async run(json) {
    try {
      const answer = await send(PATH, { method: "POST", json, signal: this.leaving.signal });
      this.named(answer.headers.get("x-rolecall-model"));
      await this.follow(answer.body);
      this.state = "";
    } catch (error) {
      this.state = this.isStopped ? "stopped" : "";
      if (!this.isStopped) {
        this.problem = error instanceof Refusal ? error.message : "The connection broke off within the answer.";
        this.status = error.status ?? 0;
        this.code = error.code ?? "";
      }
    }
    this.isRunning = false;
    this.changed();
  }

  named(name) {
    if (name) {
      this.model = decoded(name);
    }
  }

  async follow(body) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) {
        return;
      }
      text += value;
      const lines = text.split("\n");
      text = lines.pop();
      for (const line of lines) {
        this.line(line.trimEnd());
      }
      this.changed();
    }
  }

  line(line) {
    const comment = /^: x-rolecall-model: (.*)$/.exec(line);
    if (comment) {
      this.named(comment[1]);
    } else if (line.startsWith("data: ") && line !== "data: [DONE]") {
      this.chunk(JSON.parse(line.slice(6)));
    }
  }

  chunk(chunk) {
    if (chunk.error) {
      throw new Refusal(chunk.error.message ?? "The engine broke off.", chunk.error.status ?? 0, chunk.error.code);
    }
    this.model ??= chunk.model ?? null;
    const delta = chunk.choices?.[0]?.delta ?? {};
    const thought = delta.reasoning_content ?? delta.reasoning ?? "";
    if (delta.content || thought) {
      this.piece();
      this.text += delta.content ?? "";
      this.reasoning += thought;
    }
    if (chunk.usage) {
      this.tokens = chunk.usage.completion_tokens ?? this.tokens;
      this.read = chunk.usage.prompt_tokens ?? null;
      this.paced();
    }
  }

  piece() {
    const now = performance.now();
    this.pieces += 1;
    this.tokens = this.pieces;
    if (this.first === null) {
      this.first = now;
      this.ttft = now - this.began;
      this.state = "";
    }
    this.last = now;
    this.paced();
  }

  paced() {
    const seconds = (this.last - this.first) / 1000;
    this.speed = this.tokens > 1 && seconds > 0.05 ? (this.tokens - 1) / seconds : null;
  }
}

function decoded(name) {
  try {
    return decodeURIComponent(name);
  } catch {
    return name;
  }
}
