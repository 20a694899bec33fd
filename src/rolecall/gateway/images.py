"""The images of a request: those named by an address are fetched or refused, large ones made smaller for a model."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread

from rolecall.core.addresses import NotFetchable
from rolecall.core.fit import GONE_NOTE
from rolecall.core.long_text import TEXTS
from rolecall.core.media import (
    Medium,
    Path,
    Places,
    find_media,
    images,
    inlined,
    shrunk_in_place,
    value_at,
    with_changes,
)
from rolecall.core.models import ModelEntry
from rolecall.core.transforms import RequestFacts
from rolecall.errors import BodyTooLarge, InvalidImage, InvalidImageUrl, InvalidMediaUrl, RolecallError
from rolecall.gateway.image_fetch import ImageFetcher
from rolecall.gateway.image_text import Unreadable, as_base64
from rolecall.gateway.pictures import Pictures
from rolecall.settings import Settings

_SLOW_S = 1.0
AT_ONCE = 4
"""Images of one request that are fetched at the same time."""


class Images:
    """Made once for all requests. A body that is returned shares with the one that was given what did not change."""

    def __init__(
        self, settings: Settings, fetcher: ImageFetcher | None = None, pictures: Pictures | None = None
    ) -> None:
        self._settings = settings
        self._fetcher = fetcher or ImageFetcher(
            hosts=settings.image_hosts, timeout_s=settings.image_fetch_timeout_ms / 1000
        )
        self._pictures = pictures or Pictures()

    async def admit(
        self,
        body: Mapping[str, Any],
        facts: RequestFacts,
        places: Places | None = None,
        dispensable: Collection[tuple[int, int]] = (),
    ) -> tuple[Mapping[str, Any], int]:
        """Return the body with each image in it that was named by its address, so that no engine fetches anything.

        ``places`` tells where each stood before the history was cut, and is told what becomes of it. Of ``dispensable``
        images, by message and position in its content, those that cannot be fetched are left out, and a text takes
        their place: addresses of pictures expire while a conversation goes on. How many that were is returned as well.

        Raises ``InvalidMediaUrl`` and ``InvalidImageUrl`` for what may not be fetched or could not be, ``BodyTooLarge``
        for images that are too large together, ``TooManyRequests``.
        """
        if not facts.addresses or self._settings.image_urls == "pass":
            return body, 0
        places = places or Places()
        wanted = self._wanted(body, find_media(body), places)
        if not wanted:
            return body, 0
        fetching = _Fetching(self._fetcher, self._settings, places, dispensable)
        return with_changes(body, await fetching.run(body, wanted)), fetching.left_out

    async def shrink(
        self, body: Mapping[str, Any], entry: ModelEntry, places: Places | None = None
    ) -> Mapping[str, Any]:
        """Return the body with no image above the entry's ``max_image_pixels``; raises ``InvalidImage``."""
        max_pixels = entry.max_image_pixels
        if max_pixels is None:
            return body
        changes: dict[Path, Any] = {}
        for index, image in enumerate(images(find_media(body))):
            text = value_at(body, image.path)
            if image.is_address or not isinstance(text, TEXTS):
                continue
            try:
                smaller = await self._pictures.shrunk(text, max_pixels, entry.image_jpeg_quality)
            except Unreadable as error:
                at, param = (places or Places()).place(text, index, image.param)
                raise InvalidImage(f"Image {at} at {param} {error}.", param=param) from None
            if smaller is not None:
                changes.update(shrunk_in_place(body, image, *smaller))
        return with_changes(body, changes) if changes else body

    async def aclose(self) -> None:
        """Close what is open."""
        await self._fetcher.aclose()

    def _wanted(self, body: Mapping[str, Any], media: Sequence[Medium], places: Places) -> dict[str, list[_Wanted]]:
        """Return the URLs to fetch, each with the images that it stands for."""
        wanted: dict[str, list[_Wanted]] = {}
        numbers = {image.path: index for index, image in enumerate(images(media))}
        for medium in media:
            if not medium.is_address:
                continue
            url = value_at(body, medium.path)
            index, param = places.place(url, numbers.get(medium.path, 0), medium.param)
            if medium.kind != "image":
                raise InvalidMediaUrl(
                    f"The {medium.kind} at {param} is given by an address, and only images are fetched; "
                    "send it inline, as base64 (setting image_urls).",
                    param=param,
                )
            image = _Wanted(medium, url, index, param)
            if self._settings.image_urls == "refuse":
                raise image.not_fetched("is refused here; send it as a data URI (setting image_urls)")
            if not medium.can_be_fetched:
                raise image.not_fetched("stands where base64 belongs")
            wanted.setdefault(url, []).append(image)
        return wanted


