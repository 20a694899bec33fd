"""What is read of chat templates: from GGUF files, from folders, from arguments."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders import entry
from fakes import FakeBackend
from rolecall.backends.external import OpenAIServer
from rolecall.backends.ollama import OllamaDaemon
from rolecall.core.models import ModelEntry
from rolecall.core.traits import NOTHING_KNOWN, Traits
from rolecall.runtime.traits import TraitsReader

gguf = pytest.importorskip("gguf", reason="the extra llama")

DEVELOPER = "{% if message.role == 'developer' %}{% endif %}"
THINKING = "{% if add_generation_prompt %}{{ '<think>\\n' }}{% endif %}"
KNOWS = Traits(knows_developer=True)
THINKS = Traits(thinks=True, starts_in_thought=True)


def write_gguf(path: Path, template: str | list[dict[str, str]] | None) -> Path:
    """Write a GGUF that holds nothing but a chat template, or several."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list(["a"] * 5000)
    if template is not None:
        writer.add_chat_template(template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def traits(*paths: Path, reader: TraitsReader | None = None, **fields: Any) -> Traits:
    """Return what is known of a model with these files."""
    return (reader or TraitsReader()).of(entry(**fields), FakeBackend(paths=paths))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (DEVELOPER, KNOWS),
        (THINKING, THINKS),
        ("plain", NOTHING_KNOWN),
        (None, NOTHING_KNOWN),
        ([{"name": "default", "template": "plain"}, {"name": "tool_use", "template": DEVELOPER}], KNOWS),
    ],
)
def test_a_gguf(tmp_path: Path, template: str | None, expected: Traits) -> None:
    """Its template stands in its header, and so do those with names."""
    assert traits(write_gguf(tmp_path / "m.gguf", template)) == expected


def folder_with(**texts: str) -> Callable[[Path], Path]:
    """Return what fills a folder; the names of files have __ for a dot and ___ for a slash."""

    def fill(folder: Path) -> Path:
        for name, text in texts.items():
            file = folder / name.replace("___", "/").replace("__", ".")
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        return folder

    return fill


@pytest.mark.parametrize(
    ("fill", "expected"),
    [
        (folder_with(chat_template__jinja=DEVELOPER), KNOWS),
        (folder_with(chat_template__json=json.dumps({"chat_template": DEVELOPER})), KNOWS),
        (folder_with(tokenizer_config__json=json.dumps({"chat_template": THINKING})), THINKS),
        (
            folder_with(
                tokenizer_config__json=json.dumps({"chat_template": [{"name": "x", "template": THINKING}, 5, {}]})
            ),
            THINKS,
        ),
        (folder_with(additional_chat_templates___x__jinja=DEVELOPER), KNOWS),
        (folder_with(config__json=json.dumps({"chat_template": DEVELOPER})), NOTHING_KNOWN),
        (folder_with(tokenizer_config__json="[]"), NOTHING_KNOWN),
        (folder_with(tokenizer_config__json="{"), NOTHING_KNOWN),
        (folder_with(tokenizer_config__json="[" * 100_000), NOTHING_KNOWN),
        (folder_with(), NOTHING_KNOWN),
    ],
)
def test_a_folder(tmp_path: Path, fill: Callable[[Path], Path], expected: Traits) -> None:
    """Wherever Hugging Face's tokenizers have kept their templates; what makes no sense says nothing."""
    assert traits(fill(tmp_path)) == expected


@pytest.mark.parametrize("flag", ["--chat-template", "--chat-template-file", "--chat_template"])
def test_a_template_of_the_arguments(tmp_path: Path, flag: str) -> None:
    """It takes the place of the model's own, as a file or as the text itself."""
    model = write_gguf(tmp_path / "m.gguf", DEVELOPER)
    (tmp_path / "own.jinja").write_text(THINKING)
    for word, expected in ((str(tmp_path / "own.jinja"), THINKS), (THINKING, THINKS), ("chatml", NOTHING_KNOWN)):
        assert traits(model, backend_config={"extra_args": [flag, word]}) == expected
    assert traits(model, backend_config={"extra_args": [flag, "x" * 5000]}) == NOTHING_KNOWN


def test_the_entry_has_the_last_word(tmp_path: Path) -> None:
    """developer_role goes before the template, and the capability reasoning says that it thinks."""
    model = write_gguf(tmp_path / "m.gguf", DEVELOPER)
    assert not traits(model, developer_role=False).knows_developer
    assert traits(developer_role=True).knows_developer
    assert traits(capabilities=["reasoning"]).thinks


def test_servers_of_others() -> None:
    """What OpenAI's own words are passes to a server that speaks them; Ollama's templates leave developers out."""
    external: ModelEntry = entry(backend="openai", backend_config={"port": 1})
    assert TraitsReader().of(external, OpenAIServer()) == KNOWS
    assert TraitsReader().of(entry(), OllamaDaemon("http://127.0.0.1:11434")) == NOTHING_KNOWN


@pytest.mark.parametrize("content", [b"", b"GGUF", b"rubbish" * 100])
def test_a_file_without_sense(tmp_path: Path, content: bytes) -> None:
    """It says nothing, however often it is asked."""
    (tmp_path / "m.gguf").write_bytes(content)
    reader = TraitsReader()
    assert [traits(tmp_path / "m.gguf", reader=reader) for _ in range(2)] == [NOTHING_KNOWN] * 2
    assert traits(tmp_path / "gone.gguf", reader=reader) == NOTHING_KNOWN
    assert traits(tmp_path / "m.bin", reader=reader) == NOTHING_KNOWN


def test_a_file_is_read_once(tmp_path: Path) -> None:
    """What was read is remembered until the file changes."""
    reader, model = TraitsReader(), write_gguf(tmp_path / "m.gguf", DEVELOPER)
    assert traits(model, reader=reader) == KNOWS
    status, size = model.stat(), len(model.read_bytes())
    model.write_bytes(b"\0" * size)
    os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert traits(model, reader=reader) == KNOWS
    write_gguf(model, THINKING)
    assert traits(model, reader=reader) == THINKS


def test_a_huge_file_is_left_alone(tmp_path: Path) -> None:
    """Nobody's tokenizer is that large."""
    with (tmp_path / "tokenizer_config.json").open("wb") as file:
        file.truncate(33 * 2**20)
    assert traits(tmp_path) == NOTHING_KNOWN
