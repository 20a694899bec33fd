"""A report as one web page that needs no other file and no host, in light and dark, for wide and narrow screens."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rolecall.insight.prompt_report import Report, Table, tables
from rolecall.insight.report_plots import NoPlots, Plot, plots
from rolecall.insight.report_words import period, printable, remarks

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfc; --ink: #1c1e21; --soft: #62676e; --line: #d9dce0; --band: #f1f3f4;
  --accent: #0b5cad; --series-0: #2f6fb3; --series-1: #d9822b; --series-2: #3d8f5a; --series-3: #a8477f;
  --series-4: #7a6bc4; --series-5: #8a7a2e; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --ink: #e6e8ea; --soft: #9ba1a8; --line: #363b41;
  --band: #1f2327; --accent: #7db7f5; --series-0: #6aa9ea; --series-1: #eda65a; --series-2: #6dc08b;
  --series-3: #d97fb4; --series-4: #a99bf0; --series-5: #c9b55c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .25rem; }
p { margin: .25rem 0 .75rem; max-width: 60rem; }
.note, figcaption, nav { color: var(--soft); font-size: .9rem; }
nav a { color: var(--accent); margin-right: 1rem; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
.wide:focus-visible, figure:focus-visible, a:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { padding: .35rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { background: var(--band); white-space: nowrap; }
tbody th { font-weight: 600; min-width: 7rem; max-width: 20rem; }
td { max-width: 34rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td:nth-child(3) { min-width: 9rem; }
td:last-child:not(.number) { min-width: 18rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 32rem), 1fr)); gap: 1.5rem;
  align-items: start; }
.pygal-chart .guide.line, .pygal-chart .major.guide.line { stroke: var(--line) !important;
  stroke-dasharray: none !important; }
figure { margin: 0; padding: .75rem; border: 1px solid var(--line); border-radius: 6px; min-width: 0;
  overflow-x: auto; }
figure svg { display: block; width: 100%; min-width: 30rem; height: auto; }
figure h3 { margin: 0 0 .25rem; font-size: 1rem; }
@media print { body { max-width: none; } .wide, figure { overflow: visible; } }
"""


def html(report: Report) -> str:
    """Return the whole page; without the library that draws it has a remark instead of plots."""
    made = tables(report)
    words = [period(report), *remarks(report)]
    try:
        drawn = plots(report)
    except NoPlots as error:
        drawn = []
        words.append(f"This page has no plots: {error}.")
    titles = [*(table.title for table in made), *(["Plots"] if drawn else [])]
    links = "".join(f'<a href="#{_id(title)}">{escape(title)}</a>' for title in titles)
    body = [
        "<header><h1>Prompts</h1>",
        *(f"<p>{_text(each)}</p>" for each in words),
        f'<nav aria-label="Sections">{links}</nav></header><main>',
        *map(_table, made),
        *([_plots(drawn)] if drawn else []),
        f'</main><footer><p class="note">Made by rolecall, {report.made.astimezone():%Y-%m-%d %H:%M}.</p></footer>',
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Prompts</title>'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _table(table: Table) -> str:
    kinds = [' class="number"' if at in table.right else "" for at in range(len(table.heads))]
    heads = "".join(f'<th scope="col"{kind}>{_text(head)}</th>' for head, kind in zip(table.heads, kinds, strict=True))
    rows = "\n".join(_row(row, kinds) for row in table.rows)
    name = _id(table.title)
    return (
        f'<section><h2 id="{name}">{_text(table.title)}</h2>'
        f'<p class="note">{_text(table.note)}</p>'
        f'<div class="wide" tabindex="0" role="region" aria-labelledby="{name}"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>\n{rows}\n</tbody></table></div></section>"
    )


def _row(row: Sequence[str], kinds: Sequence[str]) -> str:
    cells = "".join(f"<td{kind}>{_text(cell)}</td>" for cell, kind in zip(row[1:], kinds[1:], strict=True))
    return f'<tr><th scope="row">{_text(row[0])}</th>{cells}</tr>'


def _plots(drawn: Sequence[Plot]) -> str:
    figures = "\n".join(
        f'<figure tabindex="0"><h3>{_text(plot.title)}</h3><div role="img" aria-label="{_text(plot.words)} '
        f'The figures are in the tables above.">{plot.svg}</div></figure>'
        for plot in drawn
    )
    return (
        '<section><h2 id="plots">Plots</h2><p class="note">The same figures, drawn. Lines on '
        f'bars of success are the bounds of 95 % confidence.</p><div class="plots">{figures}</div></section>'
    )


def _id(title: str) -> str:
    return title.lower().replace(" ", "-")


def _text(text: str) -> str:
    return escape(printable(text))