@dataclass(frozen=True, slots=True)
class _Wanted:
    """An image that is named by its address; ``index`` and ``param`` are those of the request as it came."""

    medium: Medium
    url: str
    index: int
    param: str

    def not_fetched(self, reason: str) -> InvalidImageUrl:
        """Return the error for it."""
        return InvalidImageUrl(
            f"Image {self.index} at {self.param} is not fetched: its URL {reason}.", param=self.param
        )


@dataclass
class _Fetching:
    """The fetching of one request's images."""

    fetcher: ImageFetcher
    settings: Settings
    places: Places
    dispensable: Collection[tuple[int, int]] = ()
    left_out: int = 0
    slow_hosts: set[str] = field(default_factory=set)
    """Which took long to fail: a conversation's dead pictures, mostly of one host, must not add up their waits."""
    changes: dict[Path, Any] = field(default_factory=dict)
    size: int = 0
    failure: RolecallError | None = None

    async def run(self, body: Mapping[str, Any], wanted: Mapping[str, list[_Wanted]]) -> Mapping[Path, Any]:
        """Return what has to change in the body; the first failure ends all fetches."""
        gate = anyio.Semaphore(AT_ONCE)
        async with anyio.create_task_group() as group:

            async def fetch(url: str, stands_for: list[_Wanted]) -> None:
                async with gate:
                    try:
                        await self._one(body, url, stands_for)
                    except RolecallError as error:
                        self.failure = self.failure or error
                        group.cancel_scope.cancel()

            for url, stands_for in wanted.items():
                group.start_soon(fetch, url, stands_for)
        if self.failure is not None:
            raise self.failure
        return self.changes

    async def _one(self, body: Mapping[str, Any], url: str, stands_for: list[_Wanted]) -> None:
        first = stands_for[0]
        needed = next((image for image in stands_for if not self._is_dispensable(image)), None)
        host, began_at = urlsplit(url).netloc, time.monotonic()
        if needed is None and host in self.slow_hosts:
            self._leave_out(stands_for)
            return
        try:
            fetched = await self.fetcher.fetch(url, self.settings.max_image_bytes)
        except NotFetchable as error:
            if needed is not None:
                raise needed.not_fetched(str(error)) from None
            if time.monotonic() - began_at > _SLOW_S:
                self.slow_hosts.add(host)
            self._leave_out(stands_for)
            return
        self.size += len(fetched.data) * len(stands_for)
        if self.size > self.settings.max_body_bytes:
            raise BodyTooLarge(
                f"The images of the request have more than {self.settings.max_body_bytes} bytes together "
                "(setting max_body_bytes).",
                param=first.param,
            )
        coded = await anyio.to_thread.run_sync(as_base64, fetched.data)
        for image in stands_for:
            path, value = inlined(body, image.medium, fetched.media_type, coded)
            self.changes[path] = value
            self.places.replace(image.url, value if isinstance(value, str) else coded)

    def _leave_out(self, images: Sequence[_Wanted]) -> None:
        self.changes.update((image.medium.path[:4], {"type": "text", "text": GONE_NOTE}) for image in images)
        self.left_out += len(images)

    def _is_dispensable(self, image: _Wanted) -> bool:
        match image.medium.path:
            case ("messages", int(message), "content", int(position), *_):
                return (message, position) in self.dispensable
        return False
