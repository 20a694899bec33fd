"""The catalog: names, aliases and roles."""

from __future__ import annotations

import pytest

from builders import entry
from rolecall.core.catalog import Catalog
from rolecall.errors import ModelNotFound

QWEN = entry("qwen3-vl-8b-instruct_(FP8)", model_aliases=["org/qwen:latest"], role_priority={"Caption": 85})
TINY = entry("tiny", roles=["caption", "chat"])
GONE = entry("gone", roles=["keywords"])
CATALOG = Catalog([QWEN, TINY, GONE], {"gone": "not installed"})


@pytest.mark.parametrize(
    ("name", "names", "role"),
    [
        ("tiny", ["tiny"], None),
        ("org/qwen:latest", ["qwen3-vl-8b-instruct_(FP8)"], None),
        ("qwen3-vl-8b-instruct_(FP8)", ["qwen3-vl-8b-instruct_(FP8)"], None),
        ("role:caption", ["qwen3-vl-8b-instruct_(FP8)", "tiny"], "caption"),
        ("role: Caption ", ["qwen3-vl-8b-instruct_(FP8)", "tiny"], "caption"),
        ("role:keywords", ["gone"], "keywords"),
    ],
)
def test_resolve(name: str, names: list[str], role: str | None) -> None:
    """A name or an alias stands for one model, ``role:x`` for all that play it, installed or not."""
    target = CATALOG.resolve(name)
    assert [found.name for found in target.entries] == names
    assert target.role == role


def test_an_entry_by_name_or_alias() -> None:
    """A role is no entry."""
    assert CATALOG.get("tiny") is TINY
    assert CATALOG.get("org/qwen:latest") is QWEN
    with pytest.raises(ModelNotFound, match="'role:caption' does not exist"):
        CATALOG.get("role:caption")


def test_a_role_may_name_a_profile() -> None:
    """What stands behind the last @ is the profile, unless that is a role's own name."""
    target = CATALOG.resolve("role:Caption@ small ")
    assert (target.role, target.profile) == ("caption", "small")
    assert target.entries == CATALOG.resolve("role:caption").entries
    odd = Catalog([entry("a", roles=["x@y"])])
    assert (odd.resolve("role:x@y").role, odd.resolve("role:x@y").profile) == ("x@y", None)
    assert odd.resolve("role:x@y@z").profile == "z"


def test_a_model_may_be_called_like_a_role() -> None:
    """A name that exists wins over the role that it looks like."""
    odd = entry("role:caption", roles=["chat"])
    assert Catalog([odd, TINY]).resolve("role:caption").entries == (odd,)


def test_unknown_name_suggests_near_ones() -> None:
    """An unknown name's error suggests listed names, aliases and roles whatever their case, never one not installed."""
    with pytest.raises(ModelNotFound, match=r"'TINI' does not exist\. Did you mean 'tiny'") as caught:
        CATALOG.resolve("TINI")
    assert caught.value.param == "model"
    with pytest.raises(ModelNotFound, match="Did you mean 'role:caption'"):
        CATALOG.resolve("rolecaption")
    with pytest.raises(ModelNotFound) as gone:
        CATALOG.resolve("gon")
    assert "Did you mean" not in gone.value.message


def test_unknown_role_lists_the_known_ones() -> None:
    """An unknown role's error lists the roles there are, and the nearest."""
    with pytest.raises(ModelNotFound) as caught:
        CATALOG.resolve("role:captions")
    assert caught.value.message == (
        "No model plays the role 'captions'. Known roles: caption, chat, keywords. Did you mean 'role:caption'?"
    )
    with pytest.raises(ModelNotFound, match="The registry has no roles"):
        Catalog().resolve("role:caption")


@pytest.mark.parametrize("name", ["x" * 1_000_000, "role:" + "x" * 1_000_000, "", "role:"])
def test_absurd_names_are_just_unknown(name: str) -> None:
    """A name of a megabyte, or an empty one, is an unknown model with a short message."""
    with pytest.raises(ModelNotFound) as caught:
        CATALOG.resolve(name)
    assert len(caught.value.message) < 400


def test_listed() -> None:
    """What is not installed is listed only on request."""
    assert CATALOG.listed() == (QWEN, TINY)
    assert CATALOG.listed(include_non_installed=True) == (QWEN, TINY, GONE)


def test_roles_are_sorted() -> None:
    """All roles of the registry are known, once each, by name."""
    assert CATALOG.roles == ("caption", "chat", "keywords")
