"""The header of a GGUF that is still on the hub: some megabytes at its beginning say what it will need."""

from __future__ import annotations

import io
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, BinaryIO, cast

from rolecall.core.hub_fit import Knowledge
from rolecall.core.hub_listing import Choice, HubFile
from rolecall.hub.failures import HubError
from rolecall.runtime.gguf_facts import gguf_facts, projector_facts
from rolecall.runtime.gguf_header import GgufHeader, read_gguf_from

if TYPE_CHECKING:
    from rolecall.hub.client import Hub, Repository

FIRST_BYTES, STEP_BYTES = 2**18, 2**22
MOST_PARTS = 16
"""A model has one header with its metadata and a small one for each further part, each of which is asked for."""
Tell = Callable[[str], None]
"""Takes in what is looked at now, in words."""
log = logging.getLogger(__name__)


def knowledge(  # noqa: PLR0913 - what is read, and how
    hub: Hub,
    repository: Repository,
    found: Sequence[Choice],
    most_context: int,
    *,
    until: float = math.inf,
    tell: Tell = lambda _what: None,
) -> Knowledge | None:
    """Return what one of the GGUFs says, which holds for all quantizations of its model; None if that cannot be had.

    The context is the model's own, up to ``most_context`` tokens. What has not come by ``until`` (of
    ``time.monotonic``) counts as not to be had. ``tell`` is called with what is read, and with why that failed.
    """
    sample = _sample(found)
    if sample is None:
        return None
    tell(f"reading the beginning of {sample.first.path}")
    try:
        facts = gguf_facts(_whole(hub, repository, sample, until))
        projector = (
            projector_facts(remote_header(hub, repository, sample.projector, until)) if sample.projector else None
        )
    except (HubError, ValueError) as error:
        log.info("the header of %s cannot be read: %s", sample.first.path, error)
        tell(f"{str(error).splitlines()[0]}; what it needs is guessed by the sizes of its files")
        return None
    if not facts.tensor_bytes:
        return None
    return Knowledge(facts, min(facts.context_tokens, most_context), projector)


def _sample(found: Sequence[Choice]) -> Choice | None:
    """Return the model to look at: one in a single file if there is one, else one of few parts."""
    gguf = [choice for choice in found if choice.format == "gguf"]
    sample = min(gguf, key=lambda choice: len(choice.files), default=None)
    return sample if sample and len(sample.files) <= MOST_PARTS else None


def _whole(hub: Hub, repository: Repository, choice: Choice, until: float) -> GgufHeader:
    headers = [remote_header(hub, repository, file, until) for file in choice.files]
    tensors = {name: tensor for header in headers for name, tensor in header.tensors.items()}
    return GgufHeader(headers[0].metadata, tensors)


def remote_header(hub: Hub, repository: Repository, file: HubFile, until: float = math.inf) -> GgufHeader:
    """Return the header of one file; raises `HubError`, or ``ValueError`` for one that makes no sense."""
    return read_gguf_from(cast("BinaryIO", _Beginning(hub, repository, file, until)), file.size_bytes)


class _Beginning(io.RawIOBase):
    """A file of the hub that is read from its beginning, in steps; what came is kept."""

    def __init__(self, hub: Hub, repository: Repository, file: HubFile, until: float) -> None:
        super().__init__()
        self._hub, self._repository, self._file, self._until = hub, repository, file, until
        self._data = bytearray()
        self._at = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte, counted from the beginning."""
        del whence
        self._at = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        """Return up to ``size`` bytes, fewer where that would take more than a step."""
        step = STEP_BYTES if self._data else FIRST_BYTES
        end = min(self._at + size, len(self._data) + step, self._file.size_bytes)
        if end > len(self._data):
            self._data += self._hub.patiently(lambda: self._fetched(end), self._repository.id, until=self._until)
        return bytes(self._data[self._at : end])

    def _fetched(self, end: int) -> bytes:
        start, wanted = len(self._data), end - len(self._data)
        self._in_time()
        with self._hub.stream(self._repository, self._file.path, start, end, until=self._until) as incoming:
            skip = start - incoming.start  # a server without ranges begins at the beginning
            came = bytearray()
            for chunk in incoming.chunks:
                came += chunk
                self._in_time()
                if len(came) >= skip + wanted:
                    break
        return bytes(came[skip : skip + wanted])

    def _in_time(self) -> None:
        if time.monotonic() >= self._until:
            raise HubError(f"the beginning of {self._file.path} did not come in time")
