// The models: what state each is in, what it is for, what it holds, and what can be done with it.

import { html, nothing, repeat } from "./lit.js";
import { epoch, memory, span } from "./format.js";

const WORDS = {
  stopped: "not loaded",
  starting: "loading",
  ready: "ready",
  sleeping: "asleep",
  stopping: "ending",
  failed: "failed",
};
const MANY = 8;

/**
 * @param {import("./store.js").Store} store
 * @param {{load: Function, unload: Function, pin: Function, output: Function, find: Function}} acts
 * @param {{text: string, loaded: boolean}} wish which of them are to be seen
 */
export function modelsPanel(store, acts, wish) {
  const shown = store.models.filter((row) => isMeant(row, wish));
  const coming = store.models.filter((row) => row.state === "starting").length;
  return html`
    <section class="panel flush" aria-labelledby="models-title">
      <div class="panel-head">
        <h2 id="models-title">Models <span class="soft">${store.models.filter(isLoaded).length} of ${store.models.length} loaded${
          coming ? `, ${coming} loading` : ""}</span></h2>
        ${store.models.length > MANY || wish.text || wish.loaded ? search(acts, wish) : nothing}
      </div>
      <ul class="models" aria-labelledby="models-title">
        ${repeat(shown, (row) => row.model, (row) => card(store, row, acts))}
      </ul>
      ${shown.length || !store.models.length ? nothing : html`<p class="soft pad">No model is like that.</p>`}
      ${store.models.length ? nothing : nothingThere()}
    </section>
  `;
}

const isLoaded = (row) => row.state === "ready" || row.state === "sleeping";

function isMeant(row, { text, loaded }) {
  const words = `${row.model} ${row.display_name ?? ""} ${Object.keys(row.roles).join(" ")}`.toLowerCase();
  return words.includes(text.trim().toLowerCase()) && (!loaded || isLoaded(row));
}

function search(acts, wish) {
  return html`
    <div class="row tools">
      <label class="check"><input type="checkbox" .checked=${wish.loaded}
        @change=${(event) => acts.find({ loaded: event.target.checked })}> Loaded only</label>
      <input type="search" class="small" aria-label="Find a model or a role" placeholder="Model or role"
        autocomplete="off" spellcheck="false" .value=${wish.text} @input=${(event) => acts.find({ text: event.target.value })}>
    </div>
  `;
}

function nothingThere() {
  return html`
    <div class="void inside">
      <h3>No models yet</h3>
      <p>Register those that lie on this machine already, or get one from a hub:</p>
      <pre class="commands">rolecall models scan
rolecall models search qwen3 4b
rolecall models pull REPO</pre>
      <p>They are listed here at once; the server need not be started again.</p>
    </div>
  `;
}

function card(store, row, acts) {
  const roles = Object.entries(row.roles).sort((a, b) => b[1] - a[1]);
  const title = row.display_name && row.display_name !== row.model ? row.display_name : null;
  return html`
    <li class="model" data-model=${row.model}>
      <div class="who">
        <h3 class="name"><i class=${`swatch ${store.hue(row.model)} held`} aria-hidden="true"></i><bdi>${row.model}</bdi></h3>
        <p class="soft">${title ? html`<bdi>${title}</bdi> · ` : nothing}${row.backend}${
          row.capabilities.includes("vision") ? " · sees pictures" : ""}</p>
      </div>
      <div class="state">${badge(row)}${progress(row)}</div>
      <ul class="badges" aria-label="Roles">
        ${repeat(roles, ([role]) => role, ([role, priority]) => html`<li><bdi>${role}</bdi> <b>${priority}</b></li>`)}
      </ul>
      <div class="holds">${holds(row)}</div>
      <div class="work">${work(row)}</div>
      <div class="acts">${buttons(row, acts)}</div>
      ${row.error ? trouble(store, row, acts) : nothing}
    </li>
  `;
}

function badge(row) {
  const more = [row.sleep_level ? `level ${row.sleep_level}` : "", row.pinned ? "pinned" : ""].filter(Boolean);
  const words = row.managed ? WORDS[row.state] ?? row.state : "elsewhere";
  return html`<span class=${`badge is-${row.managed ? row.state : "elsewhere"}`}>${words}</span>${
    more.length ? html` <span class="soft">${more.join(", ")}</span>` : nothing}`;
}

function progress(row) {
  if (row.state !== "starting") {
    return row.reduced ? html`<p class="soft">smaller: ${row.reduced}</p>` : nothing;
  }
  const part = row.load_fraction === null ? "" : `${Math.round(100 * row.load_fraction)} %`;
  const left = row.load_eta_s === null ? "" : `${span(row.load_eta_s)} left`;
  return html`
    ${row.load_fraction === null
      ? html`<progress aria-label=${`Loading ${row.model}`} max="1"></progress>`
      : html`<progress aria-label=${`Loading ${row.model}`} max="1" .value=${row.load_fraction}></progress>`}
    <p class="soft">${[part, left].filter(Boolean).join(" · ") || "starting"}</p>
  `;
}

function holds(row) {
  if (["stopped", "failed"].includes(row.state)) {
    return row.footprint_mb ? html`<span class="soft">needs ${memory(row.footprint_mb)}</span>` : nothing;
  }
  const where = row.devices.length ? `GPU ${row.devices.map((each) => each.index).join(", ")}` : "RAM";
  const mb = row.devices.length ? row.vram_reserved_mb : row.rss_mb ?? row.vram_reserved_mb;
  return row.managed ? html`${memory(mb)} <span class="soft">${where}</span>` : nothing;
}

function work(row) {
  const words = [
    row.in_flight ? `${row.in_flight} answering` : "",
    row.waiting ? `${row.waiting} waiting` : "",
  ].filter(Boolean);
  return words.length ? words.map((each) => html`<span>${each}</span> `) : isLoaded(row) ? html`<span class="soft">idle</span>` : nothing;
}

function buttons(row, acts) {
  if (!row.managed) {
    return nothing; // somebody else runs it
  }
  const isUp = isLoaded(row) || row.state === "starting";
  const isEnding = row.state === "stopping"; // a button that is disabled loses the focus
  const [act, verb] = isUp ? ["unload", "Unload"] : ["load", "Load"]; // one button, which keeps the focus
  return html`
    <button type="button" class="small" data-act=${act} aria-label=${`${verb} ${row.model}`} ?disabled=${!isUp && !row.installed}
      aria-disabled=${isEnding ? "true" : nothing} @click=${() => !isEnding && acts[act](row)}>${verb}</button>
    <button type="button" class="small" data-act="pin" aria-label=${`Pin ${row.model}`}
      title=${row.pinned ? "It makes room for no other; press to let it go" : "Keep it loaded: it makes room for no other"}
      aria-pressed=${String(row.pinned)} @click=${() => acts.pin(row)}>Pin</button>
    <button type="button" class="small" data-act="output" aria-label=${`Output of ${row.model}`}
      @click=${(event) => acts.output(row, event.currentTarget)}>Output</button>
  `;
}

function trouble(store, row, acts) {
  const again = epoch(row.retry_at) - store.now();
  const when = again > 0 ? ` It may be tried again in ${span(again / 1000)}.` : "";
  return html`
    <div class="trouble">
      <pre tabindex="0" role="group" aria-label=${`What went wrong with ${row.model}`}>${row.error}</pre>
      <p class="soft">${row.failures > 1 ? `Failed ${row.failures} times in a row.` : "Failed."}${when}
        Its output says more; then load it again.</p>
      <button type="button" class="small" @click=${(event) => acts.output(row, event.currentTarget)}>Show the output</button>
    </div>
  `;
}
