"""What a model is given: learnt before computed before declared, by kind of card, engine and arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from builders import entry
from fakes import FakeBackend
from rolecall.core.footprint import Estimate
from rolecall.core.models import ModelEntry
from rolecall.core.vram import HOST, Device, Placement, Share
from rolecall.runtime.footprints import Footprints, Gpu, asked_share, cards
from rolecall.runtime.learnt import LearntStore
from rolecall.runtime.model_files import ModelFiles

SMALL, LARGE = Gpu("small card", 14_000), Gpu("large card", 22_000)
ON_G0: Placement = (Share("g0", 5000, 16_000),)
ON_BOTH: Placement = (Share("g0", 5000, 16_000), Share("g1", 5000, 16_000))


class Files(ModelFiles):
    """Files that say what the test wants; nothing is read."""

    def __init__(self, mb: int | None, least_mb: int = 0) -> None:
        self._said = None if mb is None else Estimate(mb, 0, 0, 0, 0, least_mb, "GGUF of a test")
        self.on_gpu: bool | None = None

    def estimate_mb(self, entry: ModelEntry, backend: Any, *, on_gpu: bool = True) -> Estimate | None:
        """Return what was given, and note for what it was asked."""
        self.on_gpu = on_gpu
        return self._said


@pytest.fixture
def store(tmp_path: Path) -> LearntStore:
    """Return a store in which nothing is learnt yet."""
    return LearntStore(tmp_path / "learnt.json")


def footprints(
    store: LearntStore,
    backend: FakeBackend | None = None,
    computed_mb: int | None = None,
    gpus: dict[str, Gpu] | None = None,
    least_mb: int = 0,
) -> Footprints:
    """Return the footprints on one small card, unless the test says otherwise."""
    backend = backend or FakeBackend()
    return Footprints(store, lambda _: backend, {"g0": SMALL} if gpus is None else gpus, Files(computed_mb, least_mb))


class TestSources:
    def test_what_was_learnt_goes_first(self, store: LearntStore) -> None:
        """Once a load was measured, neither the files nor the entry count."""
        known = footprints(store, computed_mb=9000)
        assert known.observe(entry(vram_estimate_mb=2000), ON_G0, 4000, again=False) == 4000
        found = known.of(entry(vram_estimate_mb=2000))
        assert (found.mb, found.source, found.detail) == (4000, "learnt", "from one load")

    @pytest.mark.parametrize(
        ("declared_mb", "computed_mb", "mb", "source"),
        [
            (None, None, None, "unknown"),
            (4000, None, 4000, "declared"),
            (None, 5000, 5000, "computed"),
            (4000, 5000, 5000, "computed"),
            (5000, 4000, 5000, "declared"),
            (4000, 4000, 4000, "declared"),
        ],
    )
    def test_until_then_the_larger_of_what_is_said(
        self, store: LearntStore, declared_mb: int | None, computed_mb: int | None, mb: int | None, source: str
    ) -> None:
        """A person's word counts, unless the files say more: too little ends in a failed start."""
        found = footprints(store, computed_mb=computed_mb).of(entry(vram_estimate_mb=declared_mb))
        assert (found.mb, found.source) == (mb, source)

    def test_without_a_gpu_a_persons_word_stands(self, store: LearntStore) -> None:
        """In host RAM, where memory can be lent, what the files say does not go before what is declared."""
        known = footprints(store, computed_mb=5000, gpus={})
        assert known.of(entry(vram_estimate_mb=4000)).mb == 4000
        assert known.of(entry()).mb == 5000
        assert isinstance(known.files, Files)
        assert known.files.on_gpu is False

    def test_the_size_of_the_files_is_better_than_nothing(self, store: LearntStore, tmp_path: Path) -> None:
        """Files that do not tell what they need at least have a size."""
        path = tmp_path / "model.bin"
        path.write_bytes(bytes(3 * 2**20))
        found = footprints(store, FakeBackend(paths=(path,))).of(entry())
        assert (found.mb, found.source) == (3, "files")

    def test_one_that_somebody_else_runs_takes_nothing(self, store: LearntStore) -> None:
        """Whatever its entry says, a model elsewhere needs no memory here."""
        assert footprints(store, FakeBackend(managed=False)).of(entry(vram_estimate_mb=9000)).mb == 0

    def test_a_figure_that_ran_out_is_passed_over(self, store: LearntStore) -> None:
        """What was too little once is not given again; when no figure is left the model gets a device of its own."""
        known = footprints(store, computed_mb=6000)
        model = entry(vram_estimate_mb=5000)
        assert known.of(model).mb == 6000
        known.ran_out(model, ON_G0)
        assert known.of(model).mb == 6000
        known.ran_out(model, (Share("g0", 6000, 16_000),))
        assert (known.of(model).mb, known.of(model).source) == (None, "unknown")
        known.observe(model, ON_G0, 6500, again=False)
        assert known.of(model).source == "learnt"


