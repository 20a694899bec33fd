"""Hugging Face's hub, or another one that speaks its interface, through huggingface_hub.

Only this module imports that library, and the commands import this module when they need it: it takes 0.15 s and 25 MB.
Repositories, tokens and errors are the library's. Contents are streamed over its session, but not by its
``hf_hub_download``, which since release 1.18 begins each file anew after a break (issue 4196 of its repository) and
never compares hashes.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2
from huggingface_hub import HfApi, ModelInfo, constants, get_session, get_token, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, parse_ratelimit_headers

from rolecall import __version__
from rolecall.core.hub_listing import HubFile, unsafe
from rolecall.core.json_text import as_text
from rolecall.hub.failures import HubError, HubInterruption

T = TypeVar("T")
Wait = Callable[[float, str], None]
"""Waits so many seconds; the text says what for."""

CONNECT_TIMEOUT_S = 10.0
MOST_TRIES = 5
LONGEST_WAIT_S = 120.0
"""A hub that asks for a longer pause is not waited for."""
FIRST_PAUSE_S = 0.5
_ID = re.compile(r"[\w-][\w.-]{0,95}(/[\w-][\w.-]{0,95})?", re.ASCII)
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Repository:
    """A model repository at one revision (``commit``), which ``ref`` named."""

    id: str
    commit: str
    ref: str
    files: tuple[HubFile, ...]
    license: str | None
    is_gated: bool
    url: str


@dataclass(frozen=True, slots=True)
class Listed:
    """A repository as a search lists it; ``parameters`` as its files say, None where that is unknown."""

    id: str
    license: str | None
    is_gated: bool
    downloads: int
    likes: int
    parameters: int | None
    architecture: str | None
    context_tokens: int | None


@dataclass(frozen=True, slots=True)
class Incoming:
    """Content that arrives: from which byte on, of how many in all (None if nobody says)."""

    start: int
    total_bytes: int | None
    chunks: Iterator[bytes]


def pause(seconds: float, _why: str) -> None:
    """Wait in silence."""
    time.sleep(seconds)


class Hub:
    """A hub at an address; ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` count as for all of its clients.

    Every method raises `HubError`. What may pass is asked for again, with pauses by ``wait``.
    """

    def __init__(self, endpoint: str | None = None, wait: Wait = pause) -> None:
        self.endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        self.wait = wait
        self._api = HfApi(endpoint=self.endpoint, library_name="rolecall", library_version=__version__)
        get_session().timeout = _timeout(math.inf)

    def search(self, query: str, limit: int, *, gguf: bool = True) -> list[Listed]:
        """Return repositories of models for a few words, the most downloaded first."""
        params = {
            "search": query,
            "sort": "downloads",
            "limit": limit,
            "expand": ["downloads", "likes", "gated", "tags", "gguf"],
            **({"filter": "gguf"} if gguf else {}),
        }
        return self.patiently(lambda: self._page(params)[:limit], query)

    def _page(self, params: Mapping[str, Any]) -> list[Listed]:
        """Ask for one page of models, once: the library's own search asks again by itself, for as long as it likes."""
        headers = build_hf_headers(library_name="rolecall", library_version=__version__)
        response = get_session().get(f"{self.endpoint}/api/models", params=params, headers=headers)
        hf_raise_for_status(response)
        return [_listed(ModelInfo(**row)) for row in response.json()]  # type: ignore[no-untyped-call] # not typed there

    def repository(self, name: str, revision: str | None = None) -> Repository:
        """Return a repository with the names, sizes and digests of its files."""
        info = self.patiently(
            lambda: self._api.model_info(name, revision=revision, files_metadata=True, timeout=30), name
        )
        with self._told(name):
            files = tuple(map(_file, info.siblings or []))
            commit = _digest(info.sha, 40)
        if not commit or not _ID.fullmatch(str(info.id)):
            raise HubError(f"{self.endpoint} names neither repository nor revision: {info.id!r}, {info.sha!r}")
        if hostile := [(file.path, why) for file in files if (why := unsafe(file.path))]:
            raise HubError(f"{info.id} has a file called {hostile[0][0]!r}, which {hostile[0][1]}: nothing is fetched")
        ref = revision or "main"
        id_ = str(info.id)
        return Repository(id_, commit, ref, files, _license(info), bool(info.gated), self.address(id_))

    def address(self, name: str) -> str:
        """Return where people read about a repository."""
        return f"{self.endpoint}/{name}"

    @contextmanager
    def stream(
        self, repository: Repository, path: str, start: int = 0, end: int | None = None, *, until: float = math.inf
    ) -> Iterator[Incoming]:
        """Yield the content of a file from a byte on, up to before ``end``; it is asked for once.

        A hub may redirect to another host for it, which is not told our token. No single silence is waited out beyond
        ``until`` (of ``time.monotonic``).
        """
        headers = build_hf_headers(library_name="rolecall", library_version=__version__)
        headers["Accept-Encoding"] = "identity"  # the bytes that were hashed
        if start or end is not None:
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        url = hf_hub_url(repository.id, path, revision=repository.commit, endpoint=self.endpoint)
        with ExitStack() as stack:
            with self._told(repository.id):
                response = stack.enter_context(
                    get_session().stream("GET", url, headers=headers, timeout=_timeout(until))
                )
                hf_raise_for_status(response)
                begin, total = _span(response)
            yield Incoming(begin, total, self._chunks(repository.id, response))

    def _chunks(self, name: str, response: httpx2.Response) -> Iterator[bytes]:
        with self._told(name):
            yield from response.iter_bytes()

    def patiently(self, ask: Callable[[], T], name: str, *, until: float = math.inf) -> T:
        """Return what ``ask`` gives, asking again after what may pass, but not after ``until``."""
        tries = 0
        while True:
            try:
                with self._told(name):
                    return ask()
            except HubInterruption as error:
                tries += 1
                self.rest(error, tries, until=until)

    def rest(self, error: HubInterruption, tries: int, *, until: float = math.inf) -> None:
        """Wait before the next attempt after ``tries`` that failed; raises the error if there shall be none."""
        seconds = FIRST_PAUSE_S * 2 ** (tries - 1) if error.retry_after_s is None else error.retry_after_s
        if tries >= MOST_TRIES or seconds > min(LONGEST_WAIT_S, until - time.monotonic()):
            raise error
        self.wait(seconds, str(error).splitlines()[0])

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """Turn what the library raises into words about a repository."""
        try:
            yield
        except HubError:
            raise
        except OfflineModeIsEnabled:
            raise HubError(
                "HF_HUB_OFFLINE is set, so nothing is fetched: unset it to ask the hub, "
                "or see `rolecall models list --disk` for what is here"
            ) from None
        except HFValidationError as error:
            raise HubError(f"{name!r} is no name of a repository: {error}") from None
        except HfHubHTTPError as error:
            raise self._answered(name, error) from None
        except httpx2.UnsupportedProtocol as error:
            raise HubError(f"{self.endpoint} is no address of a hub: {error}; HF_ENDPOINT names it") from None
        except httpx2.TransportError as error:
            reason = str(error) or type(error).__name__
            raise HubInterruption(f"{self.endpoint} cannot be reached, or broke off: {reason}") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise HubError(f"{self.endpoint}: {error}; HF_ENDPOINT names the hub") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise HubError(
                f"what answers at {self.endpoint} does not speak a hub's language ({type(error).__name__}: {error}); "
                "HF_ENDPOINT names the hub"
            ) from None

    def _answered(self, name: str, error: HfHubHTTPError) -> HubError:
        status = error.response.status_code
        if status in _PASSING:
            what = "asks for a pause" if status == 429 else "is in trouble"
            return HubInterruption(f"{self.endpoint} {what} ({status}): try again later", _retry_after(error.response))
        words = (error.server_message or "no reason was given").splitlines()[0][:200]
        by_status = {
            401: f"{self.endpoint} does not take the token of HF_TOKEN (or of `hf auth login`): "
            f"make a new one at {self.endpoint}/settings/tokens, or unset it for what is public",
            403: f"{self.endpoint} does not let us have {name}: {_TOKEN_MAY_NOT}; {words}",
            416: f"{name} has a file with fewer bytes than it lists",
        }
        told = self._explained(name, error) or by_status.get(status)
        return HubError(told or f"{self.endpoint} answered {status} for {name}: {words}")

    def _explained(self, name: str, error: HfHubHTTPError) -> str | None:
        if isinstance(error, GatedRepoError):
            return self._gated(name)
        if isinstance(error, RevisionNotFoundError):
            return f"{name} has no such revision: {self.address(name)}/commits lists them"
        if isinstance(error, RemoteEntryNotFoundError):
            return f"{name} lists a file that {self.endpoint} does not have; ask again later"
        if isinstance(error, RepositoryNotFoundError):
            private = _TOKEN_MAY_NOT if get_token() else "for a private one set HF_TOKEN"
            known = "`rolecall models search` finds names"
            return f"{self.endpoint} has no model {name}, or it is private: {known}; {private}"
        return None

    def _gated(self, name: str) -> str:
        terms = f"{name} is only given to those who accept its terms: sign in and accept them at {self.address(name)}"
        if get_token():
            return f"{terms} with the account of your token, which may need the right to read gated models"
        return f"{terms}, make a token at {self.endpoint}/settings/tokens, and set HF_TOKEN to it"


_TOKEN_MAY_NOT = "the token may lack the right to read it"  # noqa: S105 - words


def _timeout(until: float) -> httpx2.Timeout:
    """Return how long a connection, and each part of an answer, is waited for."""
    left_s = max(0.1, until - time.monotonic())
    return httpx2.Timeout(min(constants.HF_HUB_DOWNLOAD_TIMEOUT, left_s), connect=min(CONNECT_TIMEOUT_S, left_s))


def _listed(info: ModelInfo) -> Listed:
    facts = info.gguf if isinstance(info.gguf, dict) else {}
    return Listed(
        info.id,
        _license(info),
        bool(info.gated),
        info.downloads or 0,
        info.likes or 0,
        _whole(facts.get("total")),
        facts.get("architecture") if isinstance(facts.get("architecture"), str) else None,
        _whole(facts.get("context_length")),
    )


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 < value < 2**53 else None


def _license(info: ModelInfo) -> str | None:
    card = info.card_data
    named = getattr(card, "license_name", None) or getattr(card, "license", None)
    if isinstance(named, str) and named:
        return as_text(named[:80])
    tags = [tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")]
    return as_text(tags[0][:80]) if tags else None


def _file(sibling: Any) -> HubFile:
    lfs = sibling.lfs
    size = lfs.size if lfs else sibling.size
    if not isinstance(size, int) or size < 0:
        raise TypeError(f"no size of {sibling.rfilename!r}")
    sha256 = _digest(lfs.sha256, 64) if lfs else None
    return HubFile(str(sibling.rfilename), size, sha256, None if lfs else _digest(sibling.blob_id, 40))


def _digest(value: Any, length: int) -> str | None:
    """Return a hash in hexadecimal as it is, None for anything else: files are named after it."""
    return value if isinstance(value, str) and re.fullmatch(rf"[0-9a-f]{{{length}}}", value) else None


def _span(response: httpx2.Response) -> tuple[int, int | None]:
    """Return where an answer begins, and how long the file is; without a range it is the whole file."""
    span = response.headers.get("Content-Range", "")
    if response.status_code == 206 and span.startswith("bytes "):
        first, _, total = span[len("bytes ") :].rpartition("/")
        return int(first.partition("-")[0]), int(total) if total.isdecimal() else None
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _retry_after(response: httpx2.Response) -> float | None:
    """Return the pause that is asked for, in either of the two ways that hubs have."""
    limit = parse_ratelimit_headers(response.headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    value = response.headers.get("Retry-After", "").strip()
    return float(value) if value.isdecimal() else None
