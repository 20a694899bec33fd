"""The file of the markers: the shipped one, one's own, broken ones, and when it is read."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from rolecall.core.markers import Opening
from rolecall.errors import ConfigurationError
from rolecall.runtime.markers import MARKERS, MarkersFile, load_markers


def test_the_shipped_file_is_taken_where_there_is_none(tmp_path: Path) -> None:
    """It has refusals in several languages, and finds none in answers that only sound alike."""
    markers = load_markers(tmp_path)
    assert set(markers.groups) == {"refusal", "about-itself", "preamble"}
    for text, found in {
        "I’m sorry, but I can’t help with that.": ["refusal"],
        "Es tut mir leid, aber ich kann das nicht beschreiben.": ["refusal"],
        "Désolé, mais je ne peux pas décrire cette image.": ["refusal"],
        "抱歉，我无法描述这张图片。": ["refusal"],
        "Certainly! Here is a caption: a bridge.": ["preamble"],
        "As an AI language model, I have no eyes.": ["about-itself"],
        "I cannot see any people; a bridge in fog.": [],
        "Leider regnet es auf dem Bild.": [],
    }.items():
        opening = Opening(markers.chars)
        opening.take(text)
        assert markers.found(opening) == found, text


def test_ones_own_file_takes_its_place(tmp_path: Path) -> None:
    """What the config folder has is all there is."""
    (tmp_path / MARKERS).write_text('chars = 9\n[markers.mine]\nphrases = ["X"]\n')
    markers = load_markers(tmp_path)
    assert (markers.chars, markers.groups) == (9, {"mine": ("x",)})


@pytest.mark.parametrize("text", ["chars = ", "chars = 0", "\udcff"])
def test_a_broken_file_is_named(text: str, tmp_path: Path) -> None:
    """The reason names the file."""
    (tmp_path / MARKERS).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigurationError, match=MARKERS):
        load_markers(tmp_path)


def test_it_is_read_when_it_is_needed_and_after_a_reload(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not at the start; a broken one is told once and is a problem, and the last good one stays."""
    file = MarkersFile(tmp_path)
    path = tmp_path / MARKERS
    path.write_text('[markers.one]\nphrases = ["1"]\n')
    first = file.markers
    assert first is not None
    assert list(first.groups) == ["one"]
    path.write_text('[markers.two]\nphrases = ["2"]\n')
    assert file.markers is first
    file.read()
    second = file.markers
    assert second is not None
    assert list(second.groups) == ["two"]
    path.write_text("[markers")
    with caplog.at_level(logging.WARNING):
        file.read()
        assert file.markers is second
    assert [record.getMessage() for record in caplog.records] == [file.problem]
    assert "the last good ones stay in force" in caplog.text
    path.unlink()
    file.read()
    assert file.problem is None


def test_a_file_without_groups_looks_for_nothing(tmp_path: Path) -> None:
    """Then answers are not looked at."""
    (tmp_path / MARKERS).write_text("chars = 10\n")
    assert MarkersFile(tmp_path).markers is None


def test_a_broken_file_from_the_beginning(tmp_path: Path) -> None:
    """Nothing is looked for, and it is said why."""
    (tmp_path / MARKERS).write_text("[markers")
    file = MarkersFile(tmp_path)
    assert file.markers is None
    assert "none are looked for" in str(file.problem)


def test_a_gateway_without_a_config_folder_has_none() -> None:
    """Then nothing is looked for."""
    file = MarkersFile()
    file.read()
    assert (file.markers, file.problem) == (None, None)
