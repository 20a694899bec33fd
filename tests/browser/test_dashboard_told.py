"""The dashboard before a server that tells what a test says: states that a real one shows only by luck."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selenium.webdriver.common.keys import Keys

from browser import scenes
from browser.dashboard_pictures import draw_dashboard
from browser.page import CONTRASTS, Page
from browser.told import Told, ago, entry, gpu_of, line, live_row, model, snapshot, telling
from photographs import encoded, scene
from rolecall.insight.history import Question
from rolecall.insight.log_reader import Wanted, parse_since, parse_status

LIGHT = (246, 246, 244)
GROUNDS = {"dashboard-dark": (22, 23, 22), "dashboard-request": (111, 111, 110)}
"""The colour of the page's ground in the pictures of the documentation: in the dark, and behind a dialog."""
DOCS = Path(__file__).parents[2] / "docs"
VIEWS = ("/ui", "/ui/requests", "/ui/playground")
SCENES = {"afternoon": scenes.afternoon, "nothing": snapshot, "trouble": scenes.trouble, "hostile": scenes.hostile}
FILTERS = [
    *(
        ("model", text)
        for text in ("alp*", "*a*b*", "alph?", "[ab]*", "[!a]*", "a[", "[]]*", "role:*", "z[b-a]", "*a*")
    ),
    *(("role", text) for text in ("chat", "role:chat", "role:c*", "*")),
    *(("status", text) for text in ("200", "4xx", ">=400", "<= 499", "!=200", "ok", "error", ">400", "<500", "foo")),
    *(("since", text) for text in ("10m", "1h30m", "1w", "2020-01-31T12:00", "2020-01-31", "2999-01-01T00:00Z", "no")),
    *(("key", text) for text in ("laptop", "lap*")),
]
VARIED = [
    line(number, asked, model=name, role=role, key=key, ts=ago(seconds), status=status, error=error)
    for number, (name, asked, role, key, seconds, status, error) in enumerate(
        [
            ("alpha", "alpha", None, None, 1, 200, None),
            ("alpha", "role:chat", "chat", "laptop", 900, 200, "engine_crashed: it broke off"),
            ("beta", "role:caption", "caption", "lap*", 7000, 404, None),
            (None, "z[b-a]", None, None, 1, 400, "model_not_found: no"),
            ("a[", "]x", "c*", "laptop", 86400 * 3, 499, "client_disconnected: gone"),
            ("baab", "baab", None, None, 1, None, "internal: no"),
            ("alpha", "alpha", "chat", None, 5, 503, "overloaded: busy"),
        ]
    )
]
"""Requests that some of these filters take and others do not."""

CUT = """
const cuts = (e) => /hidden|clip|auto/.test(getComputedStyle(e).overflowX) && e.scrollWidth > e.clientWidth;
return [...document.querySelectorAll('body *')]
  .filter((e) => e.textContent.includes(arguments[0]) && e.checkVisibility() && !e.matches('.unseen') && cuts(e))
  .map((e) => `${e.tagName}.${e.className}`);
"""
"""Elements with a text in them that is wider than what is seen of it."""


@pytest.fixture
def told() -> Told:
    """Return a server on an ordinary afternoon."""
    made = Told(scenes.afternoon())
    made.decision = scenes.DECISION
    return made


@pytest.fixture
def address(told: Told) -> Iterator[str]:
    """Serve it."""
    with telling(told) as url:
        yield url


def is_wanted(fields: dict[str, Any], name: str, text: str) -> bool:
    """Whether the server takes a line for one filter; one that it refuses takes none."""
    try:
        if name == "status":
            return Wanted(status=parse_status(text))(fields)
        if name == "since":
            return Wanted(since=parse_since(text, datetime.now(timezone.utc)))(fields)
    except ValueError:
        return False
    model, role, key = (text if name == each else None for each in ("model", "role", "key"))
    return Question(Wanted(model, role and role.removeprefix("role:")), key)(fields)


def open_view(page: Page, url: str) -> None:
    """Open a view and wait until it is drawn."""
    page.open(url)
    page.wait(lambda: page.is_shown("#view h1"))


# -- what is to be seen


