"""The report on prompts in a real browser: as a file, in light and dark, on a wide screen and on a phone."""

from __future__ import annotations

from pathlib import Path

import pytest

from browser.page import Page
from insight.test_prompt_report import made, report, write
from rolecall.insight.report_html import html

WIDTHS = (1280, 390)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    page = folder / "report.html"
    page.write_text(html(report(write(folder / "log.jsonl", made(1500)))), encoding="utf-8")
    return page


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_the_page_fits_and_shows_its_plots(width: int, colours: str, file: Path, page: Page) -> None:
    """It opens from the disk without a complaint, is never wider than the screen, and every plot is drawn."""
    page.resize(width, 900)
    page.colours(colours)
    page.driver.get(file.as_uri())
    run = page.driver.execute_script
    assert run("return document.documentElement.scrollWidth") <= width
    boxes = run("return [...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().height)")
    assert len(boxes) >= 5
    assert min(boxes) > 100
    ink, paper = run("const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]")
    assert (_light(ink) > _light(paper)) == (colours == "dark")
    label = run("return getComputedStyle(document.querySelector('figure svg .axis text')).fill")
    assert _light(label) == _light(ink)
    assert page.barriers() == []
    assert page.problems() == []


def _light(colour: str) -> int:
    """Return how light a colour is, 0 to 765."""
    return sum(map(int, colour[colour.index("(") + 1 : -1].split(",")[:3]))


def test_tables_are_reached_by_keyboard(file: Path, page: Page) -> None:
    """Each table that may scroll can be focused, has a name, and its rows and columns have heads."""
    page.driver.get(file.as_uri())
    run = page.driver.execute_script
    regions = run(
        "return [...document.querySelectorAll('[role=region]')].map("
        "r => [r.tabIndex, document.getElementById(r.getAttribute('aria-labelledby')).textContent])"
    )
    assert [index for index, _ in regions] == [0] * 6
    titles = ["Recommended pairings", "Success", "Speed", "Lengths", "Classes of lengths", "Markers"]
    assert [name for _, name in regions] == titles
    assert run("return document.querySelectorAll('tbody tr').length") == run(
        "return document.querySelectorAll('tbody tr > th[scope=row]').length"
    )
