"""The keys of upstreams: where they come from, and that they stay out of sight."""

from __future__ import annotations

import pytest

from rolecall.backends.base import Launch, Upstream

SECRET = "canary-of-the-key"


def test_what_requests_show_a_server() -> None:
    """An engine's own key, nothing where there is none."""
    assert Upstream("http://x/v1", key=SECRET).authorization() == f"Bearer {SECRET}"
    assert Upstream("http://x/v1").authorization() is None


@pytest.mark.parametrize(("value", "shown"), [(f" {SECRET}\n", f"Bearer {SECRET}"), ("", None), (None, None)])
def test_a_key_in_the_environment(monkeypatch: pytest.MonkeyPatch, value: str | None, shown: str | None) -> None:
    """It is read for each request, so that it may change; a variable that is empty or not set is no key."""
    upstream = Upstream("http://x/v1", api_key_env="SOME_KEY")
    assert upstream.authorization() is None
    if value is not None:
        monkeypatch.setenv("SOME_KEY", value)
    assert upstream.authorization() == shown


def test_keys_are_not_shown() -> None:
    """Whoever prints what is known of an engine prints no key."""
    launch = Launch(("serve",), "http://x/v1", key_variable="LLAMA_API_KEY").keyed(SECRET)
    assert launch.env == {"LLAMA_API_KEY": SECRET}
    assert SECRET not in repr(launch)
    assert SECRET not in repr(Upstream("http://x/v1", key=SECRET))


def test_a_key_is_given_only_where_it_is_taken() -> None:
    """An engine without a variable for it gets none, and none that is empty is given."""
    plain = Launch(("serve",), "http://x/v1")
    assert plain.keyed(SECRET) == plain
    taking = Launch(("serve",), "http://x/v1", key_variable="LLAMA_API_KEY")
    assert taking.keyed("") == taking
