"""The images of a request: those named by an address are fetched or refused, large ones made smaller for a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.to_thread

from rolecall.core.addresses import NotFetchable
from rolecall.core.media import Medium, Path, find_media, images, inlined, shrunk_in_place, value_at, with_changes
from rolecall.core.models import ModelEntry
from rolecall.core.transforms import RequestFacts
from rolecall.errors import BodyTooLarge, InvalidImage, InvalidImageUrl, InvalidMediaUrl, RolecallError
from rolecall.gateway.image_fetch import ImageFetcher
from rolecall.gateway.pictures import ImageSizes, Pictures, Unreadable, as_base64
from rolecall.settings import Settings

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

    async def admit(self, body: Mapping[str, Any], facts: RequestFacts) -> Mapping[str, Any]:
        """Return the body with each image in it that was named by its address, so that no engine fetches anything.

        Raises ``InvalidMediaUrl`` and ``InvalidImageUrl`` for what may not be fetched or could not be, ``BodyTooLarge``
        for images that are too large together, ``TooManyRequests``.
        """
        if not facts.addresses or self._settings.image_urls == "pass":
            return body
        media = find_media(body)
        wanted = self._wanted(body, media)
        return with_changes(body, await _Fetching(self._fetcher, self._settings).run(body, wanted)) if wanted else body

    async def shrink(self, body: Mapping[str, Any], entry: ModelEntry) -> Mapping[str, Any]:
        """Return the body with no image above the entry's ``max_image_pixels``; raises ``InvalidImage``."""
        max_pixels = entry.max_image_pixels
        if max_pixels is None:
            return body
        changes: dict[Path, Any] = {}
        for index, image in enumerate(images(find_media(body))):
            text = value_at(body, image.path)
            if image.is_address or not isinstance(text, str):
                continue
            try:
                smaller = await self._pictures.shrunk(text, max_pixels, entry.image_jpeg_quality)
            except Unreadable as error:
                raise InvalidImage(f"Image {index} at {image.param} {error}.", param=image.param) from None
            if smaller is not None:
                changes.update(shrunk_in_place(body, image, *smaller))
        return with_changes(body, changes) if changes else body

    def sizes(self) -> ImageSizes:
        """Return what looks the sizes of one request's images up."""
        return self._pictures.sizes()

    async def aclose(self) -> None:
        """Close what is open."""
        await self._fetcher.aclose()

    def _wanted(self, body: Mapping[str, Any], media: Sequence[Medium]) -> dict[str, list[tuple[int, Medium]]]:
        """Return the URLs to fetch, each with the images that it stands for and their indexes."""
        wanted: dict[str, list[tuple[int, Medium]]] = {}
        numbers = {image.path: index for index, image in enumerate(images(media))}
        for medium in media:
            if not medium.is_address:
                continue
            if medium.kind != "image":
                raise InvalidMediaUrl(
                    f"The {medium.kind} at {medium.param} is given by an address, and only images are fetched; "
                    "send it inline, as base64 (setting image_urls).",
                    param=medium.param,
                )
            index = numbers[medium.path]
            if self._settings.image_urls == "refuse":
                raise not_fetched(index, medium, "is refused here; send it as a data URI (setting image_urls)")
            if not medium.can_be_fetched:
                raise not_fetched(index, medium, "stands where base64 belongs")
            wanted.setdefault(value_at(body, medium.path), []).append((index, medium))
        return wanted


def not_fetched(index: int, image: Medium, reason: str) -> InvalidImageUrl:
    """Return the error for an image that is not fetched."""
    return InvalidImageUrl(f"Image {index} at {image.param} is not fetched: its URL {reason}.", param=image.param)


@dataclass
class _Fetching:
    """The fetching of one request's images."""

    fetcher: ImageFetcher
    settings: Settings
    changes: dict[Path, Any] = field(default_factory=dict)
    size: int = 0
    failure: RolecallError | None = None

    async def run(self, body: Mapping[str, Any], wanted: Mapping[str, list[tuple[int, Medium]]]) -> Mapping[Path, Any]:
        """Return what has to change in the body; the first failure ends all fetches."""
        gate = anyio.Semaphore(AT_ONCE)
        async with anyio.create_task_group() as group:

            async def fetch(url: str, stands_for: list[tuple[int, Medium]]) -> None:
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

    async def _one(self, body: Mapping[str, Any], url: str, stands_for: list[tuple[int, Medium]]) -> None:
        index, first = stands_for[0]
        try:
            fetched = await self.fetcher.fetch(url, self.settings.max_image_bytes)
        except NotFetchable as error:
            raise not_fetched(index, first, str(error)) from None
        self.size += len(fetched.data) * len(stands_for)
        if self.size > self.settings.max_body_bytes:
            raise BodyTooLarge(
                f"The images of the request have more than {self.settings.max_body_bytes} bytes together "
                "(setting max_body_bytes).",
                param=first.param,
            )
        coded = await anyio.to_thread.run_sync(as_base64, fetched.data)
        for _, image in stands_for:
            path, value = inlined(body, image, fetched.media_type, coded)
            self.changes[path] = value