def test_an_afternoon(page: Page, address: str) -> None:
    """Memory by model, the models with what they do, who is served and who waits, what was loaded, what has ended."""
    open_view(page, f"{address}/ui")
    assert [text.replace("\n", " ") for text in page.texts(".gpu .legend li")] == [
        "qwen3-vl-8b 8.8 GB",
        "llama-3.2-3b 3.0 GB",
        "gemma-3-12b 6.1 GB reserved",
        "other programs 800 MB",
        "free 5.3 GB",
        "models may take 22.0 GB",
    ]
    assert page.texts("[data-model='gemma-3-12b'] .state") == ["loading\n62 % · 5.4 s left"]
    assert [text.replace("\n", " ") for text in page.texts("[data-model='qwen3-vl-8b'] .badges li")] == [
        "description 90",
        "caption 80",
        "chat 60",
    ]
    assert page.texts("[data-model='remote'] button") == []
    assert len(page.all("#live tbody tr")) == 5
    assert [text.split("\n")[0] for text in page.texts("#queue tbody td:nth-child(4)")] == ["5.4 s", "19 s", "–"]
    assert page.texts(".rows .label bdi") == ["florence-2", "gemma-3-12b", "llama-3.2-3b", "qwen3-vl-8b"]
    assert page.text("[data-total='requests']") == "1,284"
    assert len(page.all("#recent tbody tr")) == 8
    assert page.problems() == []


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_large_totals_are_short_and_within_their_cells(page: Page, width: int) -> None:
    """From a million on with four digits, the whole number beside the pointer; no word or number runs over the next."""
    told = {"requests": 12_345_678, "errors": 999_999, "prompt_tokens": 9_123_456_789, "completion_tokens": 1_412_345}
    page.resize(width, 900)
    with telling(Told(snapshot(totals={**told, "loads": 12_345, "evictions": 0}))) as url:
        open_view(page, f"{url}/ui")
        assert page.texts(".figures dd")[3:] == ["12.35M", "999,999", "1.412M", "9.123B", "12,345", "0"]
        assert page.find("[data-total='prompt_tokens']").get_attribute("title") == "9,123,456,789"
        over = "[...document.querySelectorAll('.figures dt, .figures dd')].filter((e) => e.scrollWidth > e.clientWidth)"
        assert page.run(f"return {over}.map((e) => e.textContent);") == []
    page.resize(1280, 900)


def test_a_bar_is_as_long_as_what_is_held(page: Page, address: str) -> None:
    """The parts of a card's bar have the shares of its memory, and all of it is in the legend."""
    open_view(page, f"{address}/ui")
    parts = page.run(
        "const w = document.querySelector('.stack').getBoundingClientRect().width;"
        "return [...document.querySelectorAll('.stack > i')].map((e) => e.getBoundingClientRect().width / w);"
    )
    assert parts == pytest.approx([9000 / 24564, 3100 / 24564, 6200 / 24564, 800 / 24564], abs=0.002)
    held = page.run("return [...document.querySelectorAll('.legend li')].slice(0, 5).map((e) => Number(e.dataset.mb));")
    assert sum(held) == 24564


def test_memory_that_is_not_free_yet(page: Page, told: Told, address: str) -> None:
    """What an engine that ended has not given back is a part of the bar of its own, so that it adds up."""
    open_view(page, f"{address}/ui")
    card = gpu_of([("llama-3.2-3b", 3100)]) | {"reserved_mb": 9100, "free_mb": 24564 - 9100 - 800}
    told.tell({"type": "gpus", "data": [card]})
    page.wait(lambda: any("being freed" in text for text in page.texts(".gpu .legend li")))
    held = page.run(
        "return [...document.querySelectorAll('.legend [data-of]')].slice(0, -1).map((e) => +e.dataset.mb);"
    )
    assert held == [3100, 6000, 800, 14664]


def test_nothing_yet(page: Page) -> None:
    """A server without models says what to do about that."""
    with telling(Told(snapshot())) as url:
        open_view(page, f"{url}/ui")
        assert "rolecall models scan" in page.text(".void")
        assert page.texts("section p.soft")[:1] != []
        assert page.problems() == []


def test_an_engine_that_fails(page: Page) -> None:
    """Its last lines are shown, when it is tried again, and the way to its output; so is a log that is not written."""
    told = Told(scenes.trouble())
    with telling(told) as url:
        open_view(page, f"{url}/ui")
        words = page.text(".trouble")
        assert "not within the file bounds" in words
        assert "3 times in a row" in words
        assert "tried again in" in words
        assert "No space left" in page.text("[data-problem='log']")
        page.click(".trouble button")
        page.until("#output pre", "server is listening")
        page.press(Keys.ESCAPE)
        page.click("[data-model='gemma-3-12b'] [data-act='load']")
        page.wait(lambda: told.posts == ["/v1/models/gemma-3-12b/load"])


def test_names_are_never_more_than_text(page: Page) -> None:
    """Markup in a name is shown as it is, long ones wrap, and what is written from the right stays in its place."""
    told = Told(scenes.hostile())
    with telling(told) as url:
        for view in VIEWS:
            page.resize(390, 844)
            open_view(page, url + view)
            page.wait(lambda: "<img src=x" in page.text("#view"))
            assert page.all("#view img") == []
            assert page.driver.title != "1"
            assert page.overflow() == 0
        page.resize(1280, 900)
        open_view(page, f"{url}/ui")
        page.find("#timeline-table-button").click()
        page.wait(lambda: len(page.all("#timeline tbody tr")) == 4)
        page.click(".model:nth-child(4) [data-act='pin']")
        page.wait(lambda: told.posts == ["/v1/models/a/b c?d#e%2F/pin"])
        assert page.problems() == []


