"""The dashboard against a whole rolecall with fake engines on simulated GPUs: what is done with a mouse, and seen."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from browser.page import Page
from harness import Gpus, Rolecall, eventually, fake_entry
from process.test_door import ADMIN, KEY, key_row, write_keys
from simulator.nvml import ONE_16GB
from unused_ports import unused_port

MB = 6000
SLOW = {"tokens": 4000, "token_delay_s": 0.02}


def entries() -> list[dict[str, object]]:
    """Return three models of which two fit on the card, and one that does not start."""

    def one(name: str, *flags: str, mb: int = MB, **fields: object) -> dict[str, object]:
        return fake_entry(name, "--gpu-mb", str(mb), *flags, vram_estimate_mb=mb, **fields)

    return [
        one("ant", "--chatty", "2", role_priority={"talk": 80}),
        one("bee", "--load-s", "1", "--progress-log", role_priority={"talk": 70}),
        one("cat", role_priority={"draw": 50}),
        one("dud", "--fail-start", "ggml: tensor is not within the file", mb=100),
    ]


@pytest.fixture
def server(nvml_library: Path, tmp_path: Path) -> Iterator[Rolecall]:
    """Run one rolecall on a card of 16 GB."""
    with Gpus(nvml_library, tmp_path, ONE_16GB).rolecall(*entries()) as running:
        yield running


def opened(page: Page, server: Rolecall, path: str = "/ui") -> None:
    """Open a view and wait until the server has told something."""
    page.open(server.base_url + path)
    page.wait(lambda: page.text("#link") == "live")
    page.wait(lambda: page.is_shown("#view h1"))


def act(page: Page, model: str, verb: str) -> None:
    """Press a button of a model."""
    page.click(f"[data-model='{model}'] [data-act='{verb}']")


def state(page: Page, model: str) -> str:
    """Return what the page says of a model's state."""
    return page.text(f"[data-model='{model}'] .state")


def await_state(page: Page, model: str, words: str) -> None:
    """Wait until the page says so."""
    page.wait(lambda: words in state(page, model))


def streaming(server: Rolecall, model: str, count: int = 1) -> list[threading.Thread]:
    """Ask for long answers in the background; they end when they are stopped."""

    def ask() -> None:
        with contextlib.suppress(httpx.RemoteProtocolError), server.stream(model, fake=SLOW) as answer:
            answer.read()

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


# -- models


def test_load_pin_and_unload(page: Page, server: Rolecall) -> None:
    """A model is loaded by a click, with its progress; pinned; and unloaded: the page and the server agree."""
    opened(page, server)
    act(page, "bee", "load")
    await_state(page, "bee", "loading")
    await_state(page, "bee", "ready")
    assert server.state_of("bee") == "ready"
    page.wait(lambda: "bee" in " ".join(page.texts(".gpu .legend li")))
    act(page, "bee", "pin")
    await_state(page, "bee", "pinned")
    assert server.row("bee")["pinned"] is True
    assert page.find("[data-model='bee'] [data-act='pin']").get_attribute("aria-pressed") == "true"
    act(page, "bee", "pin")
    page.wait(lambda: "pinned" not in state(page, "bee"))
    act(page, "bee", "unload")
    await_state(page, "bee", "not loaded")
    assert server.state_of("bee") == "stopped"
    assert page.problems() == []


def test_a_pinned_model_stays(page: Page, server: Rolecall) -> None:
    """A swap takes the other one, and the timeline says for whom it went."""
    opened(page, server)
    for name in ("ant", "bee"):
        act(page, name, "load")
        await_state(page, name, "ready")
    act(page, "ant", "pin")
    await_state(page, "ant", "pinned")
    server.chat("cat")
    await_state(page, "cat", "ready")
    await_state(page, "bee", "not loaded")
    assert "ready" in state(page, "ant")
    page.wait(lambda: page.text("[data-total='evictions']") == "1")
    assert set(page.texts(".rows .label bdi")) == {"ant", "bee", "cat"}
    page.click("#timeline-table-button")
    rows = page.wait(lambda: [row.replace("\n", " ") for row in page.texts("#timeline tbody tr")])
    assert any("bee made room" in row and "cat" in row.partition("made room")[2] for row in rows)


def test_an_engine_that_does_not_start(page: Page, server: Rolecall) -> None:
    """Its last words stand at the model, and its whole output is a click away."""
    opened(page, server)
    act(page, "dud", "load")
    await_state(page, "dud", "failed")
    page.until("[data-model='dud'] .trouble", "tensor is not within the file")
    act(page, "dud", "output")
    page.until("#output pre", "tensor is not within the file")


