"""API keys: what a key file may say, who holds which key, and what a key allows."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import entry
from rolecall.core.catalog import Catalog, Target
from rolecall.core.keys import ApiKey, KeyRing, allowed, hashed, is_visible, key_file, read_keys
from rolecall.errors import ConfigurationError, Forbidden

TOKEN = b"rc-0123456789abcdef"
NOW = datetime(2026, 11, 20, 12, tzinfo=timezone.utc)


def row(name: str = "ci", token: bytes = TOKEN, **fields: Any) -> dict[str, Any]:
    return {"name": name, "sha256": hashed(token), **fields}


def key(**fields: Any) -> ApiKey:
    return ApiKey.model_validate(row(**fields))


def read(*rows: Any) -> tuple[ApiKey, ...]:
    return read_keys({"version": 1, "keys": list(rows)})


def test_a_file_with_a_key() -> None:
    """A key has the scope inference, and is not limited, unless it says so."""
    (found,) = read(row())
    assert (found.name, found.scopes, found.models, found.roles) == ("ci", ("inference",), (), ())
    assert (found.requests_per_minute, found.tokens_per_day, found.expires) == (None, None, None)
    assert found.sha256 == hashlib.sha256(TOKEN).hexdigest()
    assert found.fingerprint == found.sha256[:8]


def test_what_is_written_is_read_again() -> None:
    """Every field survives, and what is not set is not written."""
    full = row(
        "full", b"2", scopes=["admin", "inference"], models=["qwen*"], roles=["caption"], requests_per_minute=60,
        tokens_per_day=1000, created="2026-11-20T12:00:00Z", expires="2027-01-01T00:00:00Z",
    )  # fmt: skip
    keys = read(row(), full)
    assert read_keys(key_file(keys)) == keys
    assert key_file(keys)["keys"] == [row(scopes=["inference"]), full]


def test_roles_are_compared_as_they_are_asked_for() -> None:
    """In any case, with or without ``role:``."""
    assert key(roles=["role:Caption", " chat "]).roles == ("caption", "chat")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "must be an object"),
        ([], "must be an object"),
        ({"version": 2, "keys": []}, '"version": 1'),
        ({"version": 1}, '"keys"'),
        ({"version": 1, "keys": {}}, '"keys"'),
    ],
)
def test_what_is_no_key_file(data: Any, words: str) -> None:
    """The message says what it must be."""
    with pytest.raises(ConfigurationError, match=words):
        read_keys(data)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (row(model=["x"]), "key 1 'ci': field model: Extra inputs"),
        (row(scopes=[]), "key 1 'ci': field scopes: "),
        (row(scopes=["root"]), "field scopes.0: Input should be 'inference' or 'admin'"),
        (row(requests_per_minute=0), "field requests_per_minute: "),
        (row(requests_per_minute=True), "field requests_per_minute: "),
        (row(tokens_per_day=1.5), "field tokens_per_day: "),
        (row(expires="2027-01-01T00:00:00"), "field expires: "),
        (row(models="qwen"), "field models: "),
        (row(name="a b"), "key 1 'a b': field name: "),
        (row(name=""), "field name: "),
        (row(name="n\n"), "field name: "),
        ({"name": "ci"}, "field sha256: Field required"),
        ("x", "key 1: "),
        ({"name": 5, "sha256": hashed(b"")}, "key 1: field name: "),
    ],
)
def test_a_wrong_key(item: Any, words: str) -> None:
    """Key and field are named. A misspelt restriction is no key without restrictions, but an error."""
    with pytest.raises(ConfigurationError) as error:
        read(item)
    assert words in str(error.value)


def test_all_problems_are_told_and_no_value() -> None:
    """One line each; what stands in a wrong place may be a key."""
    secret = "rc-canary"
    with pytest.raises(ConfigurationError) as error:
        read(
            {"name": secret, "sha256": secret},
            row(sha256=secret),
            row("x"),
            row("x", scopes=[secret]),
            row("y", models=7),
        )
    assert {line.split(":")[0] for line in str(error.value).splitlines()} == {
        "key 1",
        "key 2 'ci'",
        "key 4 'x'",
        "key 5 'y'",
    }
    assert secret not in str(error.value)


def test_no_two_keys_share_a_name_or_are_the_same() -> None:
    """Both would leave open which limits are meant."""
    with pytest.raises(ConfigurationError, match="two keys have the name 'ci'"):
        read(row(), row(token=b"other"))
    with pytest.raises(ConfigurationError, match="two keys have the sha256"):
        read(row(), row("other"))


def test_the_ring_finds_each_key_by_itself_alone() -> None:
    """Not by a part, another case, its hash, or nothing."""
    ring = KeyRing(read(row(), row("two", b"rc-second")), b"secret")
    assert [found.name for token in (TOKEN, b"rc-second") if (found := ring.find(token))] == ["ci", "two"]
    for wrong in (b"", TOKEN[:-1], TOKEN + b"x", TOKEN.upper(), hashed(TOKEN).encode(), hashlib.sha256(TOKEN).digest()):
        assert ring.find(wrong) is None
    assert KeyRing().find(TOKEN) is None


def test_the_place_of_a_key_in_the_ring_cannot_be_foreseen() -> None:
    """Another process has another secret, and finds its keys by other marks."""
    keys = read(row())
    assert set(KeyRing(keys, b"a")._by_mark).isdisjoint(KeyRing(keys, b"b")._by_mark)


@given(st.binary(max_size=100))
def test_any_bytes_can_be_looked_up(token: bytes) -> None:
    """Whatever a client sends is either the key or no key."""
    ring = KeyRing(read(row()), b"secret")
    assert (ring.find(token) is not None) is (token == TOKEN)


def test_expiry() -> None:
    """A key ends at the moment that it says; one that says nothing never does."""
    assert not key().is_expired(NOW)
    assert key(expires=NOW.isoformat()).is_expired(NOW)
    assert not key(expires=(NOW + timedelta(seconds=1)).isoformat()).is_expired(NOW)


CATALOG = Catalog(
    [
        entry("org/qwen-vl:Q4", model_aliases=["gpt-4o"], role_priority={"caption": 80, "chat": 10}),
        entry("gemma (FP8)", role_priority={"caption": 60}),
        entry("a[b]c"),
    ]
)


def names(asked: str, **limits: Any) -> list[str]:
    return [each.name for each in allowed(key(**limits), CATALOG.resolve(asked)).entries]


@pytest.mark.parametrize(
    ("asked", "limits", "left"),
    [
        ("a[b]c", {}, ["a[b]c"]),
        ("role:caption", {}, ["org/qwen-vl:Q4", "gemma (FP8)"]),
        ("org/qwen-vl:Q4", {"models": ["org/*"]}, ["org/qwen-vl:Q4"]),
        ("gpt-4o", {"models": ["org/qwen-vl:Q?"]}, ["org/qwen-vl:Q4"]),
        ("org/qwen-vl:Q4", {"models": ["gpt-*"]}, ["org/qwen-vl:Q4"]),
        ("a[b]c", {"models": ["x", "a[b]c"]}, ["a[b]c"]),
        ("role:caption", {"models": ["gemma*"]}, ["gemma (FP8)"]),
        ("role:caption", {"roles": ["capt*"]}, ["org/qwen-vl:Q4", "gemma (FP8)"]),
        ("role:caption", {"roles": ["caption"], "models": ["org/*"]}, ["org/qwen-vl:Q4"]),
        ("a[b]c", {"roles": ["caption"], "models": ["a*"]}, ["a[b]c"]),
    ],
)
def test_what_a_key_allows(asked: str, limits: dict[str, Any], left: list[str]) -> None:
    """Of a role's models those remain that the key may use; globs match names and aliases, brackets themselves."""
    assert names(asked, **limits) == left


