"""Which quantizations fit a machine, and which is the best there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rolecall.core.footprint import Demands
from rolecall.core.gguf_footprint import HOST_PROCESS_MB, GgufFacts, Layer, ProjectorFacts, gguf_estimate
from rolecall.core.hub_fit import GUESSED_MB, Fit, Knowledge, best, fit, scaled
from rolecall.core.hub_listing import Choice, HubFile
from rolecall.core.profiles import ActiveProfile, Profile
from rolecall.core.vram import HOST, Device

MB = 2**20
LAYERS = tuple(Layer(100 * MB, 10 * MB, key_width=1024, value_width=1024) for _ in range(32))
FACTS = GgufFacts("llama", LAYERS, 50 * MB, 150 * MB, context_tokens=131072, vocabulary=32000, embedding_width=4096)
KNOWN = Knowledge(FACTS, 32768)


def choice(label: str, mb: int, projector_mb: int = 0, **fields: Any) -> Choice:
    projector = HubFile("mmproj.gguf", projector_mb * MB) if projector_mb else None
    return Choice(label, "gguf", (HubFile(f"m-{label}.gguf", mb * MB),), projector, **fields)


def machine(*cards_mb: int, budget_mb: int | None = None, **fields: Any) -> ActiveProfile:
    """A machine with cards of which models may take so much; without cards 8 GB of RAM."""
    values = {"preferred_quantizations": ["q4_k_m", "q8_0"], "strategy": "load_unload", "bias": "balanced"}
    limits = {"max_vram_mb": 1, "max_concurrent_models": 1, "idle_unload_s": 1}
    profile = Profile.model_validate({"name": "p", **limits, **values, **fields})
    cards = tuple(Device(f"GPU-{at}", mb, mb + 2048, at) for at, mb in enumerate(cards_mb))
    total = sum(cards_mb) or 8000
    return ActiveProfile(profile, "auto", budget_mb or total, cards or (Device(HOST, total, total),))


def test_what_a_choice_needs_is_llama_cpps_need_scaled_to_its_size() -> None:
    """Weights go with the size of the file; cache and buffers are those of the one header that was read."""
    small, large = (fit(choice("x", mb), machine(24000), KNOWN, 4) for mb in (2000, 8000))
    assert large.need_mb - small.need_mb == pytest.approx(6000, rel=0.02)
    demands = Demands(context_tokens=32768, parallel=4)
    own = fit(choice("x", FACTS.tensor_bytes // MB), machine(24000), KNOWN, 4)
    assert own.need_mb == pytest.approx(gguf_estimate(FACTS, demands).mb, abs=2)
    assert (own.verdict, own.cards, own.context_tokens, own.is_guessed) == ("fits", (0,), 32768, False)


def test_a_projector_counts_where_there_is_one() -> None:
    """A projector's tensors and activations are a part of the need, of the choices that have it."""
    known = replace(KNOWN, projector=ProjectorFacts(600 * MB))
    with_one, without = (fit(choice("x", 2000, mb), machine(24000), known) for mb in (600, 0))
    assert with_one.need_mb - without.need_mb == 600


def test_without_a_header_it_is_the_size_of_the_files_and_some_more() -> None:
    """A guess says that it is one; a folder for vLLM is always guessed."""
    guess = fit(choice("Q4_0", 2000, 100), machine(), None)
    assert (guess.need_mb, guess.is_guessed, guess.context_tokens) == (2100 + HOST_PROCESS_MB + GUESSED_MB, True, None)
    assert fit(choice("Q4_0", 2000), machine(24000), None).need_mb == 2000 + 512 + GUESSED_MB
    folder = Choice("safetensors", "safetensors", (HubFile("config.json", 99), HubFile("m.safetensors", 3000 * MB)))
    assert fit(folder, machine(24000), KNOWN).need_mb == 3000 + 512 + GUESSED_MB
    too_large = fit(choice("Q4_0", 9000), machine(8000), None)
    assert (too_large.verdict, too_large.cards) == ("too large", ())


def test_cards_that_hold_it_alone_are_named_and_else_those_that_do_together() -> None:
    """On unlike cards only those with room count; what no card holds may lie on all of them."""
    assert fit(choice("x", 3000), machine(6000, 24000), KNOWN).cards == (1,)
    assert fit(choice("x", 1000), machine(24000, 24000), KNOWN).cards == (0, 1)
    together = fit(choice("x", 20000), machine(16000, 16000), KNOWN)
    assert (together.verdict, together.cards) == ("fits together", (0, 1))
    assert fit(choice("x", 40000), machine(16000, 16000), KNOWN).verdict == "too large"


