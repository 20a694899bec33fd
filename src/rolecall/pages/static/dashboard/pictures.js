// Pictures that go with a message: dropped, pasted or chosen; kept as data, shown as blobs.

import { html, nothing, repeat } from "./lit.js";
import { count } from "./format.js";

const MOST = 8;

export class Pictures {
  /**
   * @param {() => void} changed  @param {(message: string) => void} refused
   * @param {() => number|undefined} mostBytes how large one may be, where the server has told
   */
  constructor(changed, refused, mostBytes) {
    Object.assign(this, { changed, refused, mostBytes });
    this.list = [];
  }

  over(event) {
    if ([...event.dataTransfer.types].includes("Files")) {
      event.preventDefault();
      event.dataTransfer.dropEffect = "copy";
    }
  }

  dropped(event) {
    if (event.dataTransfer.files.length) {
      event.preventDefault();
      this.add(event.dataTransfer.files);
    }
  }

  pasted(event) {
    if (event.clipboardData.files.length) {
      event.preventDefault();
      this.add(event.clipboardData.files);
    }
  }

  chosen(event) {
    this.add(event.target.files);
    event.target.value = "";
  }

  async add(files) {
    const most = this.mostBytes() ?? Infinity;
    for (const file of files) {
      if (!file.type.startsWith("image/")) {
        this.refused(`“${file.name}” is no picture.`);
      } else if (file.size > most) {
        this.refused(`“${file.name}” has ${count(file.size)} bytes; the server takes up to ${count(most)} (max_image_bytes).`);
      } else if (this.list.length >= MOST) {
        this.refused(`No more than ${MOST} pictures go with a message.`);
      } else {
        this.list.push({ name: file.name || "picture", address: URL.createObjectURL(file), data: await read(file) });
      }
    }
    this.changed();
  }

  remove(picture) {
    URL.revokeObjectURL(picture.address);
    this.list = this.list.filter((each) => each !== picture);
    this.changed();
  }

  /** Return them, and have none any more. */
  take() {
    const taken = this.list;
    this.list = [];
    return taken;
  }

  template() {
    return this.list.length
      ? html`<ul class="thumbs" aria-label="Pictures of this message">${repeat(this.list, (each) => each, (each) => html`<li>
          <img src=${each.address} alt=${each.name}>
          <button type="button" class="small" aria-label=${`Remove ${each.name}`} @click=${() => this.remove(each)}>×</button></li>`)}</ul>`
      : nothing;
  }
}

function read(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}