@pytest.mark.parametrize("width", [1280, 820, 390])
def test_a_long_name_is_shown_in_full(page: Page, width: int) -> None:
    """Variants of a model differ at the end of their names: it is there to be read wherever one is named."""
    names = [f"unsloth/Qwen3-VL-8B-Instruct-GGUF:UD-Q{bits}_K_XL" for bits in (4, 6)]
    scene = snapshot(
        gpus=[gpu_of([(name, 4000) for name in names])],
        models=[model(name, "ready", roles={name: 50}, display_name=f"{name} by another name") for name in names],
        live=[live_row(number, name, role=name) for number, name in enumerate(names)],
        queue=[scenes.waiting(name, name, name, 1, 1, "ready", None) for name in names],
        history=[line(number, name, role=name) for number, name in enumerate(names)],
        timeline=[entry(60, name, "ready", 9.0, f"a request for {name}") for name in names],
    )
    page.resize(width, 900)
    with telling(Told(scene)) as url:
        open_view(page, f"{url}/ui")
        page.wait(lambda: page.is_shown(".rows"))
        assert page.run(CUT, "GGUF") == []
        page.click("#timeline-table-button")
        page.wait(lambda: page.is_shown("#timeline"))
        assert page.run(CUT, "GGUF") == []
        open_view(page, f"{url}/ui/requests")
        page.wait(lambda: page.is_shown("#history"))
        assert page.run(CUT, "GGUF") == []
        page.click("#history a")
        page.wait(lambda: page.is_shown("#request .facts"))
        assert page.run(CUT, "GGUF") == []


def test_more_models_than_colours(page: Page) -> None:
    """A colour that comes again has a pattern: in the bar no two models look the same, loaded or loading."""
    names = [f"model-{number:02}" for number in range(24)]
    for state in ("ready", "starting"):
        scene = snapshot(gpus=[gpu_of([(name, 900) for name in names])], models=[model(name, state) for name in names])
        with telling(Told(scene)) as url:
            open_view(page, f"{url}/ui")
            looks = "return [...document.querySelectorAll(arguments[0])].map((e) => getComputedStyle(e).background);"
            for place in (".stack > i[title]", ".gpu .legend .swatch.hue-0, .gpu .legend .swatch.hue-1"):
                found = page.run(looks, place)
                assert len(set(found)) == len(found) in {24, 6}


def test_what_is_not_kept_of_the_timeline(page: Page) -> None:
    """Where the server has forgotten the beginning it is shaded and said; a short timeline is all there was."""
    steps = [entry(600 - number, "alpha", ("load", "ready")[number % 2], 1.0) for number in range(500)]
    for entries, is_short in ((steps, False), (steps[1:], True)):
        with telling(Told(snapshot(timeline=entries))) as url:
            open_view(page, f"{url}/ui")
            page.wait(lambda: page.is_shown(".rows .lane"))
            assert page.is_shown("#forgotten") is not is_short
            assert len(page.all(".lane .is-unknown")) == (not is_short)
    with telling(Told(snapshot(timeline=steps))) as url:
        open_view(page, f"{url}/ui")
        share = page.run(
            "const lane = document.querySelector('.lane');"
            "return lane.querySelector('.is-unknown').getBBox().width / lane.clientWidth;"
        )
        assert share == pytest.approx(1 - 600 / 900, abs=0.02)


# -- as it changes


def test_what_comes_is_shown(page: Page, told: Told, address: str) -> None:
    """Each event moves what it is about, by one stream: nothing is asked again and again."""
    open_view(page, f"{address}/ui")
    told.tell({"type": "live", "active": 1, "data": [live_row(9, "llama-3.2-3b", tokens=5)]})
    page.wait(lambda: page.texts("#live tbody td:nth-child(5)") == ["5"])
    told.tell({"type": "queue", "waiting": 0, "data": []})
    page.until("#view", "Nothing waits.")
    told.tell({"type": "finished", "skipped": 0, "data": [line(0, "brand-new")]})
    page.wait(lambda: "brand-new" in page.text("#recent tbody tr"))
    told.tell({"type": "models", "data": [model("brand-new", "ready", vram_reserved_mb=100)]})
    page.wait(lambda: page.texts(".model h3") == ["brand-new"])
    told.tell({"type": "timeline", "skipped": 0, "data": [entry(0, "brand-new", "ready", 3.0)]})
    page.wait(lambda: page.run("return document.getElementById('spoken').textContent;") == "brand-new is loaded.")
    names = "return performance.getEntriesByType('resource').filter((e) => e.name.includes('/v1/')).length;"
    assert page.run(names) + told.connections <= 2
    assert told.connections == 1


def test_time_goes_by_without_the_server(page: Page, told: Told, address: str) -> None:
    """How long something waits moves every second, by the page's own clock, set by the server's."""
    open_view(page, f"{address}/ui")
    first = page.text("#queue tbody td:nth-child(3)")
    page.wait(lambda: page.text("#queue tbody td:nth-child(3)") != first)
    assert told.connections == 1


