// GPU memory: a bar for each card, and the same in words below it.

import { html, nothing, repeat } from "./lit.js";
import { memory } from "./format.js";

/** @param {import("./store.js").Store} store */
export function memoryPanel(store) {
  const rows = [...store.gpus, ...hostRow(store)];
  return html`
    <section class="panel" aria-labelledby="memory-title">
      <h2 id="memory-title">Memory</h2>
      <div class="gpus">${repeat(rows, (gpu) => gpu.uuid, (gpu) => card(store, gpu))}</div>
      ${rows.length ? nothing : html`<p class="soft">Nothing is known of this machine's memory yet.</p>`}
    </section>
  `;
}

/** Models that lie in the host's RAM on a machine whose rows are GPUs. */
function hostRow(store) {
  if (store.gpus.some((gpu) => gpu.uuid === "host")) {
    return [];
  }
  const onCards = new Set(store.gpus.flatMap((gpu) => gpu.models.map((each) => each.model)));
  const models = store.models
    .filter((row) => row.managed && row.rss_mb && !row.devices.length && ["ready", "sleeping"].includes(row.state))
    .filter((row) => !onCards.has(row.model))
    .map((row) => ({ model: row.model, mb: row.rss_mb }));
  const mb = models.reduce((sum, each) => sum + each.mb, 0);
  return models.length ? [{ uuid: "ram", index: -1, name: null, models, reserved_mb: mb, foreign_mb: 0, total_mb: 0 }] : [];
}

function card(store, gpu) {
  const isHost = gpu.index < 0;
  const used = gpu.reserved_mb + gpu.foreign_mb;
  const [title, name] = isHost ? ["Host RAM", null] : [`GPU ${gpu.index}`, gpu.name];
  const total = Math.max(gpu.total_mb, used, 1);
  const leaving = Math.max(0, gpu.reserved_mb - gpu.models.reduce((sum, each) => sum + each.mb, 0)); // engines that ended
  const limit = gpu.usable_mb && gpu.usable_mb < gpu.total_mb ? gpu.usable_mb : null;
  return html`
    <div class="gpu" data-gpu=${gpu.uuid}>
      <div class="gpu-head">
        <h3>${title} ${name ? html`<span class="soft">${name}</span>` : nothing}</h3>
        <p class="soft">
          <b class="figure">${memory(used)}</b>
          ${gpu.total_mb ? html` of ${memory(gpu.total_mb)} taken` : html` in models`}
        </p>
      </div>
      <div class="stack" aria-hidden="true">
        ${repeat(gpu.models, (each) => each.model, (each) => segment(store, each, total))}
        ${leaving ? html`<i class="leaving" .style=${share(leaving, total)}></i>` : nothing}
        ${gpu.foreign_mb ? html`<i class="foreign" .style=${share(gpu.foreign_mb, total)}></i>` : nothing}
        ${limit ? html`<b class="limit" .style=${`inset-inline-start:${(100 * limit) / total}%`}></b>` : nothing}
      </div>
      <ul class="legend" aria-label=${`Memory of ${title}`}>
        ${repeat(gpu.models, (each) => each.model, (each) => legend(store, each))}
        ${leaving ? item("leaving", "being freed", leaving) : nothing}
        ${gpu.foreign_mb ? item("foreign", "other programs", gpu.foreign_mb) : nothing}
        ${gpu.total_mb ? item("free", "free", gpu.free_mb) : nothing}
        ${limit ? item("limit", "models may take", limit) : nothing}
      </ul>
    </div>
  `;
}

const share = (mb, total) => `inline-size:${(100 * mb) / total}%`;

const isComing = (store, name) => store.model(name)?.state === "starting";

function segment(store, { model, mb }, total) {
  const kind = isComing(store, model) ? "coming" : "held";
  return html`<i title=${model} class=${`${store.hue(model)} ${kind}`} .style=${share(mb, total)}></i>`;
}

function legend(store, { model, mb }) {
  const isReserved = isComing(store, model);
  const kind = `${store.hue(model)} ${isReserved ? "coming" : "held"}`;
  return item(kind, model, mb, isReserved ? "reserved" : null);
}

function item(kind, words, mb, note = null) {
  return html`
    <li title=${`${words}: ${Math.round(mb)} MB`} data-mb=${Math.round(mb)} data-of=${words}>
      <i class=${`swatch ${kind}`} aria-hidden="true"></i><span class="name"><bdi>${words}</bdi></span>
      <span class="amount">${memory(mb)}${note ? html` <span class="soft">${note}</span>` : nothing}</span>
    </li>
  `;
}
