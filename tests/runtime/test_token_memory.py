"""What was learnt of tokens on disk: kept, bounded, and proof against rubbish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rolecall.core.text_size import measure
from rolecall.core.token_estimate import TokenModel
from rolecall.runtime.token_memory import LEARNT_TOKENS, MOST_MODELS, TokenMemory

TEXT = measure({"prompt": "one and two and three"})


def taught(memory: TokenMemory, name: str = "alpha", tokens: int = 9) -> TokenModel:
    """A model of the memory that has seen a prompt."""
    model = memory.model(name)
    model.learn(TEXT, tokens)
    return model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / LEARNT_TOKENS


async def test_what_was_learnt_is_there_after_a_restart(path: Path) -> None:
    """Each model is kept by its name, whatever is in it."""
    memory = TokenMemory(path)
    names = ["alpha", 'org/m:Q4 (FP8) "ü"\n']
    predicted = [taught(memory, name, 9 + 3 * number).predict(TEXT) for number, name in enumerate(names)]
    before = memory.is_dirty
    await memory.write()
    after, again = memory.is_dirty, TokenMemory(path)
    assert [again.model(name).predict(TEXT) for name in names] == predicted
    assert (before, after, again.is_dirty) == (True, False, False)
    assert predicted[0] != predicted[1]


async def test_only_what_has_changed_is_written(path: Path) -> None:
    """Nothing is written for models that were only asked; what is learnt while others are written is not lost."""
    memory = TokenMemory(path)
    memory.model("alpha")
    await memory.write()
    memory.close()
    assert not list(path.parent.glob("*"))
    taught(memory, "alpha")
    taught(memory, "beta")
    memory.close()
    taught(memory, "beta", 10)
    await memory.write()
    again = TokenMemory(path)
    assert [again.model(name).observations for name in ("alpha", "beta")] == [1, 2]


def test_the_models_that_were_not_used_for_longest_go(path: Path) -> None:
    """Only so many are kept."""
    memory = TokenMemory(path)
    for number in range(MOST_MODELS):
        taught(memory, str(number))
    memory.close()
    memory.model("0")
    taught(memory, "new")
    memory.close()
    kept = json.loads(path.read_text())["models"]
    assert len(kept) == MOST_MODELS
    assert {"0", "new"} <= set(kept)
    assert "1" not in kept


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b"[]", b'{"version": 0}', b'{"version": 1}', b'{"version": 1, "models": []}', b"[" * 100_000],
)
def test_a_file_of_rubbish_is_moved_aside(path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """With a warning; all is learnt anew."""
    path.write_bytes(content)
    memory = TokenMemory(path)
    assert memory.model("alpha").observations == 0
    assert path.with_name(f"{path.name}.broken").read_bytes() == content
    assert "makes no sense" in caplog.text
    taught(memory)
    memory.close()
    assert TokenMemory(path).model("alpha").observations == 1


def test_a_huge_file_is_not_read(path: Path) -> None:
    """Nobody's memory is filled by a file that is not ours."""
    with path.open("wb") as file:
        file.truncate(2**30)
    assert TokenMemory(path).model("alpha").observations == 0


@pytest.mark.parametrize("rubbish", [None, [], {"version": 1}, {"version": 2}, "x"])
def test_a_model_of_rubbish_is_left_out(path: Path, rubbish: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The others are kept."""
    memory = TokenMemory(path)
    taught(memory)
    memory.close()
    data = json.loads(path.read_text())
    data["models"] |= {"beta": rubbish, "x" * 1000: data["models"]["alpha"]}
    path.write_text(json.dumps(data))
    again = TokenMemory(path)
    assert [again.model(name).observations for name in ("alpha", "beta", "x" * 1000)] == [1, 0, 0]
    assert "the tokens of beta makes no sense" in caplog.text


async def test_a_disk_that_takes_nothing_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Learning goes on, and what was learnt is written once that is possible, even if nothing more is learnt."""
    (tmp_path / "state").write_text("in the way")
    path = tmp_path / "state" / LEARNT_TOKENS
    memory = TokenMemory(path)
    for _ in range(3):
        taught(memory)
        await memory.write()
    assert caplog.text.count("cannot be written") == 1
    assert "cannot be written" in str(memory.file.problem)
    (tmp_path / "state").unlink()
    await memory.write()
    assert memory.file.problem is None
    assert TokenMemory(path).model("alpha").observations == 3


def test_a_file_that_cannot_be_read_is_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder in its place."""
    path.mkdir()
    assert TokenMemory(path).model("alpha").observations == 0
    assert "cannot be read" in caplog.text