class TestShares:
    def test_what_it_holds_is_not_what_it_needs(self, store: LearntStore) -> None:
        """An engine that takes what it gets is given what the entry says, whatever it was seen to hold."""
        known = footprints(store, FakeBackend(takes_share=True), computed_mb=4000)
        model = entry(vram_estimate_mb=9000)
        assert known.observe(model, ON_BOTH, 12_000, again=False) == 10_000
        found = known.of(model)
        assert (found.mb, found.source) == (9000, "declared")

    @pytest.mark.parametrize(("declared_mb", "mb"), [(None, 8000), (9000, 9000), (3000, 5000)])
    def test_the_least_with_which_it_starts(self, store: LearntStore, declared_mb: int | None, mb: int) -> None:
        """It gets what its files say, or its entry, but no less than the weights and one full context."""
        known = footprints(store, FakeBackend(takes_share=True), computed_mb=8000, least_mb=5000)
        assert known.of(entry(vram_estimate_mb=declared_mb)).mb == mb

    def test_more_than_what_was_not_enough(self, store: LearntStore) -> None:
        """After a start that ran out of memory it is given more than that."""
        known = footprints(store, FakeBackend(takes_share=True))
        model = entry(vram_estimate_mb=4000)
        known.ran_out(model, ON_G0)
        assert known.of(model).mb == 5001

    def test_of_unknown_files(self, store: LearntStore) -> None:
        """Nothing said by anybody is unknown: it gets a device of its own, and takes that."""
        assert footprints(store, FakeBackend(takes_share=True)).of(entry()).mb is None


class TestKeys:
    def test_each_kind_of_card_is_learnt_by_itself(self, store: LearntStore) -> None:
        """What a model took on one kind of card says nothing of another; two of a kind are the same."""
        both = footprints(store, gpus={"g0": SMALL, "g1": SMALL, "g2": LARGE})
        both.observe(entry(), (Share("g1", 1, 1),), 4000, again=False)
        assert footprints(store, gpus={"g0": SMALL}).of(entry()).mb == 4000
        assert footprints(store, gpus={"g2": LARGE}).of(entry()).mb is None
        assert both.of(entry()).mb == 4000

    def test_the_card_that_it_lay_on_most_often_speaks(self, store: LearntStore) -> None:
        """Where it could lie on two kinds of card, the one with more loads is believed."""
        both = footprints(store, gpus={"g0": SMALL, "g2": LARGE})
        for mb in (4000, 4100):
            both.observe(entry(), ON_G0, mb, again=False)
        both.observe(entry(), (Share("g2", 1, 1),), 9000, again=False)
        assert both.of(entry()).mb == 4100

    @pytest.mark.parametrize(
        "other",
        [
            entry(context_length=8192),
            entry(max_parallel=1),
            entry(backend_config={"extra_args": ["-ngl", "10"]}),
            entry(backend_config={"model_path": "another.gguf"}),
            entry("beta"),
        ],
    )
    def test_what_changes_the_memory_is_another_key(self, store: LearntStore, other: ModelEntry) -> None:
        """Another context, number of slots, argument, file or model is another footprint."""
        known = footprints(store)
        known.observe(entry(), ON_G0, 4000, again=False)
        assert known.of(entry()).mb == 4000
        assert known.of(other).mb is None

    def test_one_wrong_look_does_not_make_it_too_large(self, store: LearntStore) -> None:
        """No model is remembered as larger than the cards that it lay on."""
        known = footprints(store, gpus={"g0": SMALL, "g1": SMALL})
        assert known.observe(entry(), ON_G0, 99_000, again=False) == SMALL.capacity_mb
        assert known.observe(entry("beta"), ON_BOTH, 99_000, again=False) == 2 * SMALL.capacity_mb

    def test_a_later_look_at_the_same_load(self, store: LearntStore) -> None:
        """A model that grew is given more; one look at it more is no further load."""
        known = footprints(store)
        known.observe(entry(), ON_G0, 4000, again=False)
        assert known.observe(entry(), ON_G0, 4200, again=True) == 4200
        assert known.of(entry()).detail == "from one load"


