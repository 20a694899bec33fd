"""What an earlier run has written down, as far as it spares work."""

from __future__ import annotations

from collections.abc import Iterable

from rolecall.vision.batch_record import Key, Record


class Earlier:
    """The answers of an output, without what they say."""

    def __init__(self, records: Iterable[Record] = (), *, sidecars: bool = False) -> None:
        self._digests: dict[Key, str] = {}
        self._without_sidecar: dict[Key, Record] = {}
        for record in records:
            self._digests.pop(record.key, None)
            self._without_sidecar.pop(record.key, None)
            if record.status == "ok":
                self._digests[record.key] = record.sha256
                if sidecars and record.sidecar is None:
                    self._without_sidecar[record.key] = record

    def __len__(self) -> int:
        """How many answers there are."""
        return len(self._digests)

    def __contains__(self, key: object) -> bool:
        """Whether there is an answer, to whatever bytes."""
        return key in self._digests

    def has(self, key: Key, sha256: str) -> bool:
        """Whether there is an answer to these bytes."""
        return self._digests.get(key) == sha256

    def without_sidecar(self, key: Key) -> Record | None:
        """Return the record whose answer is to be put into a sidecar still."""
        return self._without_sidecar.get(key)