def test_focus_and_scroll_stay(page: Page) -> None:
    """With 20 models and 100 requests, updates change what has changed: no element that stays is made anew."""
    scene = scenes.crowd()
    told = Told(scene)
    with telling(told) as url:
        open_view(page, f"{url}/ui")
        page.wait(lambda: len(page.all("#live tbody tr")) == 100)
        page.run("document.querySelector('[aria-labelledby=live-title].scroll').scrollTop = 900;")
        page.run(
            "window.row = document.querySelector('[data-request=req_live50]'); row.querySelector('button').focus();"
        )
        page.run("window.top_ = document.querySelector('[aria-labelledby=live-title].scroll').scrollTop;")
        fewer = [
            {**row, "tokens": 1000 + number} for number, row in enumerate(scene["live"]["data"]) if number % 2 == 0
        ]
        told.tell({"type": "live", "active": 50, "data": fewer})
        page.wait(lambda: len(page.all("#live tbody tr")) == 50)
        assert page.run("return document.activeElement === row.querySelector('button') && row.isConnected;")
        assert "1,050" in page.run("return row.textContent;")
        same = [{**row, "tokens": 5000} for row in fewer]
        before = page.run(
            "return window.at_ = document.querySelector('[aria-labelledby=live-title].scroll').scrollTop;"
        )
        told.tell({"type": "live", "active": 50, "data": same})
        page.wait(lambda: "5,000" in page.run("return row.textContent;"))
        assert page.run("return document.querySelector('[aria-labelledby=live-title].scroll').scrollTop;") == before
        assert page.problems() == []


def test_a_search_of_models(page: Page) -> None:
    """Where there are many models they can be found by name and by role."""
    with telling(Told(scenes.crowd())) as url:
        open_view(page, f"{url}/ui")
        assert len(page.all(".model")) == 20
        page.write("input[type='search']", "embed")
        page.wait(lambda: len(page.all(".model")) == 5)
        page.find(".tools input[type='checkbox']").click()
        page.wait(lambda: len(page.all(".model")) == 3)


def test_a_server_that_goes_and_comes_back(page: Page, told: Told) -> None:
    """The page says that it is gone and how things were; it tries again by itself, or at once by a button."""
    with telling(told) as url:
        open_view(page, f"{url}/ui")
        port = int(url.rpartition(":")[2])
    page.until("#gone", "cannot be reached")
    assert page.text("#link") == "connection lost"
    assert len(page.all(".model")) == 5
    told.first = snapshot(models=[model("after", "ready")])
    with telling(told, port):
        page.run("document.querySelector('#again')?.click();")  # unless it has just tried by itself
        page.wait(lambda: page.texts(".model h3") == ["after"])
        assert page.text("#link") == "live"
        assert not page.is_shown("#gone .note")


def test_output_of_a_server_that_goes_and_comes_back(page: Page, told: Told) -> None:
    """What was shown stays while the server is away, and who had scrolled up is left there when it is back."""
    told.output = [f"line {number}" for number in range(300)]
    with telling(told) as url:
        open_view(page, f"{url}/ui")
        port = int(url.rpartition(":")[2])
        page.click("[data-model='qwen3-vl-8b'] [data-act='output']")
        page.until("#output pre", "line 299")
        page.until("#output-following", "following")
    page.until("#output", "The connection is lost")
    assert page.text("#output pre").endswith("line 299")
    assert page.text("#output-following") == ""
    page.run("document.querySelector('#output pre').scrollTop = 200;")
    page.wait(lambda: page.is_shown("#output-follow"))
    told.output.append("and more")
    with telling(told, port):
        page.until("#output pre", "and more")
        assert page.run("return document.querySelector('#output pre').scrollTop;") == 200


def test_a_stream_that_ends(page: Page, told: Told, address: str) -> None:
    """It is taken up again, and what is told then takes the place of what was before."""
    open_view(page, f"{address}/ui")
    told.first = snapshot(models=[model("second")])
    told.hang_up()
    page.wait(lambda: page.texts(".model h3") == ["second"])
    assert told.connections == 2


def test_a_server_that_has_too_many_watchers(page: Page, told: Told, address: str) -> None:
    """The page says what the server says, tries again, and is there once others have left."""
    told.refusal = (429, "32 clients watch already; close a page.")
    page.open(f"{address}/ui")
    page.until("#gone", "32 clients watch already")
    assert page.text("#link") == "not connected"
    page.wait(lambda: "32 clients watch already" in page.run("return document.getElementById('spoken').textContent;"))
    assert "scope" not in page.text("body")
    told.refusal = None
    page.wait(lambda: page.text("#link") == "live")
    assert not page.is_shown("#gone .note")


def test_who_goes_away_holds_no_stream(page: Page, told: Told, address: str) -> None:
    """A page that the browser keeps for the way back lets go: else a few visits would take all its connections."""
    for _ in range(8):
        open_view(page, f"{address}/ui")
        page.wait(lambda: page.text("#link") == "live")
        page.open(f"{address}/ui/datasets")
    page.wait(lambda: told.watchers == 0)
    page.driver.back()
    page.wait(lambda: page.text("#link") == "live")
    page.wait(lambda: told.watchers == 1)


