// What the server has told, as it stands now. The views draw it; nothing else holds any of it.

const MOST_LINES = 200;
const MOST_ENTRIES = 500; // as the server keeps
const HUES = 8;
const PATTERNS = 4; // the first is none

export class Store {
  constructor() {
    this.link = { state: "connecting" };
    this.isKnown = false; // whether a snapshot is there
    this.server = {};
    this.totals = {};
    /** @type {import("./types.js").Gpu[]} */
    this.gpus = [];
    /** @type {import("./types.js").Model[]} */
    this.models = [];
    this.queue = { waiting: 0, data: [] };
    this.live = { active: 0, data: [] };
    /** @type {import("./types.js").Line[]} newest first */
    this.history = [];
    /** @type {import("./types.js").Entry[]} oldest first */
    this.timeline = [];
    this.ahead = 0; // how far the server's clock is ahead of ours (ms)
    this.hues = new Map();
    this.stopping = new Set(); // requests that somebody at this page has stopped
  }

  /** Return the server's time (ms since the epoch). */
  now() {
    return Date.now() + this.ahead;
  }

  /** Take an event over. @param {any} event */
  take(event) {
    this.ahead = Date.parse(event.ts) - Date.now() || 0;
    if (event.type === "snapshot") {
      this.begin(event);
    } else if (event.type === "finished") {
      this.history = [...event.data.toReversed(), ...this.history].slice(0, MOST_LINES);
    } else if (event.type === "timeline") {
      this.timeline = [...this.timeline, ...event.data].slice(-MOST_ENTRIES);
    } else if (event.type === "queue" || event.type === "live") {
      this[event.type] = event;
    } else if (["gpus", "models", "totals", "server"].includes(event.type)) {
      this[event.type] = event.data;
    }
    if (event.type === "live") {
      const ids = new Set(event.data.map((row) => row.request_id));
      this.stopping = new Set([...this.stopping].filter((id) => ids.has(id)));
    }
  }

  begin({ server, gpus, models, queue, live, totals, history, timeline }) {
    Object.assign(this, { server, gpus, models, queue, live, totals, timeline });
    this.history = history.toReversed();
    this.isKnown = true;
  }

  /** Return the row of a model, if there is one. @param {string} name */
  model(name) {
    return this.models.find((row) => row.model === name);
  }

  /** Return the classes of a model's colour and pattern, the same as long as the page is open. @param {string} name */
  hue(name) {
    if (!this.hues.has(name)) {
      this.hues.set(name, this.hues.size);
    }
    const number = this.hues.get(name);
    return `hue-${number % HUES} pattern-${Math.floor(number / HUES) % PATTERNS}`;
  }

  /** Return when the timeline begins (ms since the epoch), if something before it may have been forgotten. */
  get forgotten() {
    return this.timeline.length < MOST_ENTRIES ? null : Date.parse(this.timeline[0].ts);
  }

  /** Return all roles, in the order of the alphabet. */
  roles() {
    return [...new Set(this.models.flatMap((row) => Object.keys(row.roles)))].sort();
  }
}
