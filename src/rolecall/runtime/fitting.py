"""What models would need with other sizes or on other cards, by the figures that the scheduler goes by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rolecall.backends.base import Backend
from rolecall.backends.smaller import with_context, with_slots
from rolecall.core.capacity import Cards, Tenant, beside, largest_context
from rolecall.core.footprint import Estimate
from rolecall.core.learning import Footprint
from rolecall.core.models import ModelEntry
from rolecall.runtime.footprints import Footprints, Gpu
from rolecall.runtime.projectors import beside as projector_beside
from rolecall.runtime.projectors import may_have_one

SNAPSHOTS = "snapshots"
"""Where a model lies in Hugging Face's cache: in a folder of it for each revision."""


class NoModel(ValueError):
    """A path that is no model; the message says why, and what would be one."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What one model needs, and what the cards leave of it.

    ``needs`` is what the scheduler would reserve, ``parts`` what its files say. ``largest_tokens`` is the longest
    context with which it fits, None if there is none or it is not known; ``own_tokens`` the one it was trained for.
    """

    entry: ModelEntry
    backend: str
    needs: Footprint
    parts: Estimate | None
    slots: int
    room_mb: int
    tenant: Tenant | None
    largest_tokens: int | None
    own_tokens: int | None
    problem: str | None

    @property
    def fits(self) -> bool | None:
        """Whether it fits if it is alone; None where it is not known what it needs."""
        return None if self.needs.mb is None else self.needs.mb <= self.room_mb


@dataclass(frozen=True, slots=True)
class Fitting:
    """Fits models on cards; it looks at their files. ``device`` returns the device that an entry's ``gpus`` mean."""

    footprints: Footprints
    backend_for: Callable[[ModelEntry], Backend]
    cards: Cards
    device: Callable[[int | str], str] | None = None

    def of(self, entry: ModelEntry, context: int | None = None, slots: int | None = None) -> Fit:
        """Return the fit of an entry, with this context in tokens and so many requests at once if they are given."""
        entry = entry if context is None else with_context(entry, context)
        entry = entry if slots is None else with_slots(entry, slots)
        backend = self.backend_for(entry)
        needs, parts = self.footprints.of(entry), self.footprints.computed(entry) if backend.managed else None
        spread = backend.spread(entry).over(len(self.cards.devices))
        room_mb = self.cards.room_mb(spread)
        devices = tuple(map(self.device, entry.gpus)) if self.device else ()
        own = self.footprints.context_tokens(entry)
        return Fit(
            entry=entry,
            backend=backend.name,
            needs=needs,
            parts=parts,
            slots=backend.parallel(entry),
            room_mb=room_mb,
            tenant=None if needs.mb is None or not backend.managed else Tenant(entry.name, needs.mb, spread, devices),
            largest_tokens=self._largest(entry, needs, parts, room_mb, own) if parts else None,
            own_tokens=own,
            problem=self.footprints.files.problem(entry, backend) if backend.managed and parts is None else None,
        )

    def _largest(
        self, entry: ModelEntry, needs: Footprint, parts: Estimate, room_mb: int, own: int | None
    ) -> int | None:
        """What loads have taught of the model with its present context holds for another one as well."""
        takes_share = self.backend_for(entry).takes_share
        more_mb = needs.mb - parts.mb if needs.source == "learnt" and needs.mb is not None else 0

        def need_mb(tokens: int) -> int:
            found = self.footprints.computed(with_context(entry, tokens))
            return room_mb + 1 if found is None else (found.least_mb if takes_share else found.mb) + more_mb

        return largest_context(need_mb, room_mb, own or 0)


def beside_each(cards: Cards, fits: Sequence[Fit]) -> dict[str, list[str]]:
    """Return for each model that fits which of the others fits beside it."""
    tenants = [fit.tenant for fit in fits if fit.tenant is not None and fit.fits]
    return {t.name: beside(cards, t, [other for other in tenants if other is not t]) for t in tenants}


def imagined(footprints: Footprints, cards: Cards) -> Footprints:
    """Return what is known of models for cards that need not be here: what was learnt on others does not hold."""
    gpus = {d.id: Gpu(d.id, d.capacity_mb) for d in cards.devices} if cards.are_gpus else {}
    return replace(footprints, gpus=gpus)


def unlisted(path: Path) -> ModelEntry:
    """Return an entry for a GGUF or a folder of safetensors that is in no registry; raises ``NoModel``, ``OSError``."""
    found = _model_in(path.absolute())
    if found.is_dir():
        return ModelEntry.model_validate(
            {"name": path.resolve().name, "backend": "vllm", "backend_config": {"model_path": str(found)}}
        )
    entry = ModelEntry.model_validate(
        {"name": found.stem[:256], "backend": "llama_cpp", "backend_config": {"model_path": str(found)}}
    )
    projector = projector_beside(found) if may_have_one(entry) and "mmproj" not in found.name.lower() else None
    if projector is None:
        return entry
    config = {"model_path": str(found), "mmproj_path": projector}
    return ModelEntry.model_validate({**entry.model_dump(exclude_unset=True), "backend_config": config})


def _model_in(path: Path) -> Path:
    """Return the file or folder that holds the weights: what is named, or the only one in a folder."""
    if not path.exists():
        raise NoModel(f"{path} does not exist")
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise NoModel(f"{path} is no GGUF: name a file that ends in .gguf, or a folder with a config.json")
        return path
    if (path / "config.json").exists():
        return path
    if (path / SNAPSHOTS).is_dir():
        revisions = [folder for folder in (path / SNAPSHOTS).iterdir() if folder.is_dir()]
        if revisions:
            return _model_in(max(revisions, key=lambda folder: folder.stat().st_mtime))
    models = sorted(file for file in path.glob("*.gguf") if _is_first(file.name))
    if len(models) == 1:
        return models[0]
    if models:
        raise NoModel(f"{path} has {len(models)} models, name one of them: {', '.join(file.name for file in models)}")
    raise NoModel(f"{path} holds no model: neither a config.json nor a GGUF")


def _is_first(name: str) -> bool:
    later_part = "-of-" in name and "-00001-of-" not in name
    return "mmproj" not in name.lower() and not later_part
