"""The report on prompts: its figures, whom it recommends, and names that try to break out of it."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import orjson
import pytest

from insight.written_lines import NOON, line
from rolecall.insight.log_database import opened_database
from rolecall.insight.log_statistics import Conditions
from rolecall.insight.pairings import Pairing, pairings
from rolecall.insight.prompt_figures import BINS, COLUMNS, FIGURE_NAMES, Figures
from rolecall.insight.prompt_report import MOST_PAIRS, Report, make_report, tables
from rolecall.insight.report_html import html
from rolecall.insight.report_markdown import escaped, markdown
from rolecall.insight.report_plots import plots

MODELS = {"qwen3-vl": (0.99, 0.02, 900), "florence-2": (0.9, 0.0, 200), "llava": (0.6, 0.3, 1500)}
"""Success, refusals and typical duration of each."""


def made(count: int, seed: int = 5) -> list[dict[str, Any]]:
    """Return fields of lines of known distributions, those without a prompt id too."""
    chance = random.Random(seed)
    found = []
    for n in range(count):
        model = chance.choice(list(MODELS))
        success, refusals, typical = MODELS[model]
        is_ok, streams = chance.random() < success, chance.random() < 0.7
        fields: dict[str, Any] = {
            "n": n,
            "model": model,
            "prompt_id": chance.choice(["caption", "tags", None]),
            "prompt_version": chance.choice(["1", None]),
            "status": 200 if is_ok else chance.choice([200, 499, 503]),
            "error": None if is_ok else "engine_error: x",
            "images": chance.randrange(3),
            "prompt_tokens": chance.randrange(2000) if is_ok else None,
            "completion_tokens": chance.choice([0, 15, 16, 31, 32, 700, 8192, 20_000]) if is_ok else None,
            "output_bytes": chance.randrange(1, 4000) if is_ok else None,
            "ttft_ms": round(chance.lognormvariate(5, 1), 3) if is_ok and streams else None,
            "duration_ms": round(chance.lognormvariate(0, 0.5) * typical, 3),
            "tokens_per_second": round(chance.gauss(50, 5), 2) if is_ok and streams else None,
            "finish_reason": chance.choice(["stop", "stop", "length"]) if is_ok else None,
        }
        if is_ok and chance.random() < 0.9:
            fields["markers"] = ["refusal"] * (chance.random() < refusals) + ["mine"] * (chance.random() < 0.5)
        found.append(fields)
    return found


def write(path: Path, all_fields: list[dict[str, Any]]) -> Path:
    lines = []
    for fields in all_fields:
        markers = fields.get("markers")
        written = orjson.loads(line(**{name: value for name, value in fields.items() if name != "markers"}))
        lines.append(orjson.dumps(written if markers is None else {**written, "markers": markers}))
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def report(path: Path, conditions: Conditions | None = None, least: int = 30) -> Report:
    with opened_database(path, COLUMNS) as database:
        return make_report(database, conditions or Conditions(), NOON, least)


def quantile(values: list[float], share: float) -> float | None:
    if not values:
        return None
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    high = min(int(at) + 1, len(ordered) - 1)
    return ordered[int(at)] + (ordered[high] - ordered[int(at)]) * (at - int(at))


def expected(group: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of a group, computed in Python."""
    ok = [each for each in group if each["status"] < 400 and not each["error"]]

    def known(name: str, among: list[dict[str, Any]]) -> list[Any]:
        return [each[name] for each in among if each[name] is not None]

    waited = sum(each["duration_ms"] for each in ok if each["completion_tokens"] is not None)
    values = {
        "requests": len(group),
        "left": sum(each["status"] == 499 for each in group),
        "succeeded": len(ok),
        "images": sum(each["images"] for each in group),
        "prompt_tokens": sum(known("prompt_tokens", group)),
        "completion_tokens": sum(known("completion_tokens", group)),
        "prompt_tokens_mean": sum(known("prompt_tokens", group)) / len(known("prompt_tokens", group)),
        "cut": sum(each["finish_reason"] == "length" for each in ok),
        "looked_at": sum("markers" in each for each in group),
        "tokens_per_second_all": sum(known("completion_tokens", ok)) * 1000 / waited,
    }
    for name in FIGURE_NAMES:
        if found := re.fullmatch(r"(.*)_p(\d+)", name):
            values[name] = quantile(known(found[1], ok), int(found[2]) / 100)
    return values


