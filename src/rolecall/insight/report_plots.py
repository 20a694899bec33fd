"""The plots of a report, as SVG within the page: drawn by pygal, coloured by the page's style in light and dark."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rolecall.insight.prompt_figures import Figures
from rolecall.insight.prompt_report import Report, length_classes
from rolecall.insight.report_words import printable

if TYPE_CHECKING:
    from pygal.graph.graph import Graph

MOST_BARS = 16
MOST_PROMPTS = 6
SERIES = 6
"""Colours of the page's style: ``--series-0`` and so on."""
_NAME = 38
"""Characters of a name in a legend."""
_PROMPT, _VERSION, _MODEL, _NOT_REACHED = 16, 6, 20, 8
"""Characters of what stands beside a bar."""
_MOST_STEPS = 6
"""Of the axis below bars: the names leave it little room."""
_COLUMNS = {1: 1, 2: 2, 3: 1, 4: 2, 5: 1, 6: 2}
"""Of the legend, by series: only whole rows get room."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing, its title, and in words what it shows."""

    title: str
    words: str
    svg: str


class NoPlots(Exception):
    """The library that draws is not installed; the message says what to do."""


def plots(report: Report) -> list[Plot]:
    """Return the plots of a report: of the busiest prompts and models. Raises ``NoPlots``."""
    try:
        import pygal  # noqa: PLC0415, F401 - never in a server
    except ImportError:
        raise NoPlots("the plots need pygal: pip install pygal") from None
    busiest = sorted(report.figures, key=lambda each: -each.values["requests"])[:MOST_BARS]
    of = "of the busiest prompts and models" if len(busiest) < report.scope.pairs else "by prompt and model"
    made = [
        _bars("success", f"Success {of}, in percent", busiest, {"success": _success}, range=(0, 100)),
        _bars(
            "speed",
            f"Tokens a second {of}",
            busiest,
            {"of streams, median": _value("tokens_per_second_p50"), "over all": _value("tokens_per_second_all")},
        ),
        _bars(
            "ttft",
            f"Milliseconds to the first token {of}",
            busiest,
            {f"p{share}": _value(f"ttft_ms_p{share}") for share in (50, 95)},
        ),
        *_length_plots(busiest),
    ]
    return [plot for plot in made if plot is not None]


def _value(name: str) -> Callable[[Figures], Any]:
    return lambda each: each.values[name] and round(each.values[name], 1)


def _success(each: Figures) -> Any:
    low, high = each.success.bounds
    if each.success.share is None:
        return None
    return {"value": 100 * each.success.share, "ci": {"low": 100 * low, "high": 100 * high}}


def _bars(
    name: str, title: str, shown: Sequence[Figures], series: dict[str, Callable[[Figures], Any]], **options: Any
) -> Plot | None:
    shown = [each for each in shown if any(value(each) is not None for value in series.values())]
    columns = {label: [value(each) for each in shown] for label, value in series.items()}
    columns = {label: values for label, values in columns.items() if any(value is not None for value in values)}
    if not columns:
        return None
    import pygal  # noqa: PLC0415 - see above

    height = 80 + (22 * len(columns) + 14) * len(shown)
    chart = _chart(pygal.HorizontalBar, name, height, len(columns), min=0, max_scale=_MOST_STEPS, **options)
    chart.x_labels = [_label(each) for each in shown][::-1]
    for label, values in columns.items():
        chart.add(label, values[::-1])
    return _plot(chart, title, f"{title}: bars for {len(shown)} pairs of prompt and model.")


def _length_plots(shown: Sequence[Figures]) -> list[Plot | None]:
    prompts = list(dict.fromkeys((each.prompt, each.version) for each in shown if any(each.lengths)))[:MOST_PROMPTS]
    return [
        _length_plot(at, [each for each in shown if (each.prompt, each.version) == key and any(each.lengths)][:SERIES])
        for at, key in enumerate(prompts)
    ]


def _length_plot(at: int, shown: Sequence[Figures]) -> Plot:
    import pygal  # noqa: PLC0415 - see above

    chart = _chart(pygal.Bar, f"length-{at}", 240 + 20 * len(shown), len(shown), min=0)
    chart.x_labels = length_classes()
    for each in shown:
        chart.add(_short(each.model, _NAME), [round(share, 1) for share in each.length_shares])
    prompt = printable(shown[0].prompt) + (f" {printable(shown[0].version)}" if shown[0].version else "")
    title = f"Lengths of answers to {prompt}: percent of answers, by tokens"
    return _plot(chart, title, f"{title}; bars for {len(shown)} models in {len(length_classes())} classes.")


def _chart(kind: type[Graph], name: str, height: int, series: int, **options: Any) -> Graph:
    from pygal.style import Style  # noqa: PLC0415 - see above

    colours = tuple(f"var(--series-{at % SERIES})" for at in range(max(series, 1)))
    style = Style(
        background="transparent",
        plot_background="transparent",
        foreground="var(--ink)",
        foreground_strong="var(--ink)",
        foreground_subtle="var(--soft)",
        colors=colours,
        value_colors=("var(--ink)",) * len(colours),
        font_family="inherit",
        label_font_size=13,
        major_label_font_size=13,
        legend_font_size=13,
        opacity=".85",
    )
    chart = kind(
        js=[],
        style=style,
        width=660,
        height=height,
        disable_xml_declaration=True,
        explicit_size=False,
        legend_at_bottom=True,
        legend_at_bottom_columns=_COLUMNS[min(series, SERIES)],
        show_legend=series > 1,
        truncate_label=-1,
        truncate_legend=-1,
        margin=12,
        **options,
    )
    chart.uuid = f"plot-{name}"
    return chart


def _plot(chart: Graph, title: str, words: str) -> Plot:
    return Plot(
        title, words, re.sub(r"<!--.*?-->|<script.*?</script>", "", chart.render(is_unicode=True), flags=re.DOTALL)
    )


def _label(each: Figures) -> str:
    """Return what a bar is called: prompt, version and model, each shortened for itself, so that all can be told."""
    version = f" {_short(each.version, _VERSION)}" if each.version else ""
    model = _short(each.model, _MODEL if each.served else _NOT_REACHED)
    return f"{_short(each.prompt, _PROMPT)}{version}, {model if each.served else f'{model} (not reached)'.strip()}"


def _short(text: str, most: int) -> str:
    """Return a name of at most so many characters: its beginning and its end, where names of one family differ."""
    text = printable(text)
    if len(text) <= most:
        return text
    end = (most - 1) // 2
    return f"{text[: most - 1 - end]}…{text[-end:]}"
