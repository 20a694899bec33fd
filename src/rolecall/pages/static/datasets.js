// The page of the datasets: which one is shown, by which tags, and what is done with it.
//
// The address says what is shown, as #3?tag=dark&tag=indoor, so that back, forward and bookmarks work.

import { Guarded, Refusal, ask, at, element, plural, say, skipLink, withKey } from "./shared.js";
import { Grid } from "./datasets_grid.js";
import { Job } from "./datasets_job.js";
import { SampleDialog } from "./datasets_dialog.js";

const MOST_TAGS_SHOWN = 40;

class Page extends Guarded {
  constructor() {
    super();
    this.list = [];
    this.mayRegister = false;
    this.dataset = null;
    this.showing = 0;
    this.dialog = new SampleDialog((sample) => this.edited(sample), () => this.dataset?.tags ?? []);
    this.grid = new Grid((sample, opener) => this.dialog.open(sample, opener), (error) => this.failed(error));
    this.job = new Job((progress) => this.progressed(progress), (error) => this.failed(error));
    this.needKey = null;
    this.listen();
  }

  listen() {
    skipLink();
    addEventListener("hashchange", () => this.guarded(() => this.show()));
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && this.dataset && !this.job.isRunning) {
        this.guarded(() => this.refresh());
      }
    });
    at("add-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.add();
    });
    at("tag").addEventListener("click", () => this.guarded(() => this.tag()));
    at("cancel").addEventListener("click", () => this.guarded(() => this.job.cancel()));
    at("next").addEventListener("click", () => this.guarded(() => this.more()));
    at("rescan").addEventListener("click", () => this.guarded(() => this.rescan()));
    at("remove").addEventListener("click", () => this.guarded(() => this.remove()));
    document.addEventListener("click", (event) => this.closeMenu(event.target));
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && at("more").open) {
        at("more").open = false;
        at("more").querySelector("summary").focus();
      }
    });
  }

  closeMenu(target) {
    if (!at("more").contains(target)) {
      at("more").open = false;
    }
  }

  /** Begin; throws `Refusal` where a key is needed. */
  async open() {
    await this.load();
    await this.show();
  }

  get isOpen() {
    return this.needKey !== null;
  }

  askForKey(message) {
    this.needKey(message);
  }

  // -- the list

  async load() {
    const answer = await ask("/datasets");
    this.list = answer.data;
    this.mayRegister = answer.may_register;
    at("add").hidden = !this.mayRegister;
    at("remove").hidden = at("remove-words").hidden = !this.mayRegister;
    at("task").replaceChildren(
      ...answer.tasks.map((task) => element("option", { value: task.id, selected: task.id === "tags" }, task.title)),
    );
    this.drawList();
  }

  drawList() {
    const shown = this.wanted().id;
    at("list").replaceChildren(
      ...this.list.map((each) =>
        element(
          "li",
          {},
          element(
            "a",
            { href: `#${each.id}`, aria: each.id === shown ? { current: "true" } : {} },
            element("span", {}, each.name),
            element("span", { className: "soft", title: plural(each.samples, "picture") }, each.samples.toLocaleString("en")),
          ),
        ),
      ),
    );
    at("nothing").hidden = this.list.length > 0;
    at("nothing-words").textContent = this.mayRegister
      ? "Add a folder of pictures: they stay where they are, and get tags here."
      : "Somebody with a key of the scope admin can add a folder of pictures.";
    if (!this.list.length) {
      at("add").open = this.mayRegister;
    }
  }

  async add() {
    const [name, folder, problem] = [at("add-name"), at("add-folder"), at("add-problem")];
    say(problem, null);
    try {
      const added = await ask("/datasets", { method: "POST", json: { name: name.value, folder: folder.value } });
      at("add-form").reset();
      at("add").open = false;
      await this.load();
      location.hash = `#${added.id}`;
      at("content").focus();
    } catch (error) {
      if (error instanceof Refusal && error.status !== 401) {
        say(problem, error.message, "bad");
      } else {
        this.failed(error);
      }
    }
  }

  // -- one dataset

  /** What the address asks for; the first dataset if it names none. */
  wanted() {
    const [id, query] = location.hash.slice(1).split("?");
    const asked = new URLSearchParams(query ?? "");
    return { id: Number(id) || this.list[0]?.id, tags: asked.getAll("tag"), failed: asked.has("failed") };
  }

  async show() {
    const { id, tags, failed } = this.wanted();
    const number = ++this.showing;
    this.job.leave();
    this.drawList();
    if (id === undefined) {
      this.dataset = null;
      at("dataset").hidden = true;
      return;
    }
    const dataset = await ask(`/datasets/${id}`);
    if (number !== this.showing) {
      return;
    }
    if (this.dataset?.id !== dataset.id) {
      at("more").open = false;
    }
    this.take(dataset);
    await this.grid.show(dataset.id, tags, failed);
    this.drawShown();
    this.job.watch(dataset.id, dataset.auto_tag);
  }

  take(dataset) {
    this.dataset = dataset;
    at("dataset").hidden = false;
    document.title = `${dataset.name} · rolecall`;
    at("name").textContent = dataset.name;
    at("folder").textContent = dataset.folder ?? "";
    at("folder").hidden = !dataset.folder;
    const counts = [plural(dataset.samples, "picture"), `${dataset.tagged.toLocaleString("en")} tagged`];
    if (dataset.failed) {
      counts.push(`${dataset.failed.toLocaleString("en")} failed`);
    }
    if (dataset.missing) {
      counts.push(`${dataset.missing.toLocaleString("en")} gone from the folder`);
    }
    at("counts").textContent = counts.join(" · ");
    at("tag").dataset.empty = String(!dataset.samples);
    at("tag").disabled = !dataset.samples || this.job.isRunning;
    this.drawFilter();
  }

  drawFilter() {
    const { tags: chosen, failed } = this.wanted();
    const tags = this.dataset.tags.slice(0, MOST_TAGS_SHOWN);
    const more = chosen.filter((tag) => !tags.some((each) => each.tag === tag)).map((tag) => ({ tag, count: 0 }));
    const focused = document.activeElement?.closest("#filter") ? (document.activeElement.dataset.tag ?? "") : null;
    const filter = at("filter");
    filter.querySelectorAll("button").forEach((button) => button.remove());
    for (const { tag, count } of [...more, ...tags]) {
      filter.append(choice(tag, count, chosen.includes(tag), { tag }, () => this.toggle(tag)));
    }
    if (this.dataset.failed || failed) {
      const button = choice("Failed", this.dataset.failed, failed, {}, () => this.toggle(null));
      button.classList.add("danger");
      filter.append(button);
    }
    filter.hidden = filter.querySelector("button") === null;
    if (focused !== null) {
      const button = [...filter.querySelectorAll("button")].find((each) => (each.dataset.tag ?? "") === focused);
      button?.focus();
    }
  }

  /** Show only the pictures with a tag, or all again; null stands for those that could not be tagged. */
  toggle(tag) {
    const { id, tags, failed } = this.wanted();
    const chosen = tags.includes(tag) ? tags.filter((each) => each !== tag) : [...tags, tag];
    const query = new URLSearchParams((tag === null ? tags : chosen).map((each) => ["tag", each]));
    if (failed !== (tag === null)) {
      query.set("failed", "1");
    }
    const text = query.toString();
    location.hash = text ? `#${id}?${text}` : `#${id}`;
  }

  drawShown() {
    const { total, loaded } = this.grid;
    const { tags, failed } = this.wanted();
    const isFiltered = tags.length > 0 || failed;
    const ways = [tags.length ? `tagged ${tags.join(" and ")}` : "", failed ? "whose tagging failed" : ""];
    at("next").hidden = loaded >= total;
    at("shown").textContent = isFiltered ? [plural(total, "picture"), ...ways.filter(Boolean)].join(" ") : "";
    at("no-samples").hidden = total > 0;
    at("no-samples-title").textContent = isFiltered ? "No picture is like that" : "No pictures in this folder";
    at("no-samples-words").textContent = isFiltered
      ? "Choose less at a time."
      : "Put JPEG, PNG, WebP, TIFF or GIF files there, then look for new files under Options.";
  }

  async more() {
    await this.grid.more();
    this.drawShown();
  }

  async refresh() {
    const number = this.showing;
    const dataset = await ask(`/datasets/${this.dataset.id}`);
    await this.grid.refresh();
    if (number === this.showing) {
      this.take(dataset);
      this.drawShown();
      if (!this.job.isRunning) {
        this.job.watch(dataset.id, dataset.auto_tag);
      }
    }
  }

  edited(sample) {
    this.grid.update(sample);
    this.guarded(() => this.refresh());
  }

  async rescan() {
    at("more").open = false;
    this.take(await ask(`/datasets/${this.dataset.id}/rescan`, { method: "POST" }));
    await this.load();
    await this.grid.refresh();
    this.drawShown();
    at("spoken").textContent = `Looked through the folder: ${plural(this.dataset.samples, "picture")}.`;
  }

  async remove() {
    const words = `Remove “${this.dataset.name}” and its tags? The files in its folder stay.`;
    if (!confirm(words)) {
      return;
    }
    this.job.leave();
    await ask(`/datasets/${this.dataset.id}`, { method: "DELETE" });
    at("more").open = false;
    await this.load();
    history.replaceState(null, "", location.pathname);
    await this.show();
    at("content").focus();
  }

  // -- tagging

  async tag() {
    at("more").open = false;
    await this.job.start(this.dataset.id, { task: at("task").value || "tags", again: at("again").checked });
  }

  async progressed(progress) {
    await this.guarded(() => this.refresh());
    if (progress.status !== "running") {
      await this.guarded(() => this.load());
    }
  }
}

function choice(words, count, isPressed, data, click) {
  return element(
    "button",
    { type: "button", data, aria: { pressed: String(isPressed) }, on: { click } },
    words,
    element("span", { className: "soft" }, count.toLocaleString("en")),
  );
}

const page = new Page();
page.needKey = await withKey(async () => {
  try {
    await page.open();
  } catch (error) {
    if (error instanceof Refusal && error.status === 401) {
      throw error;
    }
    page.failed(error);
  }
}, "rolecall keys add NAME");
