// What all pages of rolecall share: asking the server, with a key where one is needed, and making elements.
//
// The key is kept for this tab alone, and goes out as a header: never in an address, which ends up in logs.

const KEY = "rolecall.key";
const REFUSED = "rolecall.refused"; // why the key before was not taken, for the form that asks for the next one

/** An answer that is an error: `status` and `code` are the server's; 0 where none came. */
export class Refusal extends Error {
  constructor(message, status = 0, code = "") {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export function storedKey() {
  return sessionStorage.getItem(KEY);
}

/** Forget the key, and with it all that was shown, asked or written with it: the page is loaded anew. */
function startOver(message = "") {
  document.body.hidden = true; // until it is
  sessionStorage.clear();
  sessionStorage.setItem(REFUSED, message);
  location.reload();
}

/** Return the answer itself, whose body may still be coming; throws `Refusal`. */
export async function send(path, { method = "GET", json, signal } = {}) {
  const headers = {};
  const key = storedKey();
  if (key) {
    headers.authorization = `Bearer ${key}`;
  }
  if (json !== undefined) {
    headers["content-type"] = "application/json";
  }
  const body = json === undefined ? undefined : JSON.stringify(json);
  let answer;
  try {
    answer = await fetch(path, { method, headers, body, signal, credentials: "omit", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") {
      throw error;
    }
    throw new Refusal("The server cannot be reached. Is rolecall running?");
  }
  if (!answer.ok) {
    throw await refusal(answer);
  }
  return answer;
}

async function refusal(answer) {
  let error = {};
  try {
    error = (await answer.json()).error ?? {};
  } catch {
    // no JSON: a proxy between us and rolecall, perhaps
  }
  return new Refusal(error.message ?? `The server answered with status ${answer.status}.`, answer.status, error.code);
}

/** Return the parsed answer; throws `Refusal`. */
export async function ask(path, options) {
  return (await send(path, options)).json();
}

/** Return the bytes of an answer; throws `Refusal`. */
export async function blob(path, options) {
  return (await send(path, options)).blob();
}

/**
 * Yield the data of the server-sent events of a path; a browser's own EventSource sends no headers.
 * `heard` is called for all that comes, comments included.
 */
export async function* events(path, { signal, heard = () => {} } = {}) {
  const answer = await send(path, { signal });
  heard();
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) {
      return;
    }
    heard();
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data: "));
      if (data.length) {
        yield JSON.parse(data.map((line) => line.slice(6)).join("\n"));
      }
    }
  }
}

/**
 * Return an element. Text is only ever text: nothing that comes from the server is read as HTML.
 * `on` holds listeners, `data` and `aria` attributes of these kinds; all else are properties or attributes.
 */
export function element(name, { on = {}, aria = {}, data = {}, ...rest } = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(rest)) {
    if (key in made) {
      made[key] = value;
    } else {
      made.setAttribute(key, value);
    }
  }
  Object.assign(made.dataset, data);
  for (const [key, value] of Object.entries(aria)) {
    made.setAttribute(`aria-${key}`, value);
  }
  for (const [event, listener] of Object.entries(on)) {
    made.addEventListener(event, listener);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const at = (id) => document.getElementById(id);

/** Have the link that skips to the content do that, without a word in the address, which pages use for themselves. */
export function skipLink() {
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    at("content").focus();
  });
}

/** Show a message in an element of the page, or hide that. */
export function say(place, text, kind = "plain") {
  place.textContent = text ?? "";
  place.className = `note ${kind}`;
  place.hidden = !text;
}

export function plural(count, one, many = `${one}s`) {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}

/** What a page does with what goes wrong. It says whether it `isOpen`, and `askForKey(message)` has it ask for another. */
export class Guarded {
  async guarded(work) {
    try {
      say(at("problem"), null);
      await work();
    } catch (error) {
      this.failed(error);
    }
  }

  failed(error) {
    if (error.name === "AbortError") {
      return;
    }
    if (error instanceof Refusal && error.status === 401 && this.isOpen) {
      this.askForKey(error.message);
      return;
    }
    say(at("problem"), error.message, "bad");
    at("problem").scrollIntoView({ block: "nearest" });
    if (!(error instanceof Refusal)) {
      throw error;
    }
  }
}

/**
 * Ask for a key until `open`, which begins the page, is not refused for the want of one.
 * The page has `#key` for the form, `#page` with all else, and `#forget` for a key that is to be forgotten.
 * `command` makes a key that opens this page. Returns what has the page begin anew and ask for another key, with a
 * message: nothing stays of what the key before was shown.
 */
export async function withKey(open, command) {
  const [panel, page, forget] = ["key", "page", "forget"].map(at);
  const field = element("input", { type: "password", id: "key-field", autocomplete: "off", spellcheck: false, required: true });
  const problem = element("p", { id: "key-problem", role: "alert", hidden: true });
  panel.replaceChildren(
    element("h1", { id: "key-title" }, "This server needs a key"),
    element("p", { className: "soft" }, "Who runs it makes one with ", element("code", {}, command), ". It is kept until this tab is closed."),
    element(
      "form",
      { className: "fields", on: { submit: given } },
      element("div", { className: "field" }, element("label", { htmlFor: "key-field" }, "API key"), field),
      problem,
      element("button", { className: "first" }, "Open"),
    ),
  );

  const refused = sessionStorage.getItem(REFUSED) ?? "";
  sessionStorage.removeItem(REFUSED);

  let key = storedKey();
  addEventListener("pageshow", () => storedKey() !== key && location.reload()); // one that was kept for the way back

  async function attempt() {
    try {
      await open();
      panel.hidden = true;
      page.hidden = false;
      forget.hidden = !key;
    } catch (error) {
      if (!(error instanceof Refusal && error.status === 401)) {
        throw error;
      }
      if (key) {
        startOver(error.message);
      } else {
        need(refused);
      }
    }
  }

  function need(message) {
    panel.hidden = false;
    say(problem, message, "bad");
    field.value = "";
    field.focus();
  }

  function given(event) {
    event.preventDefault();
    const value = field.value.trim();
    if (/^[\x21-\x7e]{1,256}$/.test(value)) {
      key = value;
      sessionStorage.setItem(KEY, key);
      attempt();
    } else {
      need("That is no key: keys have no spaces and no special characters.");
    }
  }

  forget.addEventListener("click", () => startOver());
  await attempt();
  return startOver;
}
