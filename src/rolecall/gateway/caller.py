"""Who is calling, and what that caller may do. The door finds out; whoever serves the request asks here."""

from __future__ import annotations

from typing import Protocol

from starlette.types import Scope

from rolecall.core import keys
from rolecall.core.catalog import Target
from rolecall.core.keys import ApiKey, allowed, is_visible
from rolecall.core.models import ModelEntry
from rolecall.errors import Forbidden
from rolecall.runtime.usage import UsageBook

_CALLER = "rolecall.caller"


class Caller(Protocol):
    """Somebody who sent a request; ``name`` is that of the key, None where none was needed."""

    @property
    def name(self) -> str | None:
        """What the log calls this caller."""
        ...

    def may(self, scope: keys.Scope) -> bool:
        """Whether this caller has a scope."""
        ...

    def check(self, target: Target) -> Target:
        """Return the target with those of its entries that this caller may use; raises ``Forbidden`` if none is."""
        ...

    def sees(self, entry: ModelEntry) -> bool:
        """Whether this caller's list of models has the entry."""
        ...

    def begin(self) -> None:
        """Count a request; raises ``RateLimited`` for one too many."""
        ...

    def spend(self, tokens: int) -> None:
        """Count the tokens of its answer, prompt and completion together."""
        ...


class Anyone:
    """A caller of a server without keys, who may do everything."""

    name = None

    def may(self, scope: keys.Scope) -> bool:
        """Return True."""
        del scope
        return True

    def check(self, target: Target) -> Target:
        """Return it as it is."""
        return target

    def sees(self, entry: ModelEntry) -> bool:
        """Return True."""
        del entry
        return True

    def begin(self) -> None:
        """Count nothing."""

    def spend(self, tokens: int) -> None:
        """Count nothing."""


class Stranger:
    """A caller without a key of a server that has keys, who sees what everybody may see."""

    name = None

    def may(self, scope: keys.Scope) -> bool:
        """Return False."""
        del scope
        return False

    def check(self, target: Target) -> Target:
        """Allow nothing."""
        del target
        raise Forbidden("Models need an API key.")

    def sees(self, entry: ModelEntry) -> bool:
        """Return False."""
        del entry
        return False

    def begin(self) -> None:
        """Allow nothing."""
        raise Forbidden("Models need an API key.")

    def spend(self, tokens: int) -> None:
        """Count nothing."""


class KeyHolder:
    """A caller with a key, bound to what the key allowed when the request came."""

    def __init__(self, key: ApiKey, usage: UsageBook) -> None:
        self._key = key
        self._usage = usage

    @property
    def name(self) -> str | None:
        """The key's name."""
        return self._key.name

    def may(self, scope: keys.Scope) -> bool:
        """Whether the key has this scope."""
        return scope in self._key.scopes

    def check(self, target: Target) -> Target:
        """Return it with the entries that the key allows."""
        return allowed(self._key, target)

    def sees(self, entry: ModelEntry) -> bool:
        """Whether the key has a use for the entry."""
        return is_visible(self._key, entry)

    def begin(self) -> None:
        """Count a request against the key's limits."""
        self._usage.begin(self._key)

    def spend(self, tokens: int) -> None:
        """Count tokens against the key's limit."""
        self._usage.spend(self._key, tokens)


def introduce(scope: Scope, caller: Caller) -> None:
    """Let whoever serves this request know who is calling."""
    scope.setdefault("state", {})[_CALLER] = caller


def caller_of(scope: Scope) -> Caller:
    """Return who is calling; a request that came around the door has nobody, and is a bug (``KeyError``)."""
    caller: Caller = scope["state"][_CALLER]
    return caller
