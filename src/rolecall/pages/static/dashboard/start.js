// The page: which view the address asks for, the connection to the server, and when things are drawn.

import { Guarded, Refusal, at, say, skipLink, withKey } from "../shared.js";
import { Feed } from "./feed.js";
import { html, nothing, render } from "./lit.js";
import { clock, span } from "./format.js";
import { Output } from "./output.js";
import { Overview } from "./overview.js";
import { Playground } from "./playground.js";
import { Requests } from "./requests.js";
import { Sheet } from "./sheet.js";
import { Store } from "./store.js";

const TICK_MS = 1000;
const SPOKEN_APART_MS = 5000;
const LINK_WORDS = { connecting: "connecting", live: "live", paused: "paused", lost: "connection lost", refused: "not connected" };
const SPOKEN = {
  ready: (each) => `${each.model} is loaded.`,
  failed: (each) => `${each.model} could not be started.`,
  crashed: (each) => `${each.model} crashed.`,
};

export class App extends Guarded {
  constructor() {
    super();
    this.store = new Store();
    this.output = new Output();
    this.sheet = new Sheet(this);
    this.requests = new Requests(this);
    this.views = { "/ui": new Overview(this), "/ui/requests": this.requests, "/ui/playground": new Playground(this) };
    this.feed = new Feed((event) => this.took(event), (link) => this.linked(link));
    this.isDrawing = false;
    this.isOpen = false;
    this.needKey = null;
    this.words = [];
    this.listen();
  }

  get view() {
    return this.views[location.pathname] ?? this.views["/ui"];
  }

  listen() {
    skipLink();
    addEventListener("popstate", () => this.show());
    document.querySelector(".bar nav").addEventListener("click", (event) => {
      const link = event.target.closest("a");
      if (link && link.pathname in this.views && !event.metaKey && !event.ctrlKey && !event.shiftKey && !event.button) {
        event.preventDefault();
        this.go(link.pathname);
        at("content").focus({ preventScroll: true });
        scrollTo(0, 0);
      }
    });
    setInterval(() => this.tick(), TICK_MS); // what waits grows older; the server is not asked for that
  }

  /** Begin; throws `Refusal` where a key is needed. */
  async open() {
    await this.feed.open();
    this.isOpen = true;
    this.show();
  }

  /** Go to an address of this page. */
  go(address, { replace = false } = {}) {
    history[replace ? "replaceState" : "pushState"](null, "", address);
    say(at("problem"), null);
    this.show();
  }

  show() {
    const { view } = this;
    document.title = `${view.title} · rolecall`;
    for (const link of document.querySelectorAll(".bar nav a")) {
      const isThis = this.views[link.pathname] === view;
      if (isThis) {
        link.setAttribute("aria-current", "page");
      } else {
        link.removeAttribute("aria-current");
      }
    }
    this.paint();
    if (view.show) {
      this.guarded(() => view.show());
    }
    this.sheet.show();
  }

  // -- what comes from the server

  took(event) {
    this.store.take(event);
    if (event.type === "finished") {
      this.requests.ended(event);
      this.sheet.ended(event);
    } else if (event.type === "timeline") {
      this.tell(event.data);
    } else if (event.type === "snapshot") {
      this.requests.renew();
      this.sheet.ended(event);
    }
    this.draw();
  }

  linked(link) {
    if (link.state !== "connecting" && this.store.link.state !== link.state) {
      if (link.state === "lost") {
        this.speak(link.error?.message ?? "The connection to the server is lost.");
      } else if (link.state === "live" && this.store.link.state === "lost") {
        this.speak("The connection is back.");
      }
    }
    if (link.state === "refused" && link.error.status === 401 && this.isOpen) {
      this.askForKey(link.error.message);
    }
    if (link.state !== "live") {
      this.store.lostAt ??= Date.now();
    } else {
      this.store.lostAt = null;
    }
    this.store.link = link;
    this.draw();
  }

  /** A screen reader hears of models that come and fail, not of every step. */
  tell(entries) {
    const words = entries.filter((each) => each.event in SPOKEN).map((each) => SPOKEN[each.event](each));
    this.speak(...words);
  }

  speak(...words) {
    this.words.push(...words);
    if (this.words.length && !this.speaking) {
      this.speaking = setTimeout(() => {
        this.speaking = null;
        this.speak();
      }, SPOKEN_APART_MS);
      at("spoken").textContent = this.words.slice(-3).join(" ");
      this.words = [];
    }
  }

  /** The key is not in force any more. */
  askForKey(message) {
    this.isOpen = false;
    this.needKey(message);
  }

  failed(error) {
    const { link } = this.store;
    if (error instanceof Refusal && error.status === 0 && link.state === "lost" && !link.error) {
      at("gone").scrollIntoView({ block: "nearest" }); // it says so already
    } else {
      super.failed(error);
    }
  }

  // -- drawing

  tick() {
    const { live, queue, link } = this.store;
    const isMoving = live.data.length > 0 || queue.data.length > 0 || link.state === "lost";
    const isSlow = Math.floor(Date.now() / TICK_MS) % 5 === 0;
    if (isMoving || isSlow) {
      this.draw();
    }
  }

  /** Draw soon; many changes at once are drawn once. */
  draw() {
    if (!this.isDrawing) {
      this.isDrawing = true;
      requestAnimationFrame(() => this.paint());
    }
  }

  paint() {
    this.isDrawing = false;
    const { link, isKnown } = this.store;
    const place = at("link");
    place.hidden = false;
    place.textContent = LINK_WORDS[link.error ? "refused" : link.state];
    place.className = `link is-${link.state}`;
    render(this.gone(link), at("gone"));
    const isRefused = link.state === "refused" && this.view !== this.views["/ui/playground"];
    at("view").classList.toggle("stale", isKnown && link.state === "lost");
    const isWaiting = !isKnown && this.view === this.views["/ui"];
    render(isRefused ? refused(link.error) : isWaiting ? nothing : this.view.template(), at("view"));
  }

  gone(link) {
    if (link.state !== "lost") {
      return nothing;
    }
    const seconds = Math.max(0, Math.round((link.again - Date.now()) / 1000));
    const before = this.store.isKnown ? html`; this is how it was at <span>${clock(this.store.lostAt)}</span>` : nothing;
    return html`
      <div class="note bad row">
        <p class="grow">${link.error
            ? html`${link.error.message.replace(/\.$/, "")}${before}.`
            : html`The server cannot be reached${before}. Is rolecall running?`}
          Next try ${seconds ? `in ${span(seconds)}` : "now"}.</p>
        <button type="button" class="small" id="again" @click=${() => this.feed.again()}>Try now</button>
      </div>
    `;
  }
}

function refused(error) {
  return html`
    <div class="void">
      <h1>${error.status === 403 ? "This key may not look at the server" : "The server does not tell"}</h1>
      <p>${error.message}</p>
      ${error.status === 403
        ? html`<p>The dashboard and the requests need a key of the scope admin. <a href="/ui/playground">The playground</a>
            needs one of the scope inference.</p>`
        : nothing}
    </div>
  `;
}

const app = new App();
app.needKey = await withKey(async () => {
  app.store.link = { state: "connecting" };
  await app.open();
}, "rolecall keys add NAME --scope admin --scope inference");