def test_figures_are_those_of_another_way(tmp_path: Path) -> None:
    """Every figure of every prompt, version and model is what Python computes of the same lines."""
    lines = made(3000)
    groups = defaultdict(list)
    for fields in lines:
        if fields["prompt_id"] is not None:
            groups[fields["prompt_id"], fields["prompt_version"], fields["model"], True].append(fields)
    found = report(write(tmp_path / "log.jsonl", lines)).figures
    assert {each.key for each in found} == set(groups)
    for each in found:
        group = groups[each.key]
        assert dict(each.values) == pytest.approx(expected(group))
        marked = [name for fields in group for name in fields.get("markers", [])]
        assert each.markers == {name: marked.count(name) for name in sorted(set(marked))}
        tokens = [fields["completion_tokens"] for fields in group if fields["completion_tokens"] is not None]
        assert each.lengths == [
            sum(low <= count < high for count in tokens)
            for low, high in zip(BINS, (*BINS[1:], float("inf")), strict=True)
        ]
    totals = [each for fields in lines if fields["prompt_id"] for each in [fields]]
    assert sum(each.values["requests"] for each in found) == len(totals)


def test_conditions_and_the_period(tmp_path: Path) -> None:
    """A report on a part of the log has that part alone, and says from when to when it is."""
    path = write(tmp_path / "log.jsonl", made(500))
    found = report(path, Conditions(model="qwen*", prompt="cap*", since=NOON + timedelta(seconds=100)))
    assert {(each.prompt, each.model) for each in found.figures} == {("caption", "qwen3-vl")}
    assert found.scope.first is not None
    assert found.scope.first.timestamp() >= NOON.timestamp() + 100
    assert report(path, Conditions(prompt="nothing")).figures == []


def figures(
    model: str, *, total: int, ok: int, refused: int = 0, ms: float | None = 100.0, prompt: str = "p"
) -> Figures:
    values = dict.fromkeys(FIGURE_NAMES) | {
        "requests": total,
        "left": 0,
        "succeeded": ok,
        "looked_at": ok,
        "duration_ms_p50": ms,
    }
    return Figures(prompt, None, model, served=True, values=values, markers={"refusal": refused})


def paired(*candidates: Figures) -> Pairing:
    return pairings(candidates)[0]


def test_success_goes_before_refusals_and_speed() -> None:
    """A model that surely succeeds less often is set aside, then one that refuses more, then the slower one."""
    sure = figures("sure", total=1000, ok=995, refused=1, ms=900)
    assert paired(sure, figures("fast", total=1000, ok=900, ms=10)).model == "sure"
    assert paired(sure, figures("coy", total=1000, ok=995, refused=200, ms=10)).model == "sure"
    assert paired(sure, figures("faster", total=1000, ok=993, ms=800)).model == "faster"
    assert paired(sure, figures("timeless", total=1000, ok=995, ms=None)).model == "sure"


def test_a_difference_that_is_no_chance_counts_though_the_bounds_of_both_meet() -> None:
    """91 % of 68 is more than 74 % of 73, whatever the time; likewise of refusals."""
    good = figures("good", total=68, ok=62, ms=1273)
    assert paired(good, figures("bad", total=73, ok=54, ms=1241)).model == "good"
    assert good.success.bounds[0] < figures("bad", total=73, ok=54).success.bounds[1]
    willing = figures("willing", total=100, ok=100, refused=5, ms=1273)
    assert paired(willing, figures("coy", total=100, ok=100, refused=16, ms=1241)).model == "willing"


def test_a_model_of_which_little_is_known_shelters_no_other() -> None:
    """30 of 30 may be no better than 900 of 1,000; 999 of 1,000 is, whoever has the best share. So of refusals."""
    little = figures("little", total=30, ok=30, ms=3000)
    solid = figures("solid", total=1000, ok=999, refused=1, ms=900)
    succeeded = paired(little, solid, figures("flaky", total=1000, ok=900, ms=500))
    assert succeeded.model == "solid"
    assert "flaky succeeds less often (90 %)" in succeeded.why
    assert "little may be as good and takes 3.0 s" in succeeded.why
    willing = paired(little, solid, figures("coy", total=1000, ok=999, refused=80, ms=500))
    assert willing.model == "solid"
    assert "coy refuses more often (8.0 %)" in willing.why


def test_a_difference_that_is_no_difference_does_not_count() -> None:
    """39 of 40 is not worse than 40 of 40: the faster one is taken."""
    slow = figures("slow", total=40, ok=40, ms=900)
    assert paired(slow, figures("fast", total=40, ok=39, ms=100)).model == "fast"


def test_too_few_requests_are_told() -> None:
    """Below 30 nothing is recommended; a model with few is named beside one with enough."""
    few = paired(figures("a", total=29, ok=29), figures("b", total=3, ok=3))
    assert few.model is None
    assert few.why == "not enough data: a has 29, b has 3 of 30 requests"
    mixed = paired(figures("a", total=30, ok=30), figures("b", total=3, ok=3, ms=1))
    assert mixed.model == "a"
    assert "not enough data of others (b has 3 of 30)" in mixed.why
    nobody = Figures("p", None, "role:x", served=False, values=figures("x", total=99, ok=0).values)
    assert paired(nobody).why == "not enough data: no model has answered"


