"""A running rolecall, asked over HTTP."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any
from urllib.parse import quote

import httpx
import typer

from rolecall.cli.common import CommandError
from rolecall.settings import Settings, load_settings

Url = Annotated[
    str | None,
    typer.Option("--url", help="Address of the running rolecall; else host and port of the settings.", metavar="URL"),
]

KEY_VARIABLE = "ROLECALL_API_KEY"
"""The commands' own API key. No option: command lines can be seen by everybody on the machine."""

_CONNECT_S = 3.0
_ANSWER_S = 10.0
_ANY_ADDRESS = MappingProxyType({"0.0.0.0": "127.0.0.1", "::": "::1"})  # noqa: S104 - where it listens, not where we do


class KeyNeeded(CommandError):
    """There is a rolecall, and it does not tell without a key."""


class NoRolecall(CommandError):
    """Nobody answers there, or something else than a rolecall."""


class Client:
    """The endpoints that the commands use; each raises ``CommandError`` with the reason when it gets no result."""

    def __init__(self, url: str, http: httpx.Client) -> None:
        self.url = url
        self._http = http

    def health(self, *, within_s: float = _ANSWER_S) -> dict[str, Any]:
        """Return ``/health``; what answers without a memory budget is some other server."""
        answer = self._ask("GET", "/health", answer_s=within_s)
        if answer.get("name") == "rolecall":
            raise KeyNeeded(self._closed())
        if "budget_mb" not in answer:
            raise NoRolecall(self._foreign())
        return answer

    def models(self) -> dict[str, Any]:
        """Return a row for each model that is installed or runs (``data``), and one for each GPU (``gpus``)."""
        return self._ask("GET", "/v1/models/health")

    def profile(self) -> dict[str, Any]:
        """Return the profile in force and the GPUs."""
        return self._ask("GET", "/v1/config/profile")

    def admit(self) -> None:
        """Fail unless our key, whatever its scope, or the lack of one is right."""
        try:
            self._ask("GET", "/v1/models")
        except CommandError as error:
            raise KeyNeeded(f"{error}\n{KEY_VARIABLE} is where the commands look for a key") from None

    def card(self, name: str) -> dict[str, Any]:
        """Return what is listed of a model."""
        return self._ask("GET", f"/v1/models/{_part(name)}")

    def choice(self, role: str) -> dict[str, Any]:
        """Return the model that a role stands for now, with what it needs of the memory."""
        return self._ask("GET", f"/v1/models/select_by_role?role={_part(role)}")

    def load(self, name: str) -> dict[str, Any]:
        """Start a model and return its row once it is ready, however long that takes."""
        return self._ask("POST", f"/v1/models/{_part(name)}/load", answer_s=None)

    def unload(self, name: str) -> dict[str, Any]:
        """Stop a model and return its row once its process is gone, however long that takes."""
        return self._ask("POST", f"/v1/models/{_part(name)}/unload", answer_s=None)

    def pin(self, name: str, *, pinned: bool) -> dict[str, Any]:
        """Have a model keep its place, or no longer, and return its row."""
        return self._ask("POST", f"/v1/models/{_part(name)}/{'pin' if pinned else 'unpin'}")

    def cancel(self, request_id: str) -> dict[str, Any]:
        """Stop a request that is being served."""
        return self._ask("POST", f"/v1/requests/{_part(request_id)}/cancel")

    def reload(self) -> dict[str, Any]:
        """Have the configuration read again; return what came of it."""
        return self._ask("POST", "/v1/admin/reload")

    def snapshot(self) -> str:
        """Have the datasets copied into a file beside them, however long that takes; return its path over there."""
        return str(self._ask("POST", "/datasets/snapshot", answer_s=None).get("path"))

    def _ask(self, method: str, path: str, *, answer_s: float | None = _ANSWER_S) -> dict[str, Any]:
        timeout = httpx.Timeout(answer_s, connect=_CONNECT_S)
        try:
            response = self._http.request(method, self.url + path, timeout=timeout)
        except httpx.ConnectError as error:
            raise NoRolecall(self._absent(str(error))) from None
        except httpx.ConnectTimeout:
            raise NoRolecall(self._absent(f"no connection within {_CONNECT_S:g} s")) from None
        except httpx.ReadTimeout:
            raise CommandError(f"{self.url}{path} did not answer within {answer_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise CommandError(f"{self.url}{path}: {str(error) or type(error).__name__}") from None
        return self._content(response)

    def _content(self, response: httpx.Response) -> dict[str, Any]:
        try:
            content = response.json()
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise NoRolecall(self._foreign())
        if response.is_error:  # else it is a field of the answer: a model's row has its engine's last error
            error = content.get("error")
            message = error.get("message") if isinstance(error, dict) else None
            raise CommandError(str(message or f"{response.url} answered {response.status_code}"))
        return content

    def _absent(self, reason: str) -> str:
        return (
            f"no rolecall at {self.url} ({reason})\n"
            "`rolecall serve` starts it; --url names another address than host and port of the settings"
        )

    def _closed(self) -> str:
        given = f"the key in {KEY_VARIABLE} {self._flaw()}" if os.environ.get(KEY_VARIABLE) else f"set {KEY_VARIABLE}"
        return f"the rolecall at {self.url} shows its state to holders of an API key with the scope admin: {given}"

    def _flaw(self) -> str:
        """Return what is wrong with our key: ``/health`` does not say."""
        try:
            status = self._http.get(f"{self.url}/v1/models/health", timeout=_ANSWER_S).status_code
        except httpx.HTTPError:
            status = 0
        return {401: "is no such key", 403: "lacks it"}.get(status, "was not taken")

    def _foreign(self) -> str:
        return f"what answers at {self.url} is no rolecall; --url names another address"


@contextmanager
def connect(url: str | None, config_dir: Path | None) -> Iterator[Client]:
    """Yield the client for ``url``, or for host and port of the settings."""
    address = normal_url(url) if url else default_url(load_settings({"config_dir": config_dir}))
    # Proxies of the environment are for the internet, and rolecall is on this machine or near.
    with httpx.Client(trust_env=False, headers=key_header()) as http:
        yield Client(address, http)


def _part(name: str) -> str:
    """Return a name as a part of a URL; bytes of a command line that are no UTF-8 are in no name that there is."""
    return quote(name, safe="", errors="replace")


def key_header() -> dict[str, str]:
    """Return the header with the commands' API key; nothing if there is none."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    return {"authorization": f"Bearer {key}"} if key.isascii() and key.isprintable() and key else {}


def default_url(settings: Settings) -> str:
    """Return where a rolecall with these settings is reached from this machine."""
    host = _ANY_ADDRESS.get(settings.host, settings.host)
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def normal_url(url: str) -> str:
    """Complete ``localhost:8100`` to a URL, and take away a trailing ``/v1``."""
    full = url if "://" in url else f"http://{url}"
    return full.rstrip("/").removesuffix("/v1")
