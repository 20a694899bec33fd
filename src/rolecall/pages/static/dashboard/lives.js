// What each model did, as stretches of time, worked out of the entries of the timeline. Pure.

import { epoch } from "./format.js";

/** @typedef {{kind: "loading"|"ready"|"sleeping"|"ending", from: number, to: number, words: string}} Stretch */
/** @typedef {{kind: "failed"|"crashed", at: number, words: string}} Mark */

const OPENS = {
  load: "loading",
  ready: "ready",
  sleep: "sleeping",
  wake: "loading",
  awake: "ready",
  evicted: "ending",
  unload: "ending",
};
const BEFORE = { ready: "loading", awake: "loading", sleep: "ready", evicted: "ready", unload: "ready", crashed: "ready", failed: "loading" };

/**
 * Return what each model did until now, by its name; times are ms since the epoch.
 * @param {import("./types.js").Entry[]} entries oldest first
 * @param {import("./types.js").Model[]} models
 * @param {number} now
 * @returns {Map<string, {stretches: Stretch[], marks: Mark[]}>}
 */
export function lives(entries, models, now) {
  const found = new Map();
  const life = (name) => {
    if (!found.has(name)) {
      found.set(name, { stretches: [], marks: [], open: null });
    }
    return found.get(name);
  };
  for (const entry of entries) {
    follow(life(entry.model), entry);
  }
  for (const row of models) {
    const since = epoch(row.ready_since);
    if (row.state === "ready" && since && !life(row.model).open) {
      life(row.model).open = { kind: "ready", from: since, words: "ready" };
    }
  }
  for (const [name, each] of found) {
    const state = models.find((row) => row.model === name)?.state;
    close(each, now, state);
  }
  return found;
}

function follow(life, entry) {
  const at = epoch(entry.ts);
  if (!life.open && BEFORE[entry.event] && entry.seconds) {
    life.open = { kind: BEFORE[entry.event], from: at - 1000 * entry.seconds, words: BEFORE[entry.event] };
  }
  if (entry.event in OPENS || ["unloaded", "failed", "crashed"].includes(entry.event)) {
    if (life.open) {
      life.stretches.push({ ...life.open, to: at });
    }
    life.open = entry.event in OPENS ? { kind: OPENS[entry.event], from: at, words: entry.reason ?? OPENS[entry.event] } : null;
  }
  if (entry.event === "failed" || entry.event === "crashed") {
    life.marks.push({ kind: entry.event, at, words: entry.reason ?? entry.event });
  }
}

function close(life, now, state) {
  const isOver = state === "stopped" || state === "failed";
  if (life.open && !isOver) {
    life.stretches.push({ ...life.open, to: now });
  }
  delete life.open;
}