def test_parts_are_equal_on_as_few_cards_as_can_be() -> None:
    """The scheduler spreads a model evenly: a small card beside a large one holds no more than its like."""
    assert fit(choice("x", 20000), machine(16000, 6000), KNOWN).verdict == "too large"
    third = fit(choice("x", 20000), machine(6000, 16000, 16000), KNOWN)
    assert (third.verdict, third.cards) == ("fits together", (1, 2))
    three = machine(14000, 14000, 14000)
    assert fit(choice("x", 30000), three, KNOWN).cards == (0, 1, 2)
    folder = Choice("safetensors", "safetensors", (HubFile("m.safetensors", 30000 * MB),))
    assert fit(folder, three, None).verdict == "too large", "vLLM does not spread over three"


def test_a_budget_below_the_cards_is_the_limit() -> None:
    """A ceiling that a person has set counts for one card and for all together."""
    assert fit(choice("x", 9000), machine(24000, budget_mb=8000), KNOWN).verdict == "too large"
    assert fit(choice("x", 20000), machine(16000, 16000, budget_mb=18000), KNOWN).verdict == "too large"


def test_a_shorter_context_may_fit() -> None:
    """What does not fit with its context is given the longest that does, in steps of 256 tokens, 4096 at the least."""
    made = fit(choice("x", 3000), machine(6000), KNOWN)
    assert (made.verdict, made.cards) == ("shorter context", (0,))
    assert made.context_tokens is not None
    longer = made.context_tokens + 256
    assert 4096 <= made.context_tokens < 32768
    assert fit(choice("x", 3000), machine(6000), replace(KNOWN, context_tokens=made.context_tokens)).verdict == "fits"
    assert fit(choice("x", 3000), machine(6000), replace(KNOWN, context_tokens=longer)).verdict == "shorter context"
    assert fit(choice("x", 6000), machine(6000), KNOWN).verdict == "too large"
    unknown = fit(choice("x", 40000), machine(6000), replace(KNOWN, context_tokens=0))
    assert (unknown.verdict, unknown.context_tokens) == ("too large", None)


def test_facts_are_scaled_as_a_whole() -> None:
    """Blocks, experts, input and output keep their shares; a header without tensors says nothing of them."""
    double = scaled(FACTS, 2 * FACTS.tensor_bytes)
    assert double.tensor_bytes == 2 * FACTS.tensor_bytes
    assert double.layers[0].expert_bytes == 20 * MB
    assert scaled(replace(FACTS, layers=(), input_bytes=0, output_bytes=0), 3200).tensor_bytes == 0


def fits(**labels: int) -> list[Fit]:
    """Fits of so many MB each, all of which fit."""
    return [Fit(choice(label, mb), mb, "fits", (0,)) for label, mb in labels.items()]


def label_of(made: Fit | None) -> str | None:
    return made.choice.label if made else None


def test_the_profiles_first_preference_that_is_there() -> None:
    """Preferences are tried in order; ``UD-`` before a name and ``F16`` for ``fp16`` are no others."""
    profile = machine().profile
    assert label_of(best(fits(Q2_K=1, Q8_0=8, Q4_K_M=4), profile)) == "Q4_K_M"
    assert label_of(best(fits(Q2_K=1, Q8_0=8), profile)) == "Q8_0"
    both = [*fits(Q4_K_M=5), Fit(choice("UD-Q4_K_M", 4), 4, "fits", (0,))]
    assert label_of(best(both, profile)) == "Q4_K_M"
    assert label_of(best(both[1:], profile)) == "UD-Q4_K_M"
    assert label_of(best(fits(F16=16), machine(preferred_quantizations=["fp16"]).profile)) == "F16"


def test_without_a_preferred_one_the_bias_decides() -> None:
    """Quality takes the largest; others the smallest with four bits, or else the largest."""
    there = fits(Q2_K=2, Q3_K_M=3, IQ4_XS=4, Q6_K=6)
    assert label_of(best(there, machine(bias="quality").profile)) == "Q6_K"
    assert label_of(best(there, machine().profile)) == "IQ4_XS"
    assert label_of(best(there[:2], machine().profile)) == "Q3_K_M"


def test_what_fits_goes_before_what_needs_a_shorter_context_and_a_gguf_before_a_folder() -> None:
    """Nothing that is too large is ever the best."""
    profile = machine().profile
    short = Fit(choice("Q4_K_M", 4), 4, "shorter context", (0,), 8192)
    large = Fit(choice("Q8_0", 8), 8, "too large")
    folder = Fit(Choice("safetensors", "safetensors", (HubFile("m.safetensors", 1),)), 1, "fits", (0,))
    assert label_of(best([short, large, *fits(Q2_K=2)], profile)) == "Q2_K"
    assert label_of(best([short, large], profile)) == "Q4_K_M"
    assert label_of(best([folder, *fits(Q2_K=2)], profile)) == "Q2_K"
    assert label_of(best([folder], profile)) == "safetensors"
    assert best([large], profile) is None
    assert best([], profile) is None
