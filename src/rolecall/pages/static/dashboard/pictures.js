// Pictures that go with a message: dropped, pasted or chosen; kept as data, shown as blobs.

import { Refusal, at } from "../shared.js";
import { html, nothing, repeat } from "./lit.js";
import { count } from "./format.js";

const MOST = 8;

export class Pictures {
  /** @param {import("./start.js").App} app */
  constructor(app) {
    this.app = app;
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

  /** Take what can be taken, and say of the rest why not. @param {FileList} files */
  async add(files) {
    const all = [...files]; // that of a field is emptied with the field
    await this.app.guarded(async () => {
      const refusals = [];
      for (const file of all) {
        refusals.push(await this.put(file));
        this.app.draw();
      }
      const words = [...new Set(refusals.filter(Boolean))].join(" ");
      if (words) {
        throw new Refusal(words, 400);
      }
    });
  }

  /** Put one to the message, or return why not. @param {File} file */
  async put(file) {
    const most = this.app.store.server.max_image_bytes ?? Infinity; // not told to a key without the scope admin
    const name = file.name || "picture";
    if (!file.type.startsWith("image/")) {
      return `“${name}” is no picture.`;
    }
    if (file.size > most) {
      return `“${name}” has ${count(file.size)} bytes; the server takes up to ${count(most)} (max_image_bytes).`;
    }
    if (this.list.length >= MOST) {
      return `No more than ${MOST} pictures go with a message.`;
    }
    const address = URL.createObjectURL(file);
    if (!(await isShowable(address))) {
      URL.revokeObjectURL(address);
      return `“${name}” cannot be read as a picture.`;
    }
    this.list.push({ name, address, data: await read(file) });
    return "";
  }

  remove(event, picture) {
    const item = event.currentTarget.closest("li");
    const next = item.nextElementSibling ?? item.previousElementSibling;
    (next?.querySelector("button") ?? at("words")).focus(); // else the focus would go with the button
    URL.revokeObjectURL(picture.address);
    this.list = this.list.filter((each) => each !== picture);
    this.app.draw();
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
          <button type="button" class="small" aria-label=${`Remove ${each.name}`} @click=${(event) => this.remove(event, each)}>×</button></li>`)}</ul>`
      : nothing;
  }
}

function isShowable(address) {
  const image = new Image();
  image.src = address;
  return image.decode().then(() => true, () => false);
}

function read(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}
