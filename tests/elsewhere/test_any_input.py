"""Whatever a file holds: it is taken over, or refused with a reason; nothing else happens, and no key comes along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rolecall.core.registry import read_registry
from rolecall.elsewhere.merge import merge
from rolecall.elsewhere.outcome import Outcome
from rolecall.elsewhere.recognise import read_configuration
from rolecall.elsewhere.tree import SourceError

IMPORTS = {path.name: path.read_bytes() for path in (Path(__file__).parent / "imports").iterdir()}
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(
        ["${PORT}", "${x}", "${env.HOME}", "llama-server", "http://[", "-m", "*", '"', "os.environ/X", "\ud800"]
    ),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def outcome_of(data: bytes) -> Outcome | None:
    """What comes of a file, None if it is refused; the entries must make a registry that is accepted."""
    try:
        outcome = read_configuration(data, "/etc/x", {"STUDIO_BASE": "http://127.0.0.1/v1"})
    except SourceError:
        return None
    merged = merge([{"name": "mine", "backend": "vllm", "model_aliases": ["gpt-4"]}], [], outcome, replace=True)
    read_registry(json.loads(json.dumps(merged.added)))
    assert all(remark.line >= 1 for remark in outcome.remarks)
    return outcome


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to all values."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        found += places(each, (*path, key))
    return found


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.data())
def test_any_value_in_any_place(data: st.DataObject) -> None:
    """A file of the right shape with anything at all in one or two places is imported or refused."""
    name = data.draw(st.sampled_from(sorted(IMPORTS)))
    whole = yaml.safe_load(IMPORTS[name])
    for _ in range(data.draw(st.integers(1, 2))):
        *way, last = data.draw(st.sampled_from(places(whole)))
        parent = whole
        for step in way:
            parent = parent[step]
        parent[last] = data.draw(ODD)
    outcome_of(json.dumps(whole).encode())


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.data())
def test_any_bytes_in_a_file(data: st.DataObject) -> None:
    """A file that was cut, or had bytes put in or lines taken out, is imported or refused."""
    text = IMPORTS[data.draw(st.sampled_from(sorted(IMPORTS)))]
    at = data.draw(st.integers(0, len(text)))
    lines = text.splitlines(keepends=True)
    gone = data.draw(st.integers(0, len(lines) - 1))
    changed = data.draw(
        st.sampled_from(
            [
                text[:at],
                text[:at] + data.draw(st.binary(max_size=4)) + text[at:],
                text[:at]
                + data.draw(st.sampled_from([b"*a", b"&a", b"<<: ", b"!x", b"? ", b"---\n", b"\t", b"'", b"{"]))
                + text[at:],
                b"".join(lines[:gone] + lines[gone + 1 :]),
                b"".join([*lines, lines[gone]]),
            ]
        )
    )
    outcome_of(changed)


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_at_all(data: bytes) -> None:
    """Bytes that are nobody's configuration are refused, or hold no entry."""
    outcome = outcome_of(data)
    assert outcome is None or outcome.drafts == []