def test_a_click_asks_the_server(page: Page, told: Told, address: str) -> None:
    """Load, unload, pin and stop are one request each."""
    open_view(page, f"{address}/ui")
    page.click("[data-model='florence-2'] [data-act='load']")
    page.wait(lambda: told.posts == ["/v1/models/florence-2/load"])
    page.click("[data-model='llama-3.2-3b'] [data-act='pin']")
    page.wait(lambda: told.posts[-1] == "/v1/models/llama-3.2-3b/unpin")
    page.click("[data-request='req_live3'] button")
    page.wait(lambda: told.posts[-1] == "/v1/requests/req_live3/cancel")
    assert "stopping" in page.text("[data-request='req_live3']")
    assert not page.find("[data-request='req_live3'] button").is_enabled()


@pytest.mark.parametrize(
    ("state", "answering", "waits", "words"),
    [
        ("ready", 2, 0, "alpha is answering 2 requests. Unload it all the same?"),
        (
            "ready",
            1,
            1,
            "alpha is answering 1 request. 1 request waits for alpha and will have it loaded again. Unload",
        ),
        ("starting", 0, 2, "2 requests wait for alpha and will have it loaded again. Unload it all the same?"),
        ("starting", 0, 0, None),
    ],
)
def test_unloading_what_is_in_use(page: Page, state: str, answering: int, waits: int, words: str | None) -> None:
    """Who unloads a model that answers, or that requests wait for, is asked first; a load by hand is given up."""
    by_hand = scenes.waiting(None, "alpha", None, 1, 1, state, 3.0) | {"purpose": "hand"}
    row = model("alpha", state, in_flight=answering, waiting=waits + 1)
    told = Told(snapshot(models=[row, model("beta", "ready")], queue=[by_hand]))
    with telling(told) as url:
        open_view(page, f"{url}/ui")
        page.click("[data-model='alpha'] [data-act='unload']")
        if words:
            alert = page.driver.switch_to.alert
            assert words in alert.text
            alert.dismiss()
        page.click("[data-model='beta'] [data-act='unload']")
        page.wait(lambda: "/v1/models/beta/unload" in told.posts)
        assert ("/v1/models/alpha/unload" in told.posts) is (words is None)


def test_who_waits_for_a_load(page: Page) -> None:
    """A request is told apart from a load by hand and from one at the start of the server."""
    rows = [scenes.waiting(id_, "alpha", None, 1, 1, "starting", 3.0) for id_ in ("req_1", None, None)]
    rows = [row | {"purpose": why} for row, why in zip(rows, ("request", "hand", "preload"), strict=True)]
    with telling(Told(snapshot(models=[model("alpha", "starting")], queue=rows))) as url:
        open_view(page, f"{url}/ui")
        assert page.texts("#queue td:first-child") == ["alpha", "alpha loaded by hand", "alpha loaded at the start"]


def test_how_many_are_loaded(page: Page) -> None:
    """Those that can answer, asleep or not; one that loads is counted by itself, and left out of "Loaded only"."""
    states = ("ready", "sleeping", "starting", "stopping", "stopped", "failed")
    rows = [model(f"{state}-{number}", state) for number in (1, 2) for state in states]
    with telling(Told(snapshot(models=rows))) as url:
        open_view(page, f"{url}/ui")
        page.click(".tools input[type='checkbox']")
        page.wait(lambda: page.texts(".model h3") == ["ready-1", "sleeping-1", "ready-2", "sleeping-2"])
        assert page.text("#models-title") == "Models 4 of 12 loaded, 2 loading"


def test_nothing_written_yet(page: Page) -> None:
    """A request that waits or is read has no tokens to tell; when none writes the speed of all is 0."""
    rows = [
        live_row(n, "alpha", state=state, ttft_ms=None, tokens=0, tokens_per_second=None)
        for n, state in enumerate(("waiting", "loading", "answering"))
    ]
    told = Told(snapshot(live=rows))
    with telling(told) as url:
        open_view(page, f"{url}/ui")
        assert page.texts("#live td:nth-child(5)") == ["–"] * 3
        assert page.text("[data-total='speed']") == "0"
        told.tell({"type": "live", "active": 0, "data": []})
        page.until("#view", "No request is being served.")
        assert page.text("[data-total='speed']") == "0"


def test_a_press_holds_no_connection(page: Page, told: Told, address: str) -> None:
    """Loading may take minutes: the page does not wait for that answer, else six of them would take all it has."""
    told.is_slow = True
    open_view(page, f"{address}/ui")
    for row in page.all(".model [data-act='load']"):
        row.click()
    page.wait(lambda: told.posts and len(told.let_go) == len(told.posts))
    assert all(path.endswith("/load") for path in told.posts)
    assert not page.is_shown("#problem")


def test_a_press_keeps_the_focus(page: Page) -> None:
    """Load becomes Unload, and Load again, under the focus; that of a Stop goes to its panel, not to the page's top."""
    told = Told(snapshot(models=[model("alpha")], live=[live_row(1, "alpha")]))
    with telling(told) as url:
        open_view(page, f"{url}/ui")
        page.run("document.querySelector('[data-act=load]').focus();")
        page.press(Keys.ENTER)
        for state, words in (("starting", "Unload"), ("ready", "Unload"), ("stopping", "Load"), ("stopped", "Load")):
            told.tell({"type": "models", "data": [model("alpha", state)]})
            shown = {"starting": "loading", "stopping": "ending", "stopped": "not loaded"}.get(state, state)
            page.until(".model .state", shown)
            assert page.run("return document.activeElement.textContent;") == words
        page.press(Keys.ENTER)
        page.wait(lambda: told.posts == ["/v1/models/alpha/load"] * 2)
        page.run("document.querySelector('[data-act=stop]').focus();")
        page.press(Keys.ENTER)
        told.tell({"type": "live", "active": 0, "data": []})
        page.until("#live-panel", "No request is being served.")
        assert page.focused() == "live-panel"


