"""Which of a repository's models fit this machine, and which is the best for its profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rolecall.core.capacity import Cards, largest_context
from rolecall.core.footprint import CUDA_CONTEXT_MB, Demands, whole_mb
from rolecall.core.gguf_footprint import (
    FITTED_CONTEXT_TOKENS,
    HOST_PROCESS_MB,
    GgufFacts,
    Layer,
    ProjectorFacts,
    gguf_estimate,
)
from rolecall.core.hub_listing import Choice
from rolecall.core.model_names import label_bits
from rolecall.core.profiles import ActiveProfile, Profile
from rolecall.core.vram import HOST

Verdict = Literal["fits", "fits together", "shorter context", "too large"]

GUESSED_MB = 1024
"""What a model is thought to need beside its weights where its header was not read: a cache of some thousand tokens."""

_OVER = {"gguf": range(2, 17), "safetensors": (2, 4, 8)}
"""Over how many cards an engine spreads a model, in equal parts; the first that does is taken."""


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What one header says of a model, which holds for its other quantizations as well: all but the bytes of tensors.

    ``context_tokens`` is the context that it will be given, 0 where the file does not say what it could have.
    """

    facts: GgufFacts
    context_tokens: int
    projector: ProjectorFacts | None = None


@dataclass(frozen=True, slots=True)
class Fit:
    """A choice with what it needs in MB, and where that is.

    ``cards`` are the indices of the devices that each hold it, or of those that do together; empty for none.
    ``context_tokens`` is the context with which it fits. ``is_guessed``: by the sizes of its files alone.
    """

    choice: Choice
    need_mb: int
    verdict: Verdict
    cards: tuple[int, ...] = ()
    context_tokens: int | None = None
    is_guessed: bool = False


def fit(choice: Choice, active: ActiveProfile, knowledge: Knowledge | None, parallel: int = 1) -> Fit:
    """Return whether a choice fits the machine of a profile, alone on one of its cards, or on several together.

    With ``knowledge`` of a GGUF it is llama.cpp's need by `gguf_footprint`; else the files and `GUESSED_MB`.
    """
    needs = _Needs(choice, knowledge if choice.format == "gguf" else None, parallel, active.devices[0].id != HOST)
    cards = Cards(active.devices, active.budget_mb, 1)
    capacities = {device.index: min(device.capacity_mb, active.budget_mb) for device in active.devices}
    largest_mb, need_mb = cards.room_mb((1,)), needs.mb()
    made = Fit(choice, need_mb, "fits", context_tokens=needs.context_tokens, is_guessed=needs.knowledge is None)
    if need_mb <= largest_mb:
        return replace(made, cards=tuple(index for index, mb in capacities.items() if need_mb <= mb))
    largest_first = sorted(capacities, key=lambda index: -capacities[index])
    for count in (each for each in _OVER[choice.format] if each <= len(capacities)):
        if (spread_mb := needs.mb(gpus=count)) <= cards.room_mb((count,)):
            holding = tuple(sorted(largest_first[:count]))
            return replace(made, need_mb=spread_mb, verdict="fits together", cards=holding)
    if context := needs.largest_context(largest_mb):
        holding = tuple(index for index, mb in capacities.items() if mb == largest_mb)
        return replace(made, verdict="shorter context", cards=holding, context_tokens=context)
    return replace(made, verdict="too large", context_tokens=None)


@dataclass(frozen=True, slots=True)
class _Needs:
    choice: Choice
    knowledge: Knowledge | None
    parallel: int
    on_gpu: bool

    @property
    def context_tokens(self) -> int | None:
        return self.knowledge.context_tokens or None if self.knowledge else None

    def mb(self, gpus: int = 1, context_tokens: int | None = None) -> int:
        if self.knowledge is None:
            fixed = CUDA_CONTEXT_MB * gpus if self.on_gpu else HOST_PROCESS_MB
            projector = self.choice.projector.size_bytes if self.choice.projector else 0
            return whole_mb(self.choice.model_bytes + projector) + fixed + GUESSED_MB
        context = context_tokens or self.context_tokens
        demands = Demands(context_tokens=context, parallel=self.parallel, gpus=gpus, on_gpu=self.on_gpu)
        facts = scaled(self.knowledge.facts, self.choice.model_bytes)
        return gguf_estimate(facts, demands, self.knowledge.projector if self.choice.projector else None).mb

    def largest_context(self, limit_mb: int) -> int | None:
        """Return the longest context that fits, as long as it is of use; None if there is none."""
        if self.context_tokens is None:
            return None
        found = largest_context(lambda tokens: self.mb(context_tokens=tokens), limit_mb, self.context_tokens)
        return found if found is not None and found >= FITTED_CONTEXT_TOKENS else None


def scaled(facts: GgufFacts, to_bytes: int) -> GgufFacts:
    """Return the facts of another quantization of the same model, whose files have ``to_bytes`` in all."""
    ratio = to_bytes / max(1, facts.tensor_bytes)

    def of(layer: Layer) -> Layer:
        tensors, experts = int(layer.tensor_bytes * ratio), int(layer.expert_bytes * ratio)
        return replace(layer, tensor_bytes=tensors, expert_bytes=experts)

    return replace(
        facts,
        layers=tuple(map(of, facts.layers)),
        input_bytes=int(facts.input_bytes * ratio),
        output_bytes=int(facts.output_bytes * ratio),
        tied_bytes=int(facts.tied_bytes * ratio),
    )


def best(fits: Sequence[Fit], profile: Profile) -> Fit | None:
    """Return the choice that suits a profile best; None if nothing fits.

    A GGUF goes before a folder, and what fits as it is before what needs a shorter context. Of these it is the first of
    the profile's preferred quantizations that is there; else with the bias ``quality`` the largest, and otherwise the
    smallest that has four bits, below which a model loses much.
    """
    for verdicts in (("fits", "fits together"), ("shorter context",)):
        pool = [fit for fit in fits if fit.verdict in verdicts]
        pool = [fit for fit in pool if fit.choice.format == "gguf"] or pool
        if pool:
            return _preferred(pool, profile) or _by_size(pool, profile)
    return None


def _preferred(pool: Sequence[Fit], profile: Profile) -> Fit | None:
    by_name = {_plain(fit.choice.label): fit for fit in pool if fit.choice.label.upper().startswith("UD-")}
    by_name |= {_plain(fit.choice.label): fit for fit in pool if not fit.choice.label.upper().startswith("UD-")}
    return next((by_name[name] for name in map(_plain, profile.preferred_quantizations) if name in by_name), None)


def _plain(label: str) -> str:
    """``UD-Q4_K_M`` is a ``q4_k_m``, and what files call ``F16`` profiles call ``fp16``."""
    return label.lower().removeprefix("ud-").replace("fp16", "f16")


def _by_size(pool: Sequence[Fit], profile: Profile) -> Fit:
    by_size = sorted(pool, key=lambda fit: fit.choice.size_bytes)
    enough = [fit for fit in by_size if label_bits(fit.choice.label) >= 4]
    return by_size[-1] if profile.bias == "quality" or not enough else enough[0]