@pytest.mark.parametrize(
    ("asked", "limits", "words"),
    [
        ("a[b]c", {"models": ["a[xb]c"]}, "may not use that model, only a\\[xb\\]c"),
        ("a[b]c", {"models": ["A*"]}, "may not use that model"),
        ("a[b]c", {"roles": ["caption"]}, "may not name models, only ask for roles: caption"),
        ("role:chat", {"roles": ["caption"]}, "may not use the role 'chat', only caption"),
        ("role:chat", {"roles": ["caption"], "models": ["*"]}, "may not use the role 'chat'"),
        ("role:chat", {"models": ["gemma*"]}, "a model of the role 'chat', only gemma\\*"),
    ],
)
def test_what_a_key_does_not_allow(asked: str, limits: dict[str, Any], words: str) -> None:
    """The refusal names the key and what it may use."""
    with pytest.raises(Forbidden, match=f"The key 'ci' .*{words}"):
        names(asked, **limits)


@pytest.mark.parametrize(
    ("limits", "seen"),
    [
        ({}, ["org/qwen-vl:Q4", "gemma (FP8)", "a[b]c"]),
        ({"models": ["g*"]}, ["org/qwen-vl:Q4", "gemma (FP8)"]),
        ({"models": ["gemma*"], "roles": ["chat"]}, ["gemma (FP8)"]),
        ({"roles": ["chat"]}, ["org/qwen-vl:Q4"]),
    ],
)
def test_what_a_key_sees(limits: dict[str, Any], seen: list[str]) -> None:
    """What it may name, also by an alias, and what plays a role that it may ask for."""
    assert [each.name for each in CATALOG.entries if is_visible(key(**limits), each)] == seen


def test_the_profile_of_a_target_is_kept() -> None:
    """What is left of a target differs in its entries alone."""
    target = Target(CATALOG.entries, "caption", "roomy")
    assert allowed(key(models=["gemma*"]), target) == Target((CATALOG.entries[1],), "caption", "roomy")
