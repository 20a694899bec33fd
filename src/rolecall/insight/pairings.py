"""Which model for which prompt: success first, then refusals, then speed; and "not enough data" where that is so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rolecall.core.rates import Rate, difference
from rolecall.insight.prompt_figures import Figures, rate_dict

LEAST_REQUESTS = 30
"""With fewer, the interval of a rate is wider than 12 points even if no request failed."""


@dataclass(frozen=True, slots=True)
class Pairing:
    """The model that suits a prompt best, None where nothing can be said; ``why`` is the reason in words."""

    prompt: str
    version: str | None
    model: str | None
    why: str
    figures: Figures | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        rates = {"success": rate_dict(self.figures.success)} if self.figures else {}
        return {"prompt": self.prompt, "version": self.version, "model": self.model, "why": self.why, **rates}


def pairings(figures: Iterable[Figures], least: int = LEAST_REQUESTS) -> list[Pairing]:
    """Return a pairing for each prompt in each version; ``figures`` are sorted by these."""
    return [
        _pairing(prompt, version, [each for each in group if each.served], least)
        for (prompt, version), group in groupby(figures, lambda each: (each.prompt, each.version))
    ]


def _pairing(prompt: str, version: str | None, candidates: Sequence[Figures], least: int) -> Pairing:
    enough = [each for each in candidates if each.success.total >= least]
    few = [f"{each.model} has {each.success.total}" for each in candidates if each not in enough]
    if not enough:
        seen = f": {', '.join(few)} of {least} requests" if few else ": no model has answered"
        return Pairing(prompt, version, None, f"not enough data{seen}")
    able = [each for each in enough if each.success.count]
    if not able:
        failed = ", ".join(f"{each.model} in none of {each.success.total}" for each in enough)
        return Pairing(prompt, version, None, "; ".join([f"no model has succeeded: {failed}", *_others(few, least)]))
    sure = _not_worse(able, lambda each: each.success, higher=True)
    willing = _not_worse(sure, lambda each: each.refusals, higher=False)
    best = min(willing, key=lambda each: (_ms(each), -each.success.total, each.model))
    words = [_said(best), *_beaten(best, enough, sure, willing), *_others(few, least)]
    return Pairing(prompt, version, best.model, "; ".join(words), best)


def _others(few: Sequence[str], least: int) -> Iterable[str]:
    if few:
        yield f"not enough data of others ({', '.join(few)} of {least})"


def _not_worse(candidates: Sequence[Figures], rate: Callable[[Figures], Rate], *, higher: bool) -> list[Figures]:
    """Return those that may be as good as each of the others: no difference to their disadvantage leaves 0 out.

    The best share alone would not do: where little is known of its model, worse ones hold their own against it.
    """

    def is_better(one: Figures, other: Figures) -> bool:
        low, high = difference(rate(one), rate(other))
        return low > 0 if higher else high < 0

    return [each for each in candidates if not any(is_better(other, each) for other in candidates)]


def _ms(figures: Figures) -> float:
    found = figures.values["duration_ms_p50"]
    return float("inf") if found is None else float(found)


def _beaten(
    best: Figures, enough: Sequence[Figures], sure: Sequence[Figures], willing: Sequence[Figures]
) -> Iterable[str]:
    if len(enough) == 1:
        yield "no other has enough data"
    for each in enough:
        if each is best:
            continue
        if each not in sure:
            yield f"{each.model} succeeds less often ({percent(each.success)})"
        elif each not in willing:
            yield f"{each.model} refuses more often ({percent(each.refusals)})"
        else:
            yield f"{each.model} may be as good and takes {seconds(each)}"


def _said(best: Figures) -> str:
    low, high = best.success.bounds
    rate = f"succeeds in {percent(best.success)} ({100 * low:.0f} to {100 * high:.0f} %) of {best.success.total}"
    refusals = f", refuses {percent(best.refusals)}" if best.refusals.total else ""
    return f"{rate}{refusals}, takes {seconds(best)}"


def percent(rate: Rate) -> str:
    """Return a share for people: one decimal where it matters, a dash of nothing."""
    if rate.share is None:
        return "-"
    share = 100 * rate.share
    return f"{share:.0f} %" if share in {0, 100} or 10 <= share <= 90 else f"{share:.1f} %"


def seconds(figures: Figures) -> str:
    """Return the median duration for people."""
    ms = figures.values["duration_ms_p50"]
    return "an unknown time" if ms is None else f"{ms / 1000:.1f} s" if ms >= 1000 else f"{ms:.0f} ms"