def test_the_reasons_name_the_others() -> None:
    """Each other model has its reason, and the rate its bounds."""
    why = paired(
        figures("best", total=200, ok=200, ms=1200),
        figures("worse", total=200, ok=100),
        figures("coy", total=200, ok=200, refused=90),
        figures("slow", total=200, ok=200, ms=3000),
    ).why
    assert why.startswith("succeeds in 100 % (98 to 100 %) of 200, refuses 0 %, takes 1.2 s")
    assert "worse succeeds less often (50 %)" in why
    assert "coy refuses more often (45 %)" in why
    assert "slow may be as good and takes 3.0 s" in why


def test_nobody_is_recommended_who_never_succeeded() -> None:
    """Where all fail there is no model that suits; one that succeeds at all goes before those that never do."""
    none = paired(figures("bad", total=40, ok=0, ms=None), figures("few", total=2, ok=2))
    assert none.model is None
    assert none.why == "no model has succeeded: bad in none of 40; not enough data of others (few has 2 of 30)"
    coy = figures("coy", total=40, ok=1, refused=1)
    rare = paired(figures("bad", total=40, ok=0, ms=None), coy)
    assert rare.model == "coy"
    assert "bad succeeds less often (0 %)" in rare.why


def test_a_version_that_is_empty_is_none(tmp_path: Path) -> None:
    """Rows that look alike are one row; an id that is empty is none, and who reached nothing nameless is told so."""
    path = tmp_path / "log.jsonl"
    path.write_bytes(
        line(1, prompt_id="p", prompt_version="")
        + line(2, prompt_id="p")
        + line(3, prompt_id="")
        + line(4, prompt_id="p", model=None, status=503, error="x")
    )
    assert [row[:4] for row in tables(report(path))[1].rows] == [
        ["p", "-", "demo-chat", "2"],
        ["p", "-", "(not reached)", "1"],
    ]


def test_every_class_of_lengths_is_in_a_table(tmp_path: Path) -> None:
    """What the plots of lengths show stands in a table, and so in every form."""
    path = write(tmp_path / "log.jsonl", made(300))
    found = report(path)
    (table,) = [table for table in tables(found) if table.title == "Classes of lengths"]
    assert table.heads[4:] == ("0", "16", "32", "64", "128", "256", "512", "1024", "2048", "4096", "8192+")
    for row, each in zip(table.rows, found.figures, strict=True):
        assert row[3] == str(sum(each.lengths))
        assert row[4:] == [f"{100 * count / sum(each.lengths):.1f}" for count in each.lengths]


def busy(path: Path) -> Path:
    """Write a log of 700 prompts with one request, and after them one with two models, of which one is rare."""
    rare = [{"n": 1, "prompt_id": "p", "model": "rare"}]
    often = [{"n": n, "prompt_id": "p", "model": "often"} for n in range(40)]
    return write(path, [{"n": n, "prompt_id": f"a-{n:03}"} for n in range(700)] + often + rare)


def test_the_busiest_are_shown_and_the_rest_is_told(tmp_path: Path) -> None:
    """An id of its own for each request makes no page that nobody can open; what is recommended knows all models."""
    path = busy(tmp_path / "log.jsonl")
    found = report(path)
    assert len(found.figures) < 510
    shown = found.shown()
    assert len(shown.figures) == MOST_PAIRS
    assert shown.pairings[-1].prompt == "p"
    assert shown.pairings[-1].model == "often"
    assert "rare has 1 of 30" in shown.pairings[-1].why
    said = "Shown are the 500 pairs of prompt and model with most requests, of 702; 701 have one request alone."
    for text in (html(found), markdown(found).replace("\\", "")):
        assert "741 requests with a prompt id" in text
        assert said in text
        assert "a-498" in text
        assert "a-600" not in text


def test_all_are_there_on_demand(tmp_path: Path) -> None:
    """Without a bound every pair has its figures."""
    with opened_database(busy(tmp_path / "log.jsonl"), COLUMNS) as database:
        whole = make_report(database, Conditions(), NOON, most=None)
    assert len(whole.figures) == len({each.key for each in whole.figures}) == whole.scope.pairs == 702
    assert len(whole.shown().figures) == MOST_PAIRS


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</svg></style><script>alert(1)</script>",
    "a | b\n| c",
    "![x](http://evil.example/x.png) [y](javascript:alert(1)) `z` **b**",
    "\x1b[31mred\x00\x07\u202eright",
    "--><!--",
    "&lt;b&gt;",
    "]]>{{x}}${y}",
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Report:
    lines = [
        {**fields, "prompt_id": name, "model": name, "prompt_version": name} for name in HOSTILE for fields in made(40)
    ]
    return report(write(tmp_path_factory.mktemp("log") / "log.jsonl", lines))


