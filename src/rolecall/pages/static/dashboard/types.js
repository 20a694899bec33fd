// What the server tells, as docs/dashboard-api.md describes it. Types alone: nothing here runs.

/** @typedef {{model: string, mb: number}} Holding */
/**
 * @typedef {{index: number, uuid: string, name: string|null, total_mb: number, usable_mb: number,
 *   reserved_mb: number, foreign_mb: number, free_mb: number, models: Holding[]}} Gpu
 */
/**
 * @typedef {{model: string, display_name: string|null, backend: string, roles: Object<string, number>,
 *   capabilities: string[], managed: boolean, installed: boolean, pinned: boolean, state: string,
 *   sleep_level: number|null, reduced: string|null, in_flight: number, waiting: number,
 *   devices: {index: number, uuid: string}[], vram_reserved_mb: number, footprint_mb: number|null,
 *   rss_mb: number|null, ready_since: string|null, load_s: number|null, load_fraction: number|null,
 *   load_eta_s: number|null, failures: number, retry_at: string|null, error: string|null}} Model
 */
/**
 * @typedef {{request_id: string|null, model: string, role: string|null, purpose: "request"|"hand"|"preload", waiting_since: string, position: number,
 *   state: string, eta_s: number|null}} Waiting
 */
/**
 * @typedef {{request_id: string, endpoint: string, model: string|null, requested_model: string, role: string|null,
 *   key: string|null, client: string, stream: boolean, images: number, started: string,
 *   state: "waiting"|"loading"|"answering", ttft_ms: number|null, tokens: number, tokens_estimated: boolean,
 *   tokens_per_second: number|null}} Live
 */
/** @typedef {{ts: string, model: string, event: string, seconds: number|null, reason: string|null}} Entry */
/** @typedef {Object<string, any>} Line of the request log */

export {};