def test_whether_a_conversation_is_kept(page: Page) -> None:
    """The playground says so where the server's log has prompts."""
    for is_on, words in ((False, "nothing is kept"), (True, "kept in the request log")):
        with telling(Told(snapshot(server={"log_prompts": is_on}))) as url:
            open_view(page, f"{url}/ui/playground")
            page.until(".head", words)
            page.wait(lambda: page.focused() == "words")


def test_a_picture_that_the_server_would_refuse(page: Page, tmp_path: Path) -> None:
    """One that is larger than the server's setting is not even kept; one byte less is."""
    for name, size in (("large.png", 1001), ("small.png", 1000)):
        (tmp_path / name).write_bytes(encoded(scene(size=(8, 8)), "PNG").ljust(size, b"\0"))
    with telling(Told(snapshot(server={"max_image_bytes": 1000}))) as url:
        open_view(page, f"{url}/ui/playground")
        page.find("#files").send_keys(str(tmp_path / "large.png"))
        page.until("#problem", "1,001 bytes; the server takes up to 1,000")
        page.find("#files").send_keys(str(tmp_path / "small.png"))
        page.wait(lambda: len(page.all(".composer .thumbs img")) == 1)
        assert page.find(".composer .thumbs img").get_attribute("alt") == "small.png"


# -- requests


def test_one_request_in_full(page: Page, told: Told, address: str) -> None:
    """A sheet tells why the model was chosen, in words, and who was left out; the address and the keyboard know it."""
    open_view(page, f"{address}/ui/requests")
    page.wait(lambda: len(page.all("#history tbody tr")) == 40)
    page.run("document.querySelector('[data-open=req_0002]').focus();")
    page.press(Keys.ENTER)
    page.until("#decision", "would need a swap of 14 s")
    assert "its file is missing" in page.text("#request")
    assert "request=req_0002" in page.driver.current_url
    assert page.barriers() == []
    page.press(Keys.ESCAPE)
    page.wait(lambda: not page.is_shown("#request"))
    assert page.run("return document.activeElement.dataset.open;") == "req_0002"
    assert "request=" not in page.driver.current_url
    page.driver.back()
    page.until("#decision", "tolerance 15")
    assert told.asked == ["limit=50"]


def test_a_request_that_failed_in_full(page: Page, address: str) -> None:
    """Its error is said once, after a line of how it ended."""
    open_view(page, f"{address}/ui/requests?request=req_0003")
    page.until("#request", "The engine ended within the answer.")
    assert page.text("#request").count("The engine ended") == 1
    assert page.text("#request .sheet-body p").startswith("502 engine crashed llama-3.2-3b ")


def test_where_the_time_of_a_failed_request_went(page: Page) -> None:
    """One that no model answered has waited until it failed; an answer is not spoken of."""
    none = {"queue_ms": None, "load_ms": None, "ttft_ms": None, "completion_tokens": None}
    failed = {"status": 503, "error": "model_start_failed: ggml: no such file", **none}
    left = {"status": 499, "error": "client_disconnected: The client left.", **none}
    lines = [
        line(1, "alpha", model=None, duration_ms=11_000.0, **failed),
        line(2, "alpha", model=None, duration_ms=5_000.0, **left),
        line(3, "alpha", duration_ms=7_000.0, **{**none, "queue_ms": 2_000.0}),
    ]
    shown = (["until it failed 11 s"], ["until the client left 5.0 s"], ["waited 2.0 s", "answer 5.0 s"])
    with telling(Told(snapshot(history=lines))) as url:
        for number, words in enumerate(shown, 1):
            open_view(page, f"{url}/ui/requests?request=req_{number:04}")
            page.until("#request", "Where the time went")
            assert [text.replace("\n", " ") for text in page.texts("#request .legend li")] == words


def test_a_key_that_is_being_written(page: Page, told: Told, address: str) -> None:
    """Whoever goes elsewhere, or clears the filters, before the list is asked for it is not pulled back to it."""
    write = "const f = document.getElementById('filter-key'); f.value = 'x'; f.dispatchEvent(new Event('input'));"
    for selector in ("nav a[href='/ui']", "#clear"):
        open_view(page, f"{address}/ui/requests?status=error")
        page.wait(lambda: page.is_shown("#clear"))
        until = page.run(f"{write} document.querySelector(arguments[0]).click(); return performance.now();", selector)
        page.wait(lambda until=until: page.run("return performance.now();") > until + 600)  # type: ignore[misc]
        assert "key=" not in page.driver.current_url
    assert not any("key=" in query for query in told.asked)


