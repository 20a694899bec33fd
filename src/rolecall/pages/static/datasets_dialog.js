// One picture, larger, with its tags to be changed.

import { Refusal, ask, at, blob, element, say } from "./shared.js";
import { tagItem } from "./datasets_grid.js";

export class SampleDialog {
  /** `changed` is told the sample as it is then; `known` returns the tags of the dataset, to choose from. */
  constructor(changed, known) {
    this.dialog = at("sample");
    this.changed = changed;
    this.known = known;
    this.sample = null;
    this.address = null;
    at("sample-close").addEventListener("click", () => this.dialog.close());
    at("sample-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const field = at("sample-field");
      this.change({ add: [field.value] }, `Added ${field.value}.`).then((worked) => {
        if (worked) {
          field.value = "";
        }
        field.focus();
      });
    });
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) {
        this.dialog.close(); // beside it
      }
    });
    this.dialog.addEventListener("close", () => this.left());
  }

  open(sample, opener) {
    this.opener = opener;
    this.take(sample);
    say(at("sample-note"), null);
    at("sample-spoken").textContent = "";
    at("sample-field").value = "";
    at("known-tags").replaceChildren(...this.known().map(({ tag }) => element("option", { value: tag })));
    this.dialog.showModal();
    // A field with the focus brings up a phone's keyboard, over half of the picture.
    at(matchMedia("(max-width: 48rem)").matches ? "sample-close" : "sample-field").focus();
    this.load(sample);
  }

  left() {
    if (this.address) {
      URL.revokeObjectURL(this.address);
      this.address = null;
    }
    at("sample-picture").removeAttribute("src");
    this.opener?.focus();
  }

  async load(sample) {
    const [picture, problem] = [at("sample-picture"), at("sample-problem")];
    picture.hidden = problem.hidden = true;
    picture.alt = `${sample.file_name}, tagged ${sample.tags.join(", ") || "with nothing yet"}`;
    try {
      const data = await blob(`${sample.thumbnail}&size=large`);
      if (this.sample.id !== sample.id || !this.dialog.open) {
        return;
      }
      this.address = URL.createObjectURL(data);
      picture.src = this.address;
      picture.hidden = false;
    } catch (error) {
      problem.textContent = error.message;
      problem.hidden = false;
    }
  }

  take(sample) {
    this.sample = sample;
    at("sample-name").textContent = sample.file_name;
    at("sample-tags").replaceChildren(
      ...sample.tags.map((tag) =>
        tagItem(
          tag,
          sample.own_tags.includes(tag),
          element(
            "button",
            { type: "button", aria: { label: `Remove ${tag}` }, on: { click: () => this.remove(tag) } },
            "×",
          ),
        ),
      ),
    );
    at("sample-tags").hidden = !sample.tags.length;
    const source = sample.model ? `Tagged by ${sample.model} (${sample.task}).` : "";
    at("sample-source").textContent = sample.problem ? `Failed: ${sample.problem}` : source;
  }

  async remove(tag) {
    await this.change({ remove: [tag] }, `Removed ${tag}.`);
    at("sample-field").focus();
  }

  async change(json, words) {
    const { dataset_id: dataset, id } = this.sample;
    try {
      const sample = await ask(`/datasets/${dataset}/samples/${id}`, { method: "PATCH", json });
      say(at("sample-note"), null);
      this.take(sample);
      at("sample-spoken").textContent = words;
      this.changed(sample);
      return true;
    } catch (error) {
      say(at("sample-note"), error.message, "bad");
      if (!(error instanceof Refusal)) {
        throw error;
      }
      return false;
    }
  }
}
