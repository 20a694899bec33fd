"""Draws docs/performance.svg from what page.py gives on stdin, in an environment of its own, which has matplotlib."""

from __future__ import annotations

import json
import sys
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

OURS, OTHERS, LIMIT, INK = "#2f6fb2", "#b9c0c8", "#c0392b", "#333333"


def main() -> None:
    """Draw one panel under the other."""
    panels: list[dict[str, Any]] = json.load(sys.stdin)
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "rolecall", "font.size": 10, "text.color": INK})
    heights = [len(panel["bars"]) for panel in panels]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(8, 0.9 * len(panels) + 0.28 * sum(heights)), height_ratios=heights, squeeze=False
    )
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        draw(axis, panel)
    figure.tight_layout(h_pad=1.5)
    figure.savefig(sys.argv[1], facecolor="white", metadata={"Date": None, "Creator": None})


def draw(axis: Any, panel: dict[str, Any]) -> None:
    """Draw horizontal bars with their values, on a logarithmic scale: they differ by three orders of magnitude."""
    bars = sorted(panel["bars"], key=lambda bar: bar["value"], reverse=True)
    values = [bar["value"] for bar in bars]
    drawn = axis.barh(
        [bar["name"] for bar in bars], values, color=[OURS if bar["is_ours"] else OTHERS for bar in bars], height=0.7
    )
    axis.set_xscale("log")
    axis.set_xlim(min(values) / 3, max(values) * 4)
    axis.bar_label(drawn, [f"{value:.3g} {panel['unit']}" for value in values], padding=4, color=INK)
    if panel["limit"] is not None:
        axis.axvline(panel["limit"], color=LIMIT, linestyle="--", linewidth=1)
    axis.set_title(panel["title"], loc="left", fontsize=11, fontweight="bold")
    axis.tick_params(axis="both", length=0, colors=INK)
    axis.get_xaxis().set_visible(False)
    axis.spines[["top", "right", "bottom", "left"]].set_visible(False)


if __name__ == "__main__":
    main()