def test_a_list_that_cannot_be_read(page: Page, told: Told) -> None:
    """Where the server is away, that is said once, and not that the log has nothing."""
    with telling(told) as url:
        open_view(page, f"{url}/ui")
    page.until("#gone", "cannot be reached")
    page.click("nav a[href='/ui/requests']")
    page.wait(lambda: page.is_shown("#filters") and "Reading the log" not in page.text("#view"))
    assert not page.is_shown("#none")
    assert page.text("main").count("cannot be reached") == 1


def test_filters_are_in_the_address(page: Page, told: Told, address: str) -> None:
    """What is chosen is asked of the server, stands in the address, and can be cleared; new lines must fit it too."""
    open_view(page, f"{address}/ui/requests?status=error")
    page.wait(lambda: told.asked == ["status=error&limit=50"])
    page.run(
        "const f = document.getElementById('filter-model'); f.value = 'florence-2';"
        "f.dispatchEvent(new Event('change', {bubbles: true}));"
    )
    page.wait(lambda: told.asked[-1] == "model=florence-2&status=error&limit=50")
    assert "model=florence-2" in page.driver.current_url
    bad = {"status": 500, "error": "internal: no"}
    new = [line(-1, "florence-2"), line(-2, "gemma-3-12b", **bad), line(-3, "florence-2", **bad)]
    told.tell({"type": "finished", "skipped": 0, "data": new})
    page.wait(lambda: len(page.all("#history tbody tr")) == 40 + 1)
    assert page.find("#history tbody tr").get_attribute("data-request") == "req_-003"
    page.click("#clear")
    page.wait(lambda: told.asked[-1] == "limit=50")


def test_a_busy_server_is_not_asked_again_and_again(page: Page, told: Told, address: str) -> None:
    """What was skipped is read anew some seconds later, once at a time, and only while the requests are looked at."""
    open_view(page, f"{address}/ui/requests")
    page.wait(lambda: len(page.all("#history tbody tr")) == 40)
    told.first["history"] = [*told.first["history"], line(-1, "skipped-one")]
    for number in range(20):
        told.tell({"type": "finished", "skipped": 9, "data": [line(-100 - number, "busy")]})
    page.click("nav a[href='/ui']")
    page.until("#recent", "busy")
    page.wait(lambda: page.run("return performance.now();") > 7000)
    assert told.asked == ["limit=50"]
    page.driver.back()
    page.until("#history", "skipped-one")
    assert told.asked == ["limit=50"] * 2
    told.first["history"] = [*told.first["history"], line(-2, "skipped-two")]
    for number in range(20):
        told.tell({"type": "finished", "skipped": 9, "data": [line(-200 - number, "busy")]})
    page.until("#history", "skipped-two")
    assert told.asked == ["limit=50"] * 3
    assert told.most_reading == 1


def test_a_request_that_is_not_known_is_looked_up_once(page: Page, told: Told, address: str) -> None:
    """All of the log may have to be searched for it: only its own end has it looked up again, however much ends."""
    late = {**line(-1, "late"), "request_id": "req_late"}
    open_view(page, f"{address}/ui/requests?request=req_late")
    page.until("#request", "There is no such request.")
    for number in range(20):
        told.tell({"type": "finished", "skipped": 9, "data": [line(-100 - number, "busy")]})
    page.wait(lambda: page.run("return performance.now();") > 7000)
    assert told.looked_up == ["req_late"]
    told.first["history"] = [*told.first["history"], late]
    told.tell({"type": "finished", "skipped": 0, "data": [late]})
    page.until("#request", "late")
    page.wait(lambda: page.is_shown("#request .facts"))
    assert told.looked_up == ["req_late"] * 2


def test_a_list_left_with_its_filter(page: Page, told: Told, address: str) -> None:
    """What ends while another view is shown is put into the list only if the list's own filter takes it."""
    open_view(page, f"{address}/ui/requests?status=error")
    page.wait(lambda: len(page.all("#history tbody tr")) == 40)
    page.click("nav a[href='/ui']")
    page.wait(lambda: page.is_shown("#recent"))
    new = [line(-1, "florence-2"), line(-2, "gemma-3-12b", status=500, error="internal: no")]
    told.tell({"type": "finished", "skipped": 0, "data": new})
    page.until("#recent tbody tr", "gemma-3-12b")
    page.driver.back()
    page.wait(lambda: len(page.all("#history tbody tr")) == 41)
    assert page.find("#history tbody tr").get_attribute("data-request") == "req_-002"
    assert told.asked == ["status=error&limit=50"]


