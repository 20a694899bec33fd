"""Who is calling, and what that caller may do. The door finds out; whoever serves the request asks here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from starlette.types import Scope

from rolecall.core import keys
from rolecall.core.catalog import ROLE_PREFIX, Target
from rolecall.core.keys import ApiKey, allowed, is_visible
from rolecall.core.models import ModelEntry
from rolecall.errors import Forbidden, ModelNotFound
from rolecall.runtime.usage import UsageBook

Resolve = Callable[[str], Target]
"""Finds what a name stands for; raises ``ModelNotFound``."""

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

    def find(self, resolve: Resolve, name: str) -> Target:
        """Return what of a name this caller may use; raises ``ModelNotFound`` and ``Forbidden``."""
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

    def find(self, resolve: Resolve, name: str) -> Target:
        """Return what the name stands for."""
        return resolve(name)

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

    def find(self, resolve: Resolve, name: str) -> Target:
        """Allow nothing."""
        del resolve, name
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

    @property
    def key(self) -> ApiKey:
        """The key as it was when the request came."""
        return self._key

    def may(self, scope: keys.Scope) -> bool:
        """Whether the key has this scope."""
        return scope in self._key.scopes

    def check(self, target: Target) -> Target:
        """Return it with the entries that the key allows."""
        return allowed(self._key, target)

    def find(self, resolve: Resolve, name: str) -> Target:
        """Return what the key may use of a name; it learns no more of a name that there is not than of a forbidden one.

        Nor does it learn what other names there are.
        """
        try:
            return self.check(resolve(name))
        except ModelNotFound:
            if not (self._key.models or self._key.roles):
                raise
            is_role = name[: len(ROLE_PREFIX)].lower() == ROLE_PREFIX
            self.check(Target((), name[len(ROLE_PREFIX) :] if is_role else None))
            raise ModelNotFound(f"There is no {name[:200]!r} that the key may use.") from None

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
