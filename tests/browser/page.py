"""What a person sees and does on a page, in words of the page."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

T = TypeVar("T")

DEADLINE_S = 20.0

CONTRASTS = """
const shown = (e) => e.checkVisibility({checkOpacity: true, checkVisibilityCSS: true}) && !e.closest('.unseen, .skip');
const channels = (text) => text.match(/[\\d.]+/g).map(Number);
const light = (rgb) => {
  const [r, g, b] = rgb.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (e) => {
  for (; e; e = e.parentElement) {
    const [r, g, b, a = 1] = channels(getComputedStyle(e).backgroundColor);
    if (a === 1) return [r, g, b];
  }
  return [255, 255, 255];
};
const found = [];
for (const e of document.querySelectorAll('body *')) {
  const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!own || !shown(e) || e.disabled) continue;
  const [a, b] = [light(channels(getComputedStyle(e).color).slice(0, 3)), light(ground(e))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) found.push(`${e.tagName} ${e.className} ${e.textContent.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
}
return found;
"""
"""WCAG's ratio of the colours of each text and what is behind it; those below 4.5 are returned."""


AXE = Path(__file__).parent / "vendor" / "axe.min.js"
BARRIERS = """
const done = arguments[arguments.length - 1];
axe.run(document, {resultTypes: ['violations']}).then(
  ({violations}) => done(violations.map(({id, help, nodes}) =>
    `${id}: ${help}: ${nodes.map((node) => node.target.join(' ')).join(', ')}`)),
  (error) => done([String(error)]));
"""
"""What axe-core finds against WCAG A and AA and its best practices."""


class Page:
    """A tab of Chromium."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    # -- the tab

    def open(self, url: str) -> None:
        """Go to an address."""
        self.driver.get(url)

    def leave(self) -> None:
        """Forget what the page stored, and go away."""
        self.driver.execute_script("try { sessionStorage.clear(); localStorage.clear(); } catch {}")
        self.driver.get("about:blank")

    def resize(self, width: int, height: int) -> None:
        """Make the tab that large, in CSS pixels; a narrow one is a phone."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def colours(self, scheme: str) -> None:
        """Prefer ``light`` or ``dark`` colours."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what a script in the page returns."""
        return self.driver.execute_script(script, *arguments)

    def problems(self) -> list[str]:
        """Return the errors and warnings of the page since the last time, those of refused requests left out."""
        rows: list[dict[str, str]] = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [
            row["message"]
            for row in rows
            if row["level"] in {"SEVERE", "WARNING"} and "Failed to load resource" not in row["message"]
        ]

    def barriers(self) -> list[str]:
        """Return what keeps people with a screen reader, a keyboard or weak eyes out, as far as a program finds it."""
        if not self.run("return 'axe' in window"):
            self.run(AXE.read_text(encoding="utf-8"))
        found: list[str] = self.driver.execute_async_script(BARRIERS)
        return found

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than its window."""
        return int(self.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth;"))

    def whole_picture(self, path: Path, most: int = 4000) -> None:
        """Save the whole page, not only what fits the window."""
        width, height = self.run("return [innerWidth, innerHeight];")
        self.resize(width, min(most, max(height, self.run("return document.documentElement.scrollHeight;"))))
        self.picture(path)
        self.resize(width, height)

    def picture(self, path: Path) -> None:
        """Save what is to be seen."""
        self.driver.save_screenshot(str(path))

    # -- what is to be seen

    def find(self, selector: str) -> WebElement:
        """Return the first element that a CSS selector names."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        """Return all that it names."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """Return the text that is shown there; empty if nothing is."""
        try:
            return self.find(selector).text
        except NoSuchElementException:
            return ""

    def texts(self, selector: str) -> list[str]:
        """Return the texts of all that it names and that are shown."""
        return [each.text for each in self.all(selector) if each.is_displayed()]

    def is_shown(self, selector: str) -> bool:
        """Whether it is there to be seen."""
        try:
            return self.find(selector).is_displayed()
        except NoSuchElementException:
            return False

    def focused(self) -> str:
        """Return the id of the element that has the focus, else its class, or its tag."""
        return str(self.run("const e = document.activeElement; return e.id || e.className || e.tagName;"))

    def wait(self, question: Callable[[], T], within_s: float = DEADLINE_S) -> T:
        """Return the first answer that is true; an element that was replaced meanwhile is looked for again."""
        deadline = time.monotonic() + within_s
        answer: Any = None
        while time.monotonic() < deadline:
            try:
                if answer := question():
                    return answer
            except (NoSuchElementException, StaleElementReferenceException):
                pass
            time.sleep(0.02)
        raise AssertionError(f"still {answer!r} after {within_s:g} s; the page says: {self.text('body')[:1000]}")

    def until(self, selector: str, text: str, within_s: float = DEADLINE_S) -> str:
        """Wait until an element has a text in it, and return all of that."""
        return self.wait(lambda: found if text in (found := self.text(selector)) else "", within_s)

    def until_pictures(self, count: int) -> None:
        """Wait until so many cards are there, and those to be seen have their thumbnails."""
        self.wait(lambda: len(self.all("#grid > li")) == count)
        loaded = "return [...document.querySelectorAll('#grid img')].filter((e) => e.naturalWidth > 0).length;"
        self.wait(lambda: self.run(loaded) >= min(count, 1))

    # -- what is done

    def click(self, selector: str) -> None:
        """Click it once it is there."""
        self.wait(lambda: self.is_shown(selector) and self.find(selector).is_enabled())
        self.find(selector).click()

    def write(self, selector: str, text: str) -> None:
        """Replace a field's text."""
        field = self.find(selector)
        field.clear()
        field.send_keys(text)

    def press(self, *keys: str) -> None:
        """Press keys where the focus is."""
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def tab_to(self, name: str, most: int = 60) -> None:
        """Press the tabulator until the element with this id has the focus."""
        for _ in range(most):
            self.press(Keys.TAB)
            if self.focused() == name:
                return
        raise AssertionError(f"{name} is not reached with the tabulator")

    def names_of_controls(self) -> list[tuple[str, str]]:
        """Return role and name of all that can be operated, as a screen reader is told."""
        tree = self.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})
        roles = {"button", "link", "textbox", "checkbox", "combobox", "progressbar", "image", "dialog", "list"}
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in tree["nodes"]
            if not node.get("ignored") and node.get("role", {}).get("value") in roles
        ]