def test_older_requests_stay_when_the_stream_is_taken_up_again(page: Page) -> None:
    """What ended meanwhile comes to the top; what was loaded and scrolled to stays, unless lines lie between."""
    told = Told(snapshot(history=scenes.history(120)))

    def rows() -> list[str | None]:
        return [row.get_attribute("data-request") for row in page.all("#history tbody tr")]

    with telling(told) as url:
        open_view(page, f"{url}/ui/requests")
        page.click("#older")
        page.wait(lambda: len(rows()) == 100)
        page.run("document.querySelector('[data-request=req_0080]').scrollIntoView();")
        at = "return document.querySelector('[data-request=req_0080]').getBoundingClientRect().top;"
        before = page.run(at)
        told.first["history"] = [*told.first["history"], *(line(-number, "after") for number in range(3))]
        told.hang_up()
        page.wait(lambda: len(rows()) == 103)
        assert rows()[:4] == ["req_-002", "req_-001", "req_0000", "req_0001"]
        page.wait(lambda: abs(page.run(at) - before) < 2)
        page.click("#older")
        page.wait(lambda: len(rows()) == 123)
        assert len(set(rows())) == 123
        told.first["history"] = [*told.first["history"], *(line(-number, "after") for number in range(1000, 1060))]
        told.hang_up()
        page.wait(lambda: len(rows()) == 50)
        page.click("#older")
        page.wait(lambda: len(rows()) == 100)
        assert rows()[59:61] == ["req_-1000", "req_-002"]


def test_new_requests_are_chosen_as_the_server_chooses(page: Page, address: str) -> None:
    """Any filter of the endpoint may stand in the address: the page takes the same lines as the server."""
    open_view(page, f"{address}/ui/requests")
    script = (
        "const [lines, filters] = arguments;"
        "return import('/ui/static/dashboard/wanted.js')"
        ".then(({isWanted}) => lines.map((line) => isWanted(line, filters, Date.now())));"
    )
    for name, text in FILTERS:
        filters = dict.fromkeys(("model", "role", "status", "since", "key"), "") | {name: text}
        assert page.run(script, VARIED, filters) == [is_wanted(each, name, text) for each in VARIED], (name, text)


def test_a_filter_in_the_address_is_followed(page: Page, told: Told, address: str) -> None:
    """New requests come by themselves to a list whose filters are none of those that are offered."""
    open_view(page, f"{address}/ui/requests?model=flo*&role=role:cap*&status=%3E%3D400")
    page.wait(lambda: told.asked == ["model=flo*&role=role%3Acap*&status=%3E%3D400&limit=50"])
    page.wait(lambda: len(page.all("#history tbody tr")) == 40)
    fits = {"role": "caption", "status": 503, "error": "overloaded: busy"}
    new = [line(-1, "florence-2", **fits), line(-2, "florence-2"), line(-3, "gemma-3-12b", **fits)]
    told.tell({"type": "finished", "skipped": 0, "data": new})
    page.wait(lambda: len(page.all("#history tbody tr")) == 41)
    assert page.find("#history tbody tr").get_attribute("data-request") == "req_-001"


# -- for everybody


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("scene", SCENES)
def test_no_barriers(page: Page, scene: str, scheme: str) -> None:
    """Nothing is found against WCAG AA, in both colours, with a mouse's window and a phone's, in any state."""
    page.colours(scheme)
    told = Told(SCENES[scene]())
    with telling(told) as url:
        for view in VIEWS:
            for width in (1280, 390):
                page.resize(width, 900)
                open_view(page, url + view)
                page.wait(lambda: page.text("#link") == "live")
                assert page.barriers() == []
                assert page.run(CONTRASTS) == []
                assert page.overflow() == 0


def test_by_keyboard(page: Page, told: Told, address: str) -> None:
    """The tabulator goes from the skip link over the pages to the models, and Enter does what a click does."""
    open_view(page, f"{address}/ui")
    page.press(Keys.TAB, Keys.ENTER)
    assert page.focused() == "content"
    for _ in range(12):
        page.press(Keys.TAB)
        if page.run("return document.activeElement.dataset.act;") == "load":
            break
    page.press(Keys.ENTER)
    page.wait(lambda: told.posts == ["/v1/models/florence-2/load"])
    names = {name for role, name in page.names_of_controls() if role == "button"}
    assert {"Load florence-2", "Pin llama-3.2-3b", "Output of gemma-3-12b"} <= names
    assert all(name for _, name in page.names_of_controls())


def test_landmarks_and_headings(page: Page, address: str) -> None:
    """One main, a navigation, one h1 and under it no level left out."""
    for view in VIEWS:
        open_view(page, address + view)
        levels = page.run(
            "return [...document.querySelectorAll('h1,h2,h3,h4')].filter((e) => e.checkVisibility())"
            ".map((e) => Number(e.tagName[1]));"
        )
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        assert len(page.all("main")) == len(page.all("nav")) == 1
        assert page.find("nav [aria-current='page']").get_attribute("href") == address + view


def test_the_pictures_of_the_documentation(page: Page, tmp_path: Path) -> None:
    """They can be drawn in the colours of the page, are not large, and those in `docs/` are named in it."""
    drawn = draw_dashboard(page, tmp_path)
    text = (DOCS / "dashboard.md").read_text(encoding="utf-8")
    for path in drawn:
        assert 5_000 < path.stat().st_size < 300_000
        with Image.open(path) as image:
            assert image.convert("RGB").getpixel((0, image.height - 1)) == GROUNDS.get(path.stem, LIGHT), path.name
        assert (DOCS / path.name).is_file()
        assert f"({path.name})" in text