def test_output_is_followed(page: Page, server: Rolecall) -> None:
    """What an engine prints comes by itself; who scrolls up is left alone until the end is wanted again."""
    opened(page, server)
    server.chat("ant")
    await_state(page, "ant", "ready")
    act(page, "ant", "output")
    page.wait(lambda: page.is_shown("#output pre span"))
    before = len(page.text("#output pre"))
    for _ in range(40):
        server.chat("ant")
    page.wait(lambda: len(page.run("return document.querySelector('#output pre').textContent;")) > before + 500)
    at_end = (
        "const e = document.querySelector('#output pre'); return e.scrollHeight - e.scrollTop - e.clientHeight < 30;"
    )
    page.wait(lambda: page.run(at_end))
    page.run("document.querySelector('#output pre').scrollTop = 0;")
    page.click("#output-follow")
    page.wait(lambda: page.run(at_end))
    page.until("#output-following", "following")
    assert page.run("return document.activeElement.tagName;") == "PRE"
    page.press(Keys.ESCAPE)
    page.wait(lambda: not page.is_shown("#output"))
    assert page.run("return document.activeElement.dataset.act;") == "output"


# -- requests


def test_live_requests_and_the_stop_button(page: Page, server: Rolecall) -> None:
    """A streamed answer is seen as it grows, with its figures; stopped, its client is told and the line says who."""
    opened(page, server)
    (thread,) = streaming(server, "ant")
    page.wait(lambda: page.texts("#live tbody td.state") == ["answering"])
    page.wait(lambda: page.text("#live tbody td:nth-child(6)") not in {"", "–"})
    tokens = page.text("#live tbody td:nth-child(5)")
    page.wait(lambda: page.text("#live tbody td:nth-child(5)") != tokens)
    page.click("#live [data-act='stop']")
    thread.join(10)
    page.until("#view", "No request is being served.")
    line = server.log_lines(1)[-1]
    assert line["error"].startswith("request_cancelled")
    page.wait(lambda: page.texts("#recent tbody .badge") != [])
    assert "request cancelled" in page.text("#recent tbody tr")


def test_the_queue(page: Page, server: Rolecall) -> None:
    """Who waits for a model is shown with its place, until it is served."""
    opened(page, server)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(server.chat, "bee") for _ in range(3)]
        page.wait(lambda: len(page.all("#queue tbody tr")) == 3)
        assert [cell.split("\n")[-1] for cell in page.texts("#queue tbody td:nth-child(2)")] == ["1", "2", "3"]
        assert all(future.result().status_code == 200 for future in waiting)
    page.until("#view", "Nothing waits.")
    page.wait(lambda: page.text("[data-total='requests']") == "3")


def test_history_and_one_request(page: Page, server: Rolecall) -> None:
    """Filters ask the log; one request shows why its model was chosen; new ones come to the top by themselves."""
    server.chat("role:talk")
    server.chat("cat")
    server.chat("nobody")
    server.log_lines(3)
    opened(page, server, "/ui/requests")
    page.wait(lambda: len(page.all("#history tbody tr")) == 3)
    Select(page.find("#filter-role")).select_by_value("talk")
    page.wait(lambda: len(page.all("#history tbody tr")) == 1)
    page.click("#history tbody a")
    assert page.until("#decision", "ant") == "ant for the role talk: highest priority that fits"
    assert "bee 70" in page.text("#request table")
    page.press(Keys.ESCAPE)
    server.chat("role:talk")
    server.chat("cat")
    page.wait(lambda: len(page.all("#history tbody tr")) == 2)
    page.click("#clear")
    page.wait(lambda: len(page.all("#history tbody tr")) == 5)
    Select(page.find("#filter-status")).select_by_value("error")
    page.wait(lambda: len(page.all("#history tbody tr")) == 1)
    assert "nobody" in page.text("#history tbody tr")
    assert page.problems() == []


def test_a_filter_that_the_server_refuses(page: Page, server: Rolecall) -> None:
    """What is wrong is said, and nothing of what the log has."""
    opened(page, server, "/ui/requests?status=bogus")
    page.until("#problem", "bogus")
    page.wait(lambda: "Reading the log" not in page.text("#view"))
    assert not page.is_shown("#none")


def test_a_request_that_ends_while_it_is_looked_at(page: Page, server: Rolecall) -> None:
    """Its sheet tells how it ended."""
    opened(page, server)
    (thread,) = streaming(server, "ant")
    page.wait(lambda: page.texts("#live tbody td.state") == ["answering"])
    request_id = page.find("#live tbody tr").get_attribute("data-request")
    page.open(f"{server.base_url}/ui/requests?request={request_id}")
    page.until("#request", "ant is answering")
    server.http.post(f"/v1/requests/{request_id}/cancel")
    thread.join(10)
    page.until("#request", "request cancelled")
    assert "is answering" not in page.text("#request")


