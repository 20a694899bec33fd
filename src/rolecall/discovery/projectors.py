"""Which projector belongs to which model: by what both files say of themselves, then by their names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rolecall.core.model_names import bare_name, is_named_after, projector_rank, split_label, without_mark

if TYPE_CHECKING:
    from rolecall.discovery.gguf_models import GgufFile

_GENERIC = frozenset({"", "model", "ggml-model", "f16", "encoder"})


@dataclass(frozen=True, slots=True)
class Projector:
    """A projector; ``bare`` is the name of its model by its own name, empty where that says nothing."""

    file: GgufFile
    bare: str
    precision: str | None
    sees: bool
    hears: bool
    widths: frozenset[int]

    @classmethod
    def of(cls, file: GgufFile) -> Projector:
        """Return what a file says; among ``widths`` is that of the embeddings which it makes, or there are none."""
        stem, label = split_label(file.stem)
        bare = bare_name(without_mark(stem))
        metadata = file.header.metadata
        return cls(
            file,
            "" if bare in _GENERIC else bare,
            label,
            sees=metadata.get("clip.has_vision_encoder") is not False,
            hears=metadata.get("clip.has_audio_encoder") is True,
            widths=frozenset(
                length
                for name, (shape, _) in file.header.tensors.items()
                if name.startswith(("mm.", "resampler."))
                for length in shape
            ),
        )


@dataclass(frozen=True, slots=True)
class Pairing:
    """A projector and why it belongs to the model."""

    projector: Projector
    reason: str


def best_projector(model: GgufFile, bare: str, projectors: Sequence[Projector], *, alone: bool) -> Pairing | None:
    """Return the projector of a model; None if none belongs to it.

    One whose name is that of another model is never taken. Whether the widths agree is seen by the tensors:
    ``clip.vision.projection_dim`` is CLIP's own in LLaVA 1.5, and 0 in MiniCPM-V.
    """
    pairs = [(rank, reason, each) for each in projectors for rank, reason in _ranks(model, bare, each, alone=alone)]
    if not pairs:
        return None
    rank, reason, projector = min(
        pairs, key=lambda pair: (pair[0], projector_rank(pair[2].precision), pair[2].file.path.name)
    )
    others = sum(1 for pair in pairs if pair[0] == rank) - 1
    chosen = f", chosen of {others + 1} for its precision {projector.precision}" if others else ""
    return Pairing(projector, f"projector {projector.file.path.name}: {reason}{chosen}")


def _ranks(model: GgufFile, bare: str, projector: Projector, *, alone: bool) -> Iterable[tuple[int, str]]:
    """Yield how well they fit, 0 best; nothing if they do not."""
    fits = model.number("embedding_length") in projector.widths
    if projector.widths and not fits:
        return
    shared = next((key for key in _IDENTITIES if _same(model, projector.file, key)), None)
    if shared:
        yield 0, f"its {shared} is the model's"
    elif projector.bare == bare:
        yield 1, "it has the model's name"
    elif projector.bare and is_named_after(projector.bare, bare):
        yield 2, "it is named after the model"
    elif not projector.bare and alone:
        yield 3, "it lies beside this model alone" + (", and the widths of the embeddings agree" if fits else "")


_IDENTITIES = ("general.base_model.0.repo_url", "general.name")


def _same(model: GgufFile, projector: GgufFile, key: str) -> bool:
    ours, theirs = (bare_name(split_label(file.text(key))[0]) for file in (model, projector))
    return bool(ours) and ours not in _GENERIC and ours == theirs
