// The stream of events of the server: read, and taken up again when it breaks.

import { Refusal, events } from "../shared.js";

const PATH = "/v1/events";
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 15_000;
const FINAL = [401, 403]; // another key is needed: waiting does not help
const SILENCE_MS = 40_000; // the server says something every 15 s
// For so long a tab that nobody sees stays connected: a browser has six connections to a server, over all its tabs.
const HIDDEN_MS = 15_000;

/** @typedef {{state: "connecting"|"live"|"paused"|"lost"|"refused", again?: number, error?: Refusal}} Link */

export class Feed {
  /**
   * @param {(event: object) => void} take is given each event
   * @param {(link: Link) => void} told is given what becomes of the connection; `again` is when it is tried next (ms)
   */
  constructor(take, told) {
    this.take = take;
    this.told = told;
    this.hurry = () => {};
    this.leaving = new AbortController();
    document.addEventListener("visibilitychange", () => this.looked());
    // A page that a browser keeps for the way back would keep its connection too.
    addEventListener("pagehide", () => this.leaving.abort());
    addEventListener("pageshow", (event) => event.persisted && this.hurry());
  }

  /** Connect, and return once the first event is there or none will come; throws `Refusal` for want of a key. */
  open() {
    return new Promise((resolve, reject) => {
      this.run(resolve).catch((error) => (error.status === 401 ? reject(error) : resolve()));
    });
  }

  /** Try again now. */
  again() {
    this.hurry();
  }

  looked() {
    clearTimeout(this.hiding);
    if (document.hidden) {
      this.hiding = setTimeout(() => this.leaving.abort(), HIDDEN_MS);
    } else {
      this.hurry();
    }
  }

  async run(first) {
    let wait = FIRST_WAIT_MS;
    this.told({ state: "connecting" });
    for (;;) {
      let said; // what the server has against it, as that too many watch already
      try {
        for await (const event of this.listen()) {
          wait = FIRST_WAIT_MS;
          this.told({ state: "live" });
          this.take(event);
          first();
        }
      } catch (error) {
        if (error instanceof Refusal && FINAL.includes(error.status)) {
          this.told({ state: "refused", error });
          throw error;
        }
        if (!(error instanceof Refusal) && error.name !== "AbortError" && error.name !== "TypeError") {
          first();
          throw error;
        }
        said = error.status ? error : undefined;
      }
      clearTimeout(this.silence);
      first();
      const isHidden = document.hidden;
      const pause = isHidden ? 2 ** 31 - 1 : wait * (0.8 + 0.4 * Math.random());
      this.told({ state: isHidden ? "paused" : "lost", again: Date.now() + pause, error: said });
      await this.pause(pause);
      wait = Math.min(LONGEST_WAIT_MS, wait * 2);
    }
  }

  async *listen() {
    const leaving = (this.leaving = new AbortController());
    const heard = () => {
      clearTimeout(this.silence);
      this.silence = setTimeout(() => leaving.abort(), SILENCE_MS);
    };
    heard();
    yield* events(PATH, { signal: leaving.signal, heard });
  }

  pause(ms) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.hurry = () => {
        clearTimeout(timer);
        this.hurry = () => {};
        resolve();
      };
    });
  }
}
