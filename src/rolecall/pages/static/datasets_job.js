// The tagging of a dataset: started, watched over server-sent events, cancelled.

import { Refusal, ask, at, events, plural, say } from "./shared.js";

const AGAIN_MS = 2000;
const REFRESH_MS = 1500;
const LEAST_SECONDS = 3;
const LEAST_DONE = 5;
const SPOKEN_PARTS = 4; // a screen reader hears every quarter

export class Job {
  /** `progressed` is told now and then, and at the end; `failed` of errors. */
  constructor(progressed, failed) {
    this.progressed = progressed;
    this.failed = failed;
    this.watching = null;
    this.isRunning = false;
    this.id = null;
    this.began = null; // when it was first seen, and how far it was
    addEventListener("pagehide", () => this.watching?.abort()); // else a page kept for the way back keeps its connection
    addEventListener("pageshow", (event) => event.persisted && this.isRunning && location.reload());
  }

  async start(id, wish) {
    at("tag").disabled = true;
    try {
      await ask(`/datasets/${id}/auto-tag`, { method: "POST", json: wish });
    } catch (error) {
      if (!(error instanceof Refusal && error.code === "job_running")) {
        at("tag").disabled = false;
        throw error;
      }
    }
    at("spoken").textContent = "Tagging has begun.";
    this.watch(id, { status: "running", processed: 0, total: 0, message: "Tagging..." });
  }

  async cancel() {
    at("cancel").disabled = true;
    try {
      await ask(`/datasets/${this.id}/auto-tag`, { method: "DELETE" });
    } finally {
      at("cancel").disabled = false;
    }
  }

  /** Show how far a dataset's job is, and follow it if it runs. */
  watch(id, progress) {
    this.leave();
    this.id = id;
    this.began = null;
    this.draw(progress);
    if (progress.status === "running") {
      this.watching = new AbortController();
      this.follow(id, this.watching.signal).catch((error) => this.failed(error));
    }
  }

  /** Watch no more; the job itself goes on. */
  leave() {
    this.watching?.abort();
    this.watching = null;
    this.isRunning = false;
  }

  async follow(id, signal) {
    let spoken = 0;
    let refreshed = performance.now();
    while (!signal.aborted) {
      try {
        for await (const progress of events(`/datasets/${id}/auto-tag/progress`, { signal })) {
          if (signal.aborted) {
            return;
          }
          this.draw(progress);
          if (progress.status !== "running") {
            this.watching = null;
            at("spoken").textContent = progress.message;
            await this.progressed(progress);
            return;
          }
          const part = Math.floor((SPOKEN_PARTS * progress.processed) / Math.max(1, progress.total));
          if (part > spoken) {
            spoken = part;
            at("spoken").textContent = `Tagging: ${progress.processed} of ${progress.total}.`;
          }
          if (performance.now() - refreshed > REFRESH_MS) {
            refreshed = performance.now();
            await this.progressed(progress);
          }
        }
      } catch (error) {
        if (signal.aborted) {
          return;
        }
        if (error instanceof Refusal && error.status !== 0) {
          throw error;
        }
      }
      at("job-words").textContent = "The connection is lost; trying again...";
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    }
  }

  /** What is left of the time, in words, once it can be told by what was seen so far. */
  left(processed, total) {
    const now = performance.now();
    this.began ??= { now, processed };
    const [seconds, done] = [(now - this.began.now) / 1000, processed - this.began.processed];
    if (seconds < LEAST_SECONDS || done < LEAST_DONE) {
      return "";
    }
    const left = ((total - processed) * seconds) / done;
    if (left < 60) {
      return " · less than a minute left";
    }
    return ` · about ${left < 5400 ? plural(Math.round(left / 60), "minute") : plural(Math.round(left / 3600), "hour")} left`;
  }

  draw({ status, processed, total, message }) {
    this.isRunning = status === "running";
    const [bar, words, button] = [at("bar"), at("job-words"), at("tag")];
    at("job").hidden = status === "idle" && !total;
    at("cancel").hidden = !this.isRunning;
    button.textContent = this.isRunning ? `Tagging... ${total ? `${processed}/${total}` : ""}` : "Auto-tag";
    button.disabled = this.isRunning || button.dataset.empty === "true";
    bar.hidden = !this.isRunning;
    if (total) {
      bar.max = total;
      bar.value = processed;
    } else {
      bar.removeAttribute("value");
    }
    if (this.isRunning) {
      words.className = "soft";
      const more = message.replace(/^Tagging\.\.\.( \d+\/\d+)?/, ""); // such as what is waited for
      const count = `${processed} of ${plural(total, "picture")}`;
      words.textContent = total ? `${count}${more}${this.left(processed, total)}` : message;
    } else {
      say(words, message, { complete: "good", error: "bad" }[status] ?? "plain");
    }
  }
}