class TestTimes:
    def test_a_start_is_guessed_until_it_was_seen(self, store: LearntStore) -> None:
        """By the size that is declared, with what the engine takes besides; then the median of what was seen."""
        known = footprints(store)
        model = entry(vram_estimate_mb=6000)
        assert known.load_s(model) == pytest.approx(7)
        assert known.load_s(entry(backend="vllm", vram_estimate_mb=6000)) == pytest.approx(37)
        for seconds in (3, 9, 4):
            known.observe_time(model, ON_G0, seconds, woke=False)
        assert known.load_s(model) == 4

    def test_waking_is_another_time(self, store: LearntStore) -> None:
        """The guess stands until a waking was seen; a start says nothing of it."""
        known = footprints(store)
        known.observe_time(entry(), ON_G0, 20, woke=False)
        assert known.wake_s(entry(), 1.5) == 1.5
        known.observe_time(entry(), ON_G0, 0.5, woke=True)
        assert known.wake_s(entry(), 1.5) == 0.5
        assert known.load_s(entry()) == 20

    def test_times_are_learnt_without_a_gpu_too(self, store: LearntStore) -> None:
        """In host RAM nobody measures memory, and a load takes as long as it takes."""
        known = footprints(store, gpus={})
        known.observe_time(entry(), (Share(HOST, 1, 1),), 12, woke=False)
        assert known.load_s(entry()) == 12


def test_it_outlives_the_process(store: LearntStore, tmp_path: Path) -> None:
    """What was saved is known to the next run; saving what is not new writes nothing."""
    known = footprints(store)
    known.observe(entry(), ON_G0, 4000, again=False)
    known.save()
    assert footprints(LearntStore(tmp_path / "learnt.json")).of(entry()).mb == 4000
    (tmp_path / "learnt.json").unlink()
    known.save()
    assert not (tmp_path / "learnt.json").exists()


def test_the_cards_that_count() -> None:
    """GPUs by UUID with their kind, where that is known; host RAM is none."""
    devices = (Device("g0", 14_000, 16_000), Device("g1", 9000, 11_000, 1), Device(HOST, 1, 1))
    assert cards(devices, {"g0": "small card"}) == {"g0": SMALL, "g1": Gpu("g1", 9000)}


@pytest.mark.parametrize(
    ("words", "share"),
    [
        (["--gpu-memory-utilization", "0.85"], 0.85),
        (["--gpu_memory_utilization=1"], 1.0),
        (["--gpu-memory-utilization", "85"], None),
        (["--gpu-memory-utilization", "0"], None),
        (["--gpu-memory-utilization", "much"], None),
        (["--gpu-memory-utilization"], None),
        ([], None),
    ],
)
def test_the_share_that_the_arguments_ask_for(words: list[str], share: float | None) -> None:
    """A part of a card between 0 and 1, in either spelling; anything else is no share."""
    assert asked_share(entry(backend_config={"extra_args": words})) == share
