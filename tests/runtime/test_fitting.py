"""Models on cards: by what was computed, by what loads have taught, and for engines that take what they get."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from builders import entry
from fakes import FakeBackend
from gguf_shapes import transformer, write_gguf
from rolecall.backends.base import Backend, Places, Spread
from rolecall.backends.llama_server import LlamaServer
from rolecall.core.capacity import Cards
from rolecall.core.models import ModelEntry
from rolecall.core.vram import HOST, Device, Share
from rolecall.runtime.fitting import Fitting, beside_each, imagined
from rolecall.runtime.footprints import Footprints, Gpu
from rolecall.runtime.learnt import LearntStore

CARD = Cards((Device("g0", 1400, 3448),), 1400, 1)
PLACE = (Share("g0", 1400, 3448),)


@pytest.fixture
def model(tmp_path: Path) -> ModelEntry:
    """A model of 270 MB that caches 32 KB a token, with 4096 tokens."""
    path = write_gguf(tmp_path / "m.gguf", *transformer("llama", 16, 1024, 16, 8, 4096, 8000))
    return entry("m", backend_config={"model_path": str(path)}, context_length=4096)


@pytest.fixture
def footprints(tmp_path: Path) -> Footprints:
    """What is known with one card of the kind "Test GPU"."""
    backend = LlamaServer(Places(tmp_path, tmp_path), ("llama-server",))
    return Footprints(LearntStore(tmp_path / "learnt.json"), lambda _: backend, {"g0": Gpu("Test GPU", 1400)})


def fitting(footprints: Footprints, cards: Cards = CARD) -> Fitting:
    return Fitting(footprints, footprints.backend_for, cards, str)


def test_what_loads_have_taught_counts(model: ModelEntry, footprints: Footprints) -> None:
    """For its present context it is what is needed; for others the same difference is added to what is computed."""
    before = fitting(footprints).of(model)
    assert (before.needs.source, before.fits) == ("computed", True)
    assert before.needs.mb == footprints.of(model).mb
    assert before.parts is not None
    footprints.observe(model, PLACE, before.parts.mb + 64, again=False)
    after = fitting(footprints).of(model)
    assert (after.needs.source, after.needs.mb) == ("learnt", before.parts.mb + 64)
    assert before.largest_tokens is not None
    assert after.largest_tokens is not None
    assert before.largest_tokens - after.largest_tokens == pytest.approx(64 * 1024 / 33, abs=256)
    assert fitting(footprints).of(model, context=8192).needs.source == "computed"


def test_other_cards_know_nothing_of_it(model: ModelEntry, footprints: Footprints) -> None:
    """What was learnt on the card that is here is not what a card of another profile would show."""
    footprints.observe(model, PLACE, 1300, again=False)
    elsewhere = imagined(footprints, CARD)
    assert fitting(elsewhere).of(model).needs.source == "computed"
    host = Cards((Device(HOST, 8000, 10000),), 8000, 1)
    found = fitting(imagined(footprints, host), host).of(model)
    assert found.parts is not None
    assert found.parts.fixed_mb < 100  # no CUDA context


def test_an_engine_that_takes_what_it_gets_needs_the_least(model: ModelEntry, footprints: Footprints) -> None:
    """The longest context is that with which it can start at all."""
    backend: Backend = FakeBackend(takes_share=True, paths=(Path(str(model.backend_config.model_path)),))
    sharing = replace(footprints, backend_for=lambda _: backend)
    found = fitting(sharing).of(model)
    assert found.parts is not None
    assert found.largest_tokens is not None
    assert found.largest_tokens > 4096


def test_models_that_others_run_need_nothing_here(footprints: Footprints) -> None:
    """They have no room to be found, and fit."""
    backend: Backend = FakeBackend(managed=False)
    found = fitting(replace(footprints, backend_for=lambda _: backend)).of(entry("far"))
    assert (found.needs.mb, found.tenant, found.parts, found.problem, found.fits) == (0, None, None, None, True)


def test_an_entry_lies_on_its_own_cards(model: ModelEntry, footprints: Footprints) -> None:
    """``gpus`` hold beside others as well: on a card that another one fills there is no room."""
    pair = Cards((Device("g0", 1000, 3000), Device("g1", 1000, 3000, 1)), 2000, 2)
    placed = [ModelEntry.model_validate({**model.model_dump(), "name": n, "gpus": [g]}) for n, g in ("ag", "bh", "cg")]
    ids = {"g": "g0", "h": "g1"}
    fits = [Fitting(footprints, footprints.backend_for, pair, lambda gpu: ids[str(gpu)]).of(one) for one in placed]
    assert beside_each(pair, fits) == {"a": ["b"], "b": ["a", "c"], "c": ["b"]}


def test_what_asks_for_more_cards_than_there_are_fits_nowhere() -> None:
    """Whatever their size; who asks for none lies on as many as there are."""
    assert CARD.room_mb(Spread(asked=2).over(1)) == 0
    assert CARD.room_mb(Spread(possible=(1, 2)).over(1)) == 1400
    assert Spread(possible=(2,)).over(1) == (1,)