def test_older_requests(page: Page, server: Rolecall) -> None:
    """Fifty at a time; the rest of the log is a button away."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: server.chat("ant"), range(120)))
    server.log_lines(120)
    opened(page, server, "/ui/requests")
    for count in (50, 100, 120):
        page.wait(lambda count=count: len(page.all("#history tbody tr")) == count)  # type: ignore[misc]
        if count < 120:
            page.click("#older")
    page.wait(lambda: not page.is_shown("#older"))


# -- keys


@pytest.fixture
def guarded(nvml_library: Path, tmp_path: Path) -> Iterator[Rolecall]:
    """Run one with keys: one of an admin, and one for requests alone."""
    made = Gpus(nvml_library, tmp_path, ONE_16GB).rolecall(*entries(), settings={"api_keys_file": "keys.json"})
    write_keys(
        made.config_dir / "keys.json", key_row("user", KEY), key_row("boss", ADMIN, scopes=["admin", "inference"])
    )
    with made as running:
        yield running


def enter(page: Page, key: str) -> None:
    """Give a key to the form."""
    page.wait(lambda: page.is_shown("#key-field"))
    page.write("#key-field", key)
    page.press(Keys.ENTER)


def test_with_a_key(page: Page, guarded: Rolecall) -> None:
    """The page asks for one, refuses a wrong one in words, and puts it into no address."""
    page.open(f"{guarded.base_url}/ui")
    enter(page, "rc-wrong")
    page.until("#key-problem", "key")
    assert page.barriers() == []
    enter(page, ADMIN)
    page.wait(lambda: page.text("#link") == "live")
    act(page, "ant", "load")
    await_state(page, "ant", "ready")
    addresses = page.run("return [location.href, ...performance.getEntriesByType('resource').map((e) => e.name)];")
    assert not any(ADMIN in address or "rc-wrong" in address for address in addresses)
    assert {urlsplit(address).netloc for address in addresses} == {f"127.0.0.1:{guarded.port}"}
    page.driver.refresh()
    page.wait(lambda: page.text("#link") == "live")
    page.click("#forget")
    page.wait(lambda: page.is_shown("#key-field"))
    assert not page.is_shown("#page")


def test_a_key_for_requests_alone(page: Page, guarded: Rolecall) -> None:
    """It is told what it lacks, and may use the playground."""
    page.open(f"{guarded.base_url}/ui")
    enter(page, KEY)
    page.until("#view", "scope admin")
    page.click("nav a[href='/ui/playground']")
    page.wait(lambda: page.is_shown("#words"))
    page.wait(lambda: "ant" in page.text("#target"))
    page.find("#words").send_keys("ECHO let in", Keys.ENTER)
    page.wait(lambda: page.texts(".turn.assistant > .text") == ["let in"])


def test_a_key_that_is_revoked(page: Page, guarded: Rolecall) -> None:
    """The page asks for another one at once, which is shown nothing of what the one before was; nor is the way back."""
    page.open(f"{guarded.base_url}/ui/datasets")
    enter(page, ADMIN)
    page.click("nav a[href='/ui/playground']")
    page.click(".more summary")
    page.write("#system", "of the boss")
    page.find("#words").send_keys("ECHO secret", Keys.ENTER)
    page.wait(lambda: page.texts(".turn.assistant > .text") == ["secret"])
    write_keys(guarded.config_dir / "keys.json", key_row("user", KEY, models=["bee"]))
    page.until("#key-problem", "revoked")
    assert not page.is_shown("#page")
    enter(page, KEY)
    page.wait(lambda: page.text("#target").split() == ["talk", "bee"])
    assert page.all(".turn") == []
    page.find("#words").send_keys("ECHO mine", Keys.ENTER)
    page.wait(lambda: page.texts(".turn.assistant > .text") == ["mine"])
    assert guarded.log_lines(2)[-1]["messages"] == 1
    page.driver.back()
    page.wait(lambda: page.run("return performance.getEntriesByType('navigation')[0].type;") == "reload")


# -- the server


def test_a_restart(page: Page, nvml_library: Path, tmp_path: Path) -> None:
    """While the server is away the page says so; when it is back it shows the new one."""
    gpus = Gpus(nvml_library, tmp_path, ONE_16GB)
    arguments = ("--port", str(unused_port()))
    with gpus.rolecall(*entries(), arguments=arguments) as server:
        opened(page, server)
        server.chat("ant")
        await_state(page, "ant", "ready")
        assert server.stop() == 0
        page.until("#gone", "cannot be reached")
    with gpus.rolecall(*entries(), arguments=arguments):
        page.wait(lambda: page.text("#link") == "live")
        await_state(page, "ant", "not loaded")


def test_the_root_leads_to_the_dashboard(page: Page, server: Rolecall) -> None:
    """A browser that is given the bare address ends there; other clients get what they got."""
    page.open(f"{server.base_url}/")
    page.wait(lambda: page.text("#link") == "live")
    assert page.driver.current_url == f"{server.base_url}/ui"
    assert server.http.get("/").status_code == 404


def test_one_stream_and_no_polling(page: Page, server: Rolecall) -> None:
    """While requests come and go, the page asks the server nothing but its one stream."""
    opened(page, server)
    count = "return performance.getEntriesByType('resource').length;"
    before = page.run(count)
    for number in range(1, 4):
        server.chat("ant")
        eventually(lambda number=number: page.text("[data-total='requests']") == str(number))  # type: ignore[misc]
    assert page.run(count) == before
