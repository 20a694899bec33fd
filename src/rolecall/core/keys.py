"""API keys: what a key file says of each, who holds which, and what they may use.

Keys are stored as SHA-256. A slow hash (bcrypt, argon2) protects passwords, which people choose and others guess; these
keys are 190 random bits, which nobody guesses however fast the hash is, and a slow one would cost every request.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from rolecall.core.catalog import ROLE_PREFIX, Target, role_name
from rolecall.core.models import ModelEntry
from rolecall.errors import ConfigurationError, Forbidden

VERSION = 1
PREFIX = "rc-"
"""What every key begins with, so that it is recognised where it should not be."""

Scope = Literal["inference", "admin"]
Limit = Annotated[int, Field(gt=0, strict=True)]
Pattern = Annotated[str, Field(min_length=1)]
"""A name in which ``*`` and ``?`` stand for any letters; an empty one would match nothing."""


class ApiKey(BaseModel):
    """What is stored of one key: never the key itself. Empty ``models`` and ``roles`` allow all."""

    model_config = ConfigDict(frozen=True, extra="forbid")  # a misspelt restriction must not be none

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)] = ("inference",)
    models: tuple[Pattern, ...] = ()
    roles: tuple[Pattern, ...] = ()
    requests_per_minute: Limit | None = None
    tokens_per_day: Limit | None = None
    created: AwareDatetime | None = None
    expires: AwareDatetime | None = None

    @field_validator("roles")
    @classmethod
    def _as_roles_are_asked_for(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(role_name(role).removeprefix(ROLE_PREFIX) for role in value)

    @property
    def fingerprint(self) -> str:
        """The beginning of the hash: enough to tell keys apart, too little to be of use (``sha256sum`` gives it)."""
        return self.sha256[:8]

    def is_expired(self, now: datetime) -> bool:
        """Whether it is too late to use it."""
        return self.expires is not None and now >= self.expires


def hashed(token: bytes) -> str:
    """Return what is stored of a key."""
    return hashlib.sha256(token).hexdigest()


def read_keys(data: Any) -> tuple[ApiKey, ...]:
    """Return the keys of a parsed key file; raises ``ConfigurationError``, one line a problem.

    The messages name the key and the field, and never a value: it may be a key that was put into the wrong place.
    """
    if not isinstance(data, dict) or data.get("version") != VERSION or not isinstance(data.get("keys"), list):
        raise ConfigurationError(f'must be an object with "version": {VERSION} and a list "keys"')
    keys: list[ApiKey] = []
    problems: list[str] = []
    for number, item in enumerate(data["keys"], 1):
        try:
            keys.append(ApiKey.model_validate(item))
        except ValidationError as error:
            problems += [_problem(number, item, each) for each in error.errors()]
    problems += _repeated("name", [key.name for key in keys]) + _repeated("sha256", [key.sha256 for key in keys])
    if problems:
        raise ConfigurationError("\n".join(problems))
    return tuple(keys)


def _problem(number: int, item: Any, error: Any) -> str:
    name = item.get("name") if isinstance(item, dict) else None
    who = f" {name!r}" if isinstance(name, str) and len(name) <= 64 and not name.startswith(PREFIX) else ""
    where = ".".join(str(part)[:40] for part in error["loc"])
    return f"key {number}{who}: {f'field {where}: ' if where else ''}{error['msg']}"


def _repeated(field: str, values: Sequence[str]) -> list[str]:
    twice = sorted({value for value in values if values.count(value) > 1})
    return [f"two keys have the {field} {value[:64]!r}" for value in twice]


def key_file(keys: Iterable[ApiKey]) -> dict[str, Any]:
    """Return the content of a key file, without what is not set."""
    rows = [key.model_dump(mode="json", exclude_none=True) for key in keys]
    return {"version": VERSION, "keys": [{name: value for name, value in row.items() if value != []} for row in rows]}


class KeyRing:
    """All keys that are in force. ``secret`` is random and known to this process alone.

    A key is looked up by a keyed hash of its hash: how long that takes depends on bytes that no caller can choose, so
    it tells nothing of the stored ones. What is found is compared in constant time.
    """

    def __init__(self, keys: Iterable[ApiKey] = (), secret: bytes = b"") -> None:
        self.keys = tuple(keys)
        self._secret = secret
        digests = ((bytes.fromhex(key.sha256), key) for key in self.keys)
        self._by_mark = {self._mark(digest): (digest, key) for digest, key in digests}

    def find(self, token: bytes) -> ApiKey | None:
        """Return the key that this is, expired or not; None if it is none."""
        digest = hashlib.sha256(token).digest()
        stored, key = self._by_mark.get(self._mark(digest), (b"", None))
        return key if hmac.compare_digest(stored, digest) else None

    def _mark(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, digest_size=16, key=self._secret).digest()


def allowed(key: ApiKey, target: Target) -> Target:
    """Return what a request asked for with those of its entries that this key may use.

    Raises ``Forbidden`` if there are none. ``models`` bounds which models answer, by their name or an alias, and
    ``roles`` which roles may be asked for; a key that is bound to roles alone may not name models.
    """
    role = target.role
    if role is None and key.roles and not key.models:
        raise Forbidden(f"The key {key.name!r} may not name models, only ask for roles: {', '.join(key.roles)}.")
    if role is not None and key.roles and not _matches(key.roles, role):
        raise Forbidden(f"The key {key.name!r} may not use the role {role[:200]!r}, only {', '.join(key.roles)}.")
    if not key.models:
        return target
    entries = tuple(entry for entry in target.entries if any(_matches(key.models, id_) for id_ in entry.ids))
    if not entries:
        asked = "that model" if role is None else f"a model of the role {role[:200]!r}"
        raise Forbidden(f"The key {key.name!r} may not use {asked}, only {', '.join(key.models)}.")
    return replace(target, entries=entries)


def is_visible(key: ApiKey, entry: ModelEntry) -> bool:
    """Whether a list of models for this key has the entry: it may name it, or ask for a role that it plays."""
    if key.models:
        return any(_matches(key.models, id_) for id_ in entry.ids)
    return not key.roles or any(_matches(key.roles, role) for role in entry.priorities)


def _matches(patterns: Iterable[str], text: str) -> bool:
    return any(re.fullmatch(_regex(pattern), text, re.DOTALL) for pattern in patterns)


def _regex(pattern: str) -> str:
    """``*`` stands for anything, ``?`` for one character; brackets, which names of models may hold, for themselves."""
    return "".join({"*": ".*", "?": "."}.get(character) or re.escape(character) for character in pattern)
