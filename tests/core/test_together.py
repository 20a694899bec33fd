"""Which models are loaded together on an empty machine, and which take turns."""

from __future__ import annotations

from typing import Any

from rolecall.core.events import Spec
from rolecall.core.models import ModelEntry
from rolecall.core.together import companies
from rolecall.core.vram import HOST, Device

CARD, OTHER = Device("GPU-a", 10_000, 12_000, 0), Device("GPU-b", 10_000, 12_000, 1)


def model(name: str, mb: int | None, **fields: Any) -> Spec:
    """Return a model of so many MB."""
    return Spec(ModelEntry.model_validate({"name": name, "backend": "llama_cpp"}), footprint_mb=mb, **fields)


def names(*specs: Spec, devices: tuple[Device, ...] = (CARD,), budget_mb: int = 10_000, most: int = 5) -> list[Any]:
    """Return the companies by name."""
    return [company.names for company in companies(specs, devices, budget_mb, most)]


def test_all_fit_at_once() -> None:
    """One company, in the order of the models, with the memory of all."""
    (company,) = companies([model("a", 4000), model("b", 3000)], [CARD], 10_000, 5)
    assert (company.names, company.used_mb) == (("a", "b"), 7000)
    assert [share.device for share in company.placements["a"]] == ["GPU-a"]


def test_what_does_not_fit_takes_turns() -> None:
    """A model goes into the first company that has room; a small one fills what a large one left."""
    assert names(model("a", 6000), model("b", 7000), model("c", 3000)) == [("a", "c"), ("b",)]


def test_the_profile_bounds_how_many() -> None:
    """However small they are."""
    assert names(model("a", 100), model("b", 100), most=1) == [("a",), ("b",)]


def test_a_model_that_fits_nowhere_is_in_none() -> None:
    """It could never be loaded."""
    assert names(model("a", 12_000), model("b", 100)) == [("b",)]
    assert names(model("a", 12_000)) == []


def test_cards_are_filled_one_after_the_other() -> None:
    """Room for a large model stays on the other card; one that needs both is spread."""
    small, large = model("small", 1000), model("large", 10_000)
    both = (CARD, OTHER)
    (company,) = companies([small, model("more", 2000), large], both, 20_000, 5)
    assert {name: [s.device for s in placement] for name, placement in company.placements.items()} == {
        "small": ["GPU-a"],
        "more": ["GPU-a"],
        "large": ["GPU-b"],
    }
    wide = model("wide", 16_000, spread=(1, 2))
    assert [len(each.placements["wide"]) for each in companies([wide], both, 20_000, 5)] == [2]


def test_a_model_of_unknown_size_is_alone() -> None:
    """It is given all that there is."""
    assert names(model("a", None), model("b", 100)) == [("a",), ("b",)]


def test_others_run_their_own() -> None:
    """A model of a daemon takes none of our room, and is there beside whatever is loaded."""
    guest = model("guest", 0, managed=False)
    host = (Device(HOST, 10_000, 12_000),)
    assert names(guest, model("a", 10_000), model("b", 10_000), devices=host) == [("guest", "a"), ("b",)]
    assert names(guest) == [("guest",)]
