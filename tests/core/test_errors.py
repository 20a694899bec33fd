"""Errors: their tree, their bodies, their headers."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from rolecall import errors
from rolecall.errors import (
    BadRequest,
    InvalidApiKey,
    ModelNotFound,
    NoModelForRole,
    RateLimited,
    RequestCancelled,
    RequestTimeout,
    RolecallError,
    ShuttingDown,
    StartFailed,
    TooManyRequests,
    naming,
)

# "    │   ├── BodyTooLarge               413"
_TREE_LINE = re.compile(r"^ {4}([│├└─ ]*)([A-Z]\w+) +(\d{3})(?: (\w+))?", re.MULTILINE)


def all_errors(base: type[RolecallError] = RolecallError) -> set[type[RolecallError]]:
    return {base}.union(*(all_errors(sub) for sub in base.__subclasses__()))


def drawn_tree() -> list[tuple[int, type[RolecallError], int, str | None]]:
    found = _TREE_LINE.findall(errors.__doc__ or "")
    return [(len(bars) // 4, getattr(errors, name), int(status), word or None) for bars, name, status, word in found]


def test_tree_in_the_docstring_is_complete() -> None:
    """The tree that the module's docstring draws names each error once."""
    drawn = [error for _, error, _, _ in drawn_tree()]
    assert set(drawn) == all_errors()
    assert len(drawn) == len(set(drawn))


def test_tree_in_the_docstring_is_true() -> None:
    """Indentation, status and type or code of the drawn tree are those of the classes."""
    parents: dict[int, type[RolecallError]] = {}
    for depth, error, status, word in drawn_tree():
        parents[depth] = error
        assert error.__base__ is (parents[depth - 1] if depth else Exception)
        assert error.status == status
        assert word in {None, error.type, error.code}


@pytest.mark.parametrize("error", sorted(all_errors(), key=str))
def test_what_no_retry_can_mend_is_not_retried(error: type[RolecallError]) -> None:
    """OpenAI's SDKs retry 408, 409, 429 and all from 500 on: a slow client is told 408, and a 409 tells them not to."""
    assert error.status != 408 or error is RequestTimeout
    assert error.status != 409 or error("x").headers()["x-should-retry"] == "false"
    assert error.type
    assert error.code


def test_each_code_has_one_meaning() -> None:
    """No two errors declare the same code; one that clients need not tell from its base goes by the code of that."""
    codes = sorted(str(error.code) for error in all_errors() if "code" in vars(error))
    assert all(one != other for one, other in pairwise(codes))


def test_body_has_the_four_fields() -> None:
    """An error's body is OpenAI's: message, type, param and code under ``error``."""
    error = BadRequest("The field 'model' is missing.", param="model")
    assert error.body() == {
        "error": {
            "message": "The field 'model' is missing.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "invalid_request",
        }
    }
    assert str(error) == "The field 'model' is missing."
    assert error.headers() == {}
    assert error.summary() == "invalid_request: The field 'model' is missing."


@pytest.mark.parametrize(
    ("seconds", "header"), [(0, "1"), (0.2, "1"), (1, "1"), (2.5, "3"), (4.001, "5"), (120, "120"), (3600, "120")]
)
def test_retry_after_is_never_too_early_nor_beyond_what_clients_obey(seconds: float, header: str) -> None:
    """Retry-After is whole seconds, rounded up, within 1 and 120."""
    assert TooManyRequests("full", retry_after_s=seconds).headers() == {"retry-after": header}


def test_model_not_found_names_the_nearest() -> None:
    """An unknown model's message ends with the names that come near, if any do."""
    assert ModelNotFound("No 'x'.", nearest=["y", "role:z"]).message == "No 'x'. Did you mean 'y' or 'role:z'?"
    assert ModelNotFound("No 'x'.").message == "No 'x'."
    assert ModelNotFound("No 'x'.").param == "model"


def test_a_caller_without_a_key_is_told_the_scheme() -> None:
    """Every 401 names how to say who one is."""
    assert InvalidApiKey("x").headers() == {"www-authenticate": "Bearer"}


@pytest.mark.parametrize(
    ("seconds", "headers"),
    [(2.5, {"retry-after": "3"}), (120, {"retry-after": "120"}), (121, {"x-should-retry": "false"}), (None, {})],
)
def test_a_wait_that_is_too_long_is_not_to_be_tried(seconds: float | None, headers: dict[str, str]) -> None:
    """Clients are told to come back only where that makes sense."""
    assert RateLimited("x", retry_after_s=seconds).headers() == headers


def test_shutdown_asks_to_come_back() -> None:
    """A request that meets the shutdown is told when to try again."""
    assert ShuttingDown().headers() == {"retry-after": "5"}


def test_statuses_of_what_clients_meet_most() -> None:
    """Unknown models and roles are 404, a failed start is 503."""
    assert (ModelNotFound("x").status, NoModelForRole("x").status, StartFailed("x").status) == (404, 404, 503)


def test_who_stopped_a_request_is_for_the_log_alone() -> None:
    """Its client learns that somebody did, and not by whose key."""
    error = RequestCancelled("the key boss")
    assert error.summary(discreetly=True) == error.summary() == "request_cancelled: by the key boss"
    assert "boss" not in str(error.body())
    assert error.status == 400


def test_an_error_of_the_system_names_its_file() -> None:
    """One that has no name gets the file's, as that of a write does; one that has a name keeps it."""
    with pytest.raises(OSError, match=r"\[Errno 28\] full: '/the/file'$"), naming("/the/file"):
        raise OSError(28, "full")
    with pytest.raises(OSError, match=r"^no gzip$"), naming("/the/file"):
        raise OSError("no gzip")
    with pytest.raises(FileNotFoundError, match="'/another'"), naming("/the/file"):
        raise FileNotFoundError(2, "gone", "/another")
