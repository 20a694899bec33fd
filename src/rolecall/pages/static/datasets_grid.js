// The grid of pictures: cards in the order of the file names, whose thumbnails are fetched when they come into sight.

import { Refusal, ask, blob, element } from "./shared.js";

const PAGE = 60;
const MOST_AT_ONCE = 500; // of the server

export class Grid {
  /** `opened` is told which sample was chosen, `failed` of thumbnails that cannot be had for another reason than theirs. */
  constructor(opened, failed) {
    this.list = document.getElementById("grid");
    this.opened = opened;
    this.failed = failed;
    this.cards = new Map();
    this.total = 0;
    this.path = "";
    this.leaving = new AbortController();
    this.sight = new IntersectionObserver((entries) => this.seen(entries), { rootMargin: "400px" });
  }

  get loaded() {
    return this.cards.size;
  }

  /** Show the first samples of a dataset that have all these tags; `failed` leaves those that could not be tagged. */
  async show(id, tags, failed) {
    const query = new URLSearchParams([...tags.map((tag) => ["tag", tag]), ["failed", failed ? "1" : "0"]]).toString();
    const path = `/datasets/${id}/samples?${query}&`;
    if (path !== this.path) {
      this.clear();
      this.path = path;
    }
    await this.fill(PAGE);
  }

  clear() {
    this.leaving.abort();
    this.leaving = new AbortController();
    for (const card of this.cards.values()) {
      card.remove();
    }
    this.cards.clear();
    this.total = 0;
  }

  more() {
    return this.fill(this.loaded + PAGE);
  }

  refresh() {
    return this.fill(Math.max(PAGE, this.loaded));
  }

  /** Have the first `count` samples there, and none that is not among them any more. */
  async fill(count) {
    const { path, leaving } = this;
    const found = [];
    let total = 0;
    do {
      const limit = Math.min(MOST_AT_ONCE, count - found.length);
      const answer = await ask(`${path}limit=${limit}&offset=${found.length}`, { signal: leaving.signal });
      ({ total } = answer);
      found.push(...answer.data);
      if (!answer.data.length) {
        break;
      }
    } while (found.length < Math.min(count, total));
    if (leaving === this.leaving) {
      this.total = total;
      this.take(found);
    }
  }

  take(samples) {
    const ids = new Set(samples.map((sample) => sample.id));
    for (const [id, card] of this.cards) {
      if (!ids.has(id)) {
        this.sight.unobserve(card.place);
        card.remove();
        this.cards.delete(id);
      }
    }
    let before = null;
    for (const sample of samples) {
      const card = this.cards.get(sample.id) ?? this.make(sample);
      card.take(sample);
      const next = before === null ? this.list.firstElementChild : before.nextElementSibling;
      if (card.place !== next) {
        this.list.insertBefore(card.place, next);
      }
      before = card.place;
    }
  }

  make(sample) {
    const card = new Card(sample, this.opened);
    this.cards.set(sample.id, card);
    this.sight.observe(card.place);
    return card;
  }

  update(sample) {
    this.cards.get(sample.id)?.take(sample);
  }

  seen(entries) {
    for (const entry of entries.filter((each) => each.isIntersecting)) {
      this.cards.get(Number(entry.target.dataset.id))?.load(this.leaving.signal).catch(this.failed);
    }
  }
}

class Card {
  constructor(sample, opened) {
    this.frame = element("span", { className: "frame" });
    this.file = element("span", { className: "file" });
    this.tags = element("ul", { className: "tags" });
    this.problem = element("p", { className: "problem", hidden: true });
    this.button = element("button", { type: "button", className: "open" }, this.frame, this.file);
    this.button.addEventListener("click", () => opened(this.sample, this.button));
    this.place = element(
      "li",
      { data: { id: sample.id } },
      this.button,
      element("div", { className: "under" }, this.tags, this.problem),
    );
    this.address = null;
    this.thumbnail = null;
    this.isSeen = false;
  }

  take(sample) {
    const { file_name: name, tags, own_tags: own, problem, thumbnail } = sample;
    this.sample = sample;
    this.file.textContent = name.split("/").pop();
    this.file.title = name;
    this.tags.setAttribute("aria-label", `Tags of ${name}`);
    this.tags.replaceChildren(...tags.map((tag) => tagItem(tag, own.includes(tag))));
    this.tags.hidden = !tags.length;
    this.problem.textContent = problem ? `Failed: ${problem}` : "";
    this.problem.hidden = !problem;
    if (this.thumbnail !== thumbnail) {
      const wasSeen = this.isSeen;
      this.thumbnail = thumbnail;
      this.isSeen = false;
      if (wasSeen) {
        this.load().catch(() => {});
      }
    }
  }

  async load(signal) {
    if (this.isSeen) {
      return;
    }
    this.isSeen = true;
    try {
      const address = URL.createObjectURL(await blob(this.thumbnail, { signal }));
      this.forget();
      this.address = address;
      this.frame.replaceChildren(element("img", { src: address, alt: "", decoding: "async" }));
    } catch (error) {
      if (error.name === "AbortError") {
        this.isSeen = false;
      } else if (error instanceof Refusal && error.status === 400) {
        this.frame.replaceChildren(element("p", { className: "soft", title: error.message }, "No preview"));
      } else {
        this.isSeen = false;
        throw error;
      }
    }
  }

  forget() {
    if (this.address) {
      URL.revokeObjectURL(this.address);
      this.address = null;
    }
  }

  remove() {
    this.forget();
    this.place.remove();
  }
}

/** Return a tag as an item of a list; those of a person are marked, for screen readers too. */
export function tagItem(tag, isOwn, ...more) {
  return element(
    "li",
    isOwn ? { className: "own", title: "Your own tag" } : {},
    element("span", {}, tag),
    isOwn ? element("span", { className: "unseen" }, " (your own)") : null,
    ...more,
  );
}
