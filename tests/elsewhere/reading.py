"""Configurations read as `rolecall import` reads them, for tests of what becomes of a line."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from rolecall.elsewhere.outcome import Outcome
from rolecall.elsewhere.recognise import read_configuration

FOLDER = "/etc/swap"


def read(text: str, **environ: str) -> Outcome:
    """Read a configuration that lies in ``FOLDER``; its indentation is that of the test."""
    return read_configuration(textwrap.dedent(text).strip("\n").encode(), FOLDER, environ)


def entries(outcome: Outcome) -> list[dict[str, Any]]:
    """The entries, in order."""
    return [draft.entry for draft in outcome.drafts]


def entry(text: str, **environ: str) -> dict[str, Any]:
    """The one entry of a configuration."""
    (only,) = entries(read(text, **environ))
    return only


def remarks(outcome: Outcome) -> list[tuple[int, str, str]]:
    """Line, kind and subject of each remark."""
    return [(remark.line, remark.kind, remark.subject) for remark in outcome.remarks]


def said(outcome: Outcome) -> str:
    """All remarks as lines."""
    return "\n".join(f"{remark.line} {remark.kind} {remark.subject}: {remark.text}" for remark in outcome.remarks)


def swap(cmd: str, **fields: Any) -> str:
    """A llama-swap configuration with one model ``m``."""
    return _yaml({"models": {"m": {"cmd": cmd, **fields}}})


def _yaml(value: Mapping[str, Any]) -> str:
    import json

    return json.dumps(value)
