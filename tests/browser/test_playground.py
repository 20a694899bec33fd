"""The playground against a whole rolecall with fake engines: streamed answers, pictures, roles, what goes wrong."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from browser.page import Page
from harness import Rolecall, fake_entry
from photographs import write_photographs

DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], arguments[1], {type: arguments[2]}));
const target = document.querySelector(arguments[3]);
if (arguments[4] === 'paste') {
  target.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true}));
} else {
  for (const kind of ['dragover', 'drop']) {
    target.dispatchEvent(new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}));
  }
}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run one rolecall with a quick model, one that thinks, one that takes its time, and one that sees."""
    entries = (
        fake_entry("quick", role_priority={"chat": 90}),
        fake_entry("thinker", "--reasoning", role_priority={"think": 50}),
        fake_entry("slow", "--tokens", "4000", "--token-delay-s", "0.02"),
        fake_entry("seer", "--mmproj", "seen.gguf", capabilities=["text", "vision"], role_priority={"caption": 80}),
        fake_entry("broken", "--fail-start", "ggml: no such file"),
        fake_entry("breaks", "--drop-after-tokens", "3"),
        fake_entry("late", "--load-s", "60"),
    )
    with Rolecall(tmp_path_factory.mktemp("playground"), entries) as running:
        yield running


def opened(page: Page, server: Rolecall, target: str) -> None:
    """Open the playground for a model or a role."""
    page.open(f"{server.base_url}/ui/playground?model={target}")
    page.wait(lambda: page.is_shown("#words"))
    page.wait(lambda: page.run("return document.getElementById('target').value;") == target)


def say(page: Page, text: str) -> None:
    """Write a message and press Enter."""
    page.find("#words").send_keys(text, Keys.ENTER)


def answers(page: Page) -> list[str]:
    """Return the texts of the answers so far."""
    return page.texts(".turn.assistant > .text")


def test_a_conversation_with_a_role(page: Page, server: Rolecall) -> None:
    """The answer says which model gave it, how soon and how fast; the next question has it in its history."""
    opened(page, server, "role:chat")
    say(page, "ECHO good morning")
    page.wait(lambda: answers(page) == ["good morning"])
    page.wait(lambda: page.is_shown("#send"))
    assert page.texts(".turn .from") == ["quick"]
    figures = page.text(".figures-line")
    assert "first token after" in figures
    assert "2 tokens" in figures
    assert "tokens read" in figures
    say(page, "ECHO and again")
    page.wait(lambda: answers(page) == ["good morning", "and again"])
    line = server.log_lines(2)[-1]
    assert (line["messages"], line["stream"], line["role"], line["model"]) == (3, True, "chat", "quick")
    assert page.focused() == "words"
    assert page.problems() == []


def test_an_answer_is_text(page: Page, server: Rolecall) -> None:
    """Markup that a model writes is shown, never obeyed."""
    opened(page, server, "quick")
    words = '<img src=x onerror="document.title=1"> <b>bold</b> [a](javascript:alert(1))'
    say(page, f"ECHO {words}")
    page.wait(lambda: answers(page) == [words])
    assert page.all(".turn img, .turn.assistant b, .turn a") == []
    assert page.driver.title == "Playground · rolecall"
    assert page.problems() == []


def test_thoughts_are_folded(page: Page, server: Rolecall) -> None:
    """What a model thinks stands apart, to be opened."""
    opened(page, server, "thinker")
    say(page, "hi")
    page.wait(lambda: page.text(".thoughts summary") == "Thoughts")
    page.wait(lambda: answers(page)[0].startswith("w0 w1"))
    assert not page.is_shown(".thoughts .text")
    page.click(".thoughts summary")
    assert page.text(".thoughts .text") != ""


def test_an_answer_that_is_stopped(page: Page, server: Rolecall) -> None:
    """It grows as it comes; stopped, what was said stays, the engine works no more for it, and the focus is kept."""
    opened(page, server, "slow")
    say(page, "hi")
    page.wait(lambda: "w5" in " ".join(answers(page)))
    page.click("#stop")
    page.until(".figures-line", "stopped")
    assert answers(page)[0].startswith("w0 w1")
    server.await_in_flight("slow", 0)
    assert page.focused() == "send"


def test_a_question_that_is_stopped_before_its_answer(page: Page, server: Rolecall) -> None:
    """It does not go along with the next one: models want the turns of both to alternate."""
    opened(page, server, "late")
    count = len(server.log_lines())
    say(page, "first")
    page.click("#stop")
    page.until(".figures-line", "stopped")
    server.log_lines(count + 1)
    Select(page.find("#target")).select_by_value("quick")
    say(page, "ECHO second")
    page.wait(lambda: answers(page)[-1] == "second")
    assert server.log_lines(count + 2)[-1]["messages"] == 1