class Elements(HTMLParser):
    """The names of all elements and attributes of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_names_cannot_break_out_of_the_page(hostile: Report) -> None:
    """No name makes an element, an attribute or a request; it stands there as it was written."""
    page = html(hostile)
    found = Elements(page)
    assert found.names.isdisjoint({"script", "img", "iframe", "link", "object", "embed", "form", "base", "b"})
    assert not any(name.startswith("on") for name in found.attributes)
    assert not found.attributes & {"src", "srcset", "action"}
    assert "<script>alert(1)</script>" in found.text
    assert not set(page) & set("\x00\x07\x1b\u202e")
    assert set(re.findall(r'(?:href|xlink:href)="([^"]*)"', page)) <= {
        f"#{each.lower().replace(' ', '-')}"
        for each in ("Recommended pairings", "Success", "Speed", "Lengths", "Classes of lengths", "Markers", "Plots")
    }
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org)", page.replace("http://evil.example/x.png", ""))


def test_names_cannot_break_out_of_markdown(hostile: Report) -> None:
    """Each row has as many cells as its head, and no mark of a name is one of Markdown."""
    text = markdown(hostile)
    assert not set(text) & set("\x00\x07\x1b\u202e")
    assert "<" not in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1
    names = re.findall(r"^\| (.*?) \|", text, re.MULTILINE)
    assert not any(re.search(r"(?<!\\)[`*\[\]!]", name) for name in names)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("www.evil.example", r"www\.evil\.example"),
        ("mail me@evil.example", "mail me\\@\u2060evil\\.example"),
        ("@octocat", "\\@\u2060octocat"),
    ],
)
def test_what_readers_of_markdown_make_a_link_of_themselves(name: str, written: str) -> None:
    """No address is one: GitHub looks for those of mail after escapes are undone, so that the @ ends with a joiner."""
    assert escaped(name) == written


def test_every_plot_says_what_it_shows(hostile: Report) -> None:
    """A plot has a title and words for those who do not see it; its figures are in the tables."""
    drawn = plots(hostile)
    assert len(drawn) >= 4
    page = html(hostile)
    assert page.count('role="img"') == len(drawn)
    assert all(plot.title and plot.words and plot.svg.startswith("<svg") for plot in drawn)
    assert "<script" not in "".join(plot.svg for plot in drawn)


UUID = "3f2b8c1e-5d7a-4e9b-8a6c-0d1e2f3a4b5c"


def test_bars_of_different_models_have_different_names(tmp_path: Path) -> None:
    """However long the prompt's id, version and model are to be seen, too, and that a model was not reached."""
    models = ["qwen3-vl-8b-instruct-q4_k_m", "qwen3-vl-8b-instruct-q8_0", "florence-2-large"]
    lines = [{"n": n, "prompt_id": UUID, "prompt_version": "2", "model": model} for n, model in enumerate(models)]
    lines.append({"n": 9, "prompt_id": UUID, "model": None, "requested_model": "nobody", "status": 503, "error": "x"})
    drawn = plots(report(write(tmp_path / "log.jsonl", lines)))
    names = re.findall(r">(3f2b[^<]*)<", drawn[0].svg)
    assert sorted(set(names)) == [
        "3f2b8c1e…f3a4b5c 2, florence-2-large",
        "3f2b8c1e…f3a4b5c 2, qwen3-vl-8…ct-q4_k_m",
        "3f2b8c1e…f3a4b5c 2, qwen3-vl-8…ruct-q8_0",
        "3f2b8c1e…f3a4b5c, nobody (not reached)",
    ]


@pytest.mark.parametrize("ok", [0, 5])
def test_the_axis_of_success_is_that_of_percent(ok: int, tmp_path: Path) -> None:
    """It ends at 100, so that the bounds of confidence are within the picture, however little succeeds."""
    lines = [{"n": n, "prompt_id": "p", "status": 200 if n < ok else 502} for n in range(10)]
    (plot,) = [plot for plot in plots(report(write(tmp_path / "log.jsonl", lines))) if plot.title.startswith("Success")]
    assert re.findall(r">(\d+)</text>", plot.svg) == ["0", "20", "40", "60", "80", "100"]


def test_the_page_is_the_same_for_the_same_report(hostile: Report) -> None:
    """Nothing in it is drawn by lot: two pages of one report can be compared."""
    assert html(hostile) == html(hostile)


def test_tables_have_as_many_cells_as_heads(hostile: Report) -> None:
    """Every row fits its head, in every table."""
    made_tables = tables(hostile)
    titles = ["Recommended pairings", "Success", "Speed", "Lengths", "Classes of lengths", "Markers"]
    assert [table.title for table in made_tables] == titles
    assert all(len(row) == len(table.heads) for table in made_tables for row in table.rows)