@pytest.mark.parametrize("way", ["drop", "paste", "choose"])
def test_pictures(page: Page, server: Rolecall, tmp_path: Path, way: str) -> None:
    """One that is dropped, pasted or chosen is shown, can be taken away again, and goes with the message."""
    opened(page, server, "role:caption")
    write_photographs(tmp_path / "photos", 1)
    photo = next((tmp_path / "photos").iterdir())

    def put() -> None:
        if way == "choose":
            page.find("#files").send_keys(str(photo))
        else:
            data = base64.b64encode(photo.read_bytes()).decode()
            page.run(DROP, data, photo.name, "image/jpeg", "#words" if way == "paste" else ".talk", way)

    put()
    page.wait(lambda: page.run("return document.querySelector('.composer .thumbs img')?.naturalWidth > 0;"))
    page.click(".composer .thumbs button")
    page.wait(lambda: not page.is_shown(".composer .thumbs"))
    put()
    page.wait(lambda: page.is_shown(".composer .thumbs img"))
    count = len(server.log_lines())
    say(page, "ECHO seen")
    page.wait(lambda: answers(page) == ["seen"])
    line = server.log_lines(count + 1)[-1]
    assert (line["images"], line["model"], line["status"]) == (1, "seer", 200)
    assert page.run("return document.querySelector('.turn.user img').naturalWidth > 0;")
    assert page.problems() == []


def test_several_pictures(page: Page, server: Rolecall, tmp_path: Path) -> None:
    """All that are chosen at once are taken, up to eight; whoever takes them away by keyboard keeps the focus."""
    opened(page, server, "role:caption")
    photos = write_photographs(tmp_path / "photos", 9)
    page.find("#files").send_keys("\n".join(str(path) for path in photos[:2]))
    page.wait(lambda: len(page.all(".composer .thumbs img")) == 2)
    page.find("#files").send_keys("\n".join(str(path) for path in photos[2:]))
    page.until("#problem", "No more than 8 pictures")
    assert len(page.all(".composer .thumbs img")) == 8
    page.run("document.querySelector('.composer .thumbs li:nth-child(7) button').focus();")
    for left in range(7, -1, -1):
        page.press(Keys.ENTER)
        page.wait(lambda left=left: len(page.all(".composer .thumbs img")) == left)  # type: ignore[misc]
        assert page.run("return document.activeElement.tagName;") == ("BUTTON" if left else "TEXTAREA")


def test_a_file_that_is_no_picture(page: Page, server: Rolecall) -> None:
    """It is refused in words, until the next question; beside the conversation too, where a browser would open it."""
    opened(page, server, "quick")
    for place in (".talk", ".head"):
        page.run(DROP, base64.b64encode(b"text").decode(), "notes.txt", "text/plain", place, "drop")
        page.until("#problem", "“notes.txt” is no picture.")
        say(page, "ECHO fine")
        page.wait(lambda: not page.is_shown("#problem"))
        page.wait(lambda: page.is_shown("#send"))


def test_a_file_that_only_says_that_it_is_a_picture(page: Page, server: Rolecall, tmp_path: Path) -> None:
    """It is not taken; what was said of it goes when a good one is added."""
    opened(page, server, "role:caption")
    (photo,) = write_photographs(tmp_path / "photos", 1)
    (tmp_path / "bad.png").write_bytes(b"text")
    page.find("#files").send_keys(str(tmp_path / "bad.png"))
    page.until("#problem", "“bad.png” cannot be read as a picture.")
    page.find("#files").send_keys(str(photo))
    page.wait(lambda: len(page.all(".composer .thumbs img")) == 1)
    assert not page.is_shown("#problem")


def test_a_picture_that_is_refused(page: Page, server: Rolecall, tmp_path: Path) -> None:
    """A model that sees nothing refuses it; the next question goes without it and is answered."""
    opened(page, server, "quick")
    write_photographs(tmp_path / "photos", 1)
    page.find("#files").send_keys(str(next((tmp_path / "photos").iterdir())))
    page.wait(lambda: page.is_shown(".composer .thumbs img"))
    say(page, "ECHO look")
    page.until(".turn .note", "vision")
    page.wait(lambda: page.is_shown("#send"))
    say(page, "ECHO just hello")
    page.wait(lambda: answers(page)[-1] == "just hello")


def test_a_picture_of_before(page: Page, server: Rolecall, tmp_path: Path) -> None:
    """A model that sees nothing refuses all that comes after it, and the page says why."""
    opened(page, server, "seer")
    page.find("#files").send_keys(*map(str, write_photographs(tmp_path / "photos", 1)))
    page.wait(lambda: page.is_shown(".composer .thumbs img"))
    say(page, "ECHO seen")
    page.wait(lambda: page.is_shown("#send") and answers(page) == ["seen"])
    Select(page.find("#target")).select_by_value("quick")
    say(page, "ECHO text only")
    page.until(".turn .note", "A picture of this conversation goes with each question")


@pytest.mark.parametrize(("target", "words"), [("broken", "ggml: no such file"), ("breaks", "broke off")])
def test_what_goes_wrong(page: Page, server: Rolecall, target: str, words: str) -> None:
    """An engine that does not start, or breaks off, is told where the answer would be; then one can go on."""
    opened(page, server, target)
    say(page, "hi")
    page.until(".turn .note", words)
    page.wait(lambda: page.is_shown("#send"))


def test_settings_go_with_the_request(page: Page, server: Rolecall) -> None:
    """A system message, and the most tokens of an answer; a new conversation forgets the old one, not these."""
    opened(page, server, "quick")
    page.click(".more summary")
    page.write("#system", "Be brief.")
    page.write("#most", "2")
    say(page, "hi")
    page.wait(lambda: answers(page) == ["w0 w1"])
    page.wait(lambda: server.log_lines()[-1]["finish_reason"] == "length")
    assert server.log_lines()[-1]["messages"] == 2
    page.click("#new")
    page.wait(lambda: page.all(".turn") == [])
    assert page.run("return document.getElementById('most').value;") == "2"
