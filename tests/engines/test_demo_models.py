"""The demo models: their files, and what a real engine makes of them."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("gguf", reason="the demo models need an extra: rolecall[llama]")
pytest.importorskip("xllamacpp", reason="the embedded engine is an extra: rolecall[llama]")

from rolecall.demo.gguf import FILES, STAMP, make_demo_models
from rolecall.demo.script import Script, chains, forks
from rolecall.demo.weights import write_chat

ANSWER = "Hello! I am rolecall's demo model: a few MB of scripted weights. Put a real model in my place."
CAPTION = "A picture. I am a demo model and cannot really see it; put a real vision model in my place."
THOUGHT = "Whatever was asked, I have one sentence to answer with."

PROMPTS = {
    "short": "hi",
    "empty": "",
    "long": "Lorem ipsum dolor sit amet. " * 75,
    "emoji": "🙂👩‍👩‍👧‍👦🇫🇷 what is this?",
    "other scripts": "Привет! 你好，世界。 مرحبا नमस्ते",
    "its own words": ANSWER + " " + CAPTION,
    "whitespace": "\n\n\n \t \n",
    "markers": "<|loop|><|think|><|im_end|></s>",
}
HOT = {"temperature": 1, "top_p": 1, "top_k": 0, "min_p": 0}


def tool(name: str, *parameters: str) -> dict[str, Any]:
    """A tool with string parameters, all required."""
    schema = {"type": "object", "properties": {p: {"type": "string"} for p in parameters}, "required": [*parameters]}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": schema}}


def image(colour: str) -> dict[str, Any]:
    """A picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


WEATHER = tool("get_weather", "city")


def test_the_files_are_made_once(tmp_path: Path) -> None:
    """The first call writes some MB and says what it does; the next one leaves everything as it is."""
    told: list[str] = []
    paths = make_demo_models(tmp_path / "new" / "folder", progress=told.append)
    assert [path.name for path in paths] == list(FILES)
    assert [line.rpartition(" ")[2] for line in told] == list(FILES)
    assert sum(path.stat().st_size for path in paths) < 8 * 2**20
    before = [path.stat().st_mtime_ns for path in paths]
    assert make_demo_models(tmp_path / "new" / "folder", progress=told.append) == paths
    assert [path.stat().st_mtime_ns for path in paths] == before
    assert len(told) == len(FILES)


def test_only_complete_files_lie_in_the_folder(tmp_path: Path) -> None:
    """What is written under another name first leaves no trace."""
    make_demo_models(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, STAMP])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def age(folder_file: Path) -> None:
    stamp = folder_file.with_name(STAMP)
    content = json.loads(stamp.read_text(encoding="utf-8"))
    stamp.write_text(json.dumps({**content, "version": 0}), encoding="utf-8")


def spoil_stamp(folder_file: Path) -> None:
    folder_file.with_name(STAMP).write_bytes(b"\xff\x00")


@pytest.mark.parametrize("damage", [cut, Path.unlink, age, spoil_stamp])
def test_what_is_not_whole_or_not_current_is_made_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """A cut file, a missing one, those of an earlier version: the next call mends them."""
    paths = make_demo_models(tmp_path)
    whole = [path.read_bytes() for path in paths]
    damage(paths[1])
    assert make_demo_models(tmp_path) == paths
    assert [path.read_bytes() for path in paths] == whole
    told: list[str] = []
    make_demo_models(tmp_path, progress=told.append)
    assert told == []


def test_a_folder_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    """Where a file stands in the folder's place, the operating system's error says so."""
    (tmp_path / "taken").write_text("x", encoding="utf-8")
    with pytest.raises(FileExistsError):
        make_demo_models(tmp_path / "taken")


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    """A file that cannot take its place raises, and the unfinished one is removed."""
    (tmp_path / FILES[0] / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match=FILES[0]):
        make_demo_models(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILES[0]]


def test_a_missing_package_is_named_with_the_way_out(tmp_path: Path) -> None:
    """Without the gguf package the error tells what to install."""
    code = (
        "import sys; sys.modules['gguf'] = None\n"
        "from pathlib import Path; from rolecall.demo.gguf import make_demo_models\n"
        "make_demo_models(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("RuntimeError: making the demo models needs gguf: pip install")
    assert list(tmp_path.iterdir()) == []


def test_a_script_is_cut_into_pieces_that_occur_once() -> None:
    """Each piece is a state with one successor, so none may occur twice, in whatever sentence."""
    script = Script(
        answer="the cat and the dog and the cat", caption="the cat", thought="and the dog, too, and the end"
    )
    pieces = [piece for chain in chains(script) for piece in chain.pieces]
    assert len(pieces) == len(set(pieces))
    assert "".join(chains(script)[0].pieces).replace("\u2581", " ") == script.answer


@pytest.mark.parametrize("caption", ["", " ", "ok", "Hello!"], ids=["empty", "blank", "short", "said already"])
def test_a_sentence_that_cannot_be_said_is_an_error(caption: str) -> None:
    """A sentence needs a piece that is long enough not to occur in prompts, and that is not in another one."""
    with pytest.raises(ValueError, match=f"cannot say {caption!r}"):
        chains(Script(caption=caption))


def test_too_long_a_script_is_an_error(tmp_path: Path) -> None:
    """Each word takes a direction, and there are so many only."""
    answer = " ".join(f"word{number}" for number in range(200))
    with pytest.raises(ValueError, match="words too long"):
        write_chat(tmp_path / "long.gguf", name="long", script=Script(answer=answer))


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
@pytest.mark.parametrize("options", [{}, HOT], ids=["default", "hot"])
def test_the_answer_is_always_the_same(chat_engine: Any, prompt: str, options: dict[str, Any]) -> None:
    """Whatever is asked, and however it is sampled, the sentence comes out letter by letter, twice."""
    for _ in range(2):
        answer = chat_engine.chat(prompt, **options)
        assert answer["choices"][0]["message"]["content"] == ANSWER
        assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("options", [HOT, {**HOT, "temperature": 2}, {"mirostat": 2}, {"repeat_penalty": 1.3}], ids=str)
def test_sampling_does_not_show(chat_engine: Any, options: dict[str, Any]) -> None:
    """Twenty times with a high temperature or other samplers: the script dominates."""
    answers = {json.dumps(chat_engine.message("THINK about it", **options), sort_keys=True) for _ in range(20)}
    assert [json.loads(answer) for answer in answers] == [
        {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT}
    ]


def test_a_byte_is_a_token(chat_engine: Any) -> None:
    """Prompts grow by one token for each byte, spaces included: an overflow is easy to arrange."""
    text = "Some words, ñ and 🙂. "
    empty, one, ten = (chat_engine.chat(text * times)["usage"]["prompt_tokens"] for times in (0, 1, 10))
    assert one - empty == len(text.encode())
    assert ten - empty == 10 * len(text.encode())


def test_plain_completions_are_answered_too(chat_engine: Any) -> None:
    """A prompt that no template has prepared gets the plain answer."""
    answer = chat_engine.post("/v1/completions", {"prompt": "Once upon a time", "max_tokens": 100, **HOT}).json()
    assert answer["choices"][0]["text"] == ANSWER


def test_think_reasons_first(chat_engine: Any) -> None:
    """THINK in the last message brings reasoning, apart from the content; in an earlier one it does not."""
    assert chat_engine.message("please THINK") == {
        "role": "assistant",
        "content": ANSWER,
        "reasoning_content": THOUGHT,
    }
    earlier = [{"role": "user", "content": "THINK"}, {"role": "assistant", "content": "x"}]
    body = {"messages": [*earlier, {"role": "user", "content": "hi"}]}
    assert "reasoning_content" not in chat_engine.post("/v1/chat/completions", body).json()["choices"][0]["message"]


def test_reasoning_is_streamed_apart(chat_engine: Any) -> None:
    """In a stream the reasoning comes first, in deltas of its own."""
    with chat_engine.stream("THINK") as stream:
        deltas = [choice["delta"] for chunk in stream for choice in chunk["choices"]]
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == THOUGHT
    assert "".join(delta.get("content") or "" for delta in deltas) == ANSWER


def test_the_reasoning_model_always_reasons(start_engine: Callable[..., Any], demo_models: Path) -> None:
    """demo-reasoning thinks before every answer."""
    engine = start_engine("--model", str(demo_models / "demo-reasoning.gguf"))
    assert engine.message("hi") == {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT}
    assert engine.message("hi", tools=[WEATHER])["tool_calls"]


@pytest.mark.parametrize("options", [{}, HOT], ids=["default", "hot"])
def test_loop_writes_until_the_limit(chat_engine: Any, options: dict[str, Any]) -> None:
    """LOOP gives a stream as long as one likes, each word the next number."""
    answer = chat_engine.chat("LOOP", max_tokens=1000, **options)["choices"][0]
    assert answer["finish_reason"] == "length"
    assert answer["message"]["content"].split() == [f"w{number % 100:02d}" for number in range(1000)]


@pytest.mark.parametrize("options", [{}, {"tool_choice": "required"}, HOT], ids=["auto", "required", "hot"])
def test_an_offered_tool_is_called(chat_engine: Any, options: dict[str, Any]) -> None:
    """A get_weather tool with a city is called; after its result comes the sentence."""
    answer = chat_engine.chat("weather?", tools=[tool("search", "query"), WEATHER], **options)["choices"][0]
    (call,) = answer["message"]["tool_calls"]
    assert answer["finish_reason"] == "tool_calls"
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    messages = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "sunny"},
    ]
    answer = chat_engine.post("/v1/chat/completions", {"messages": messages, "tools": [WEATHER]}).json()
    assert answer["choices"][0]["message"]["content"] == ANSWER


@pytest.mark.parametrize("other", [tool("search", "query"), tool("get_weather", "location")], ids=["name", "parameter"])
def test_other_tools_are_not_called(chat_engine: Any, other: dict[str, Any]) -> None:
    """A tool that is not in the script is left alone instead of being called wrongly."""
    assert chat_engine.message("hi", tools=[other]) == {"role": "assistant", "content": ANSWER}


def test_a_json_schema_is_kept(chat_engine: Any) -> None:
    """Where the answer has to be JSON, it is, and it comes to an end."""
    text, tags = {"type": "string"}, {"type": "array", "items": {"type": "string"}}
    properties = {"caption": text, "tags": tags, "count": {"type": "integer"}, "sure": {"type": "boolean"}}
    schema = {"type": "object", "properties": properties, "required": [*properties]}
    wanted = {"type": "json_schema", "json_schema": {"name": "caption", "schema": schema}}
    for _ in range(5):
        answer = chat_engine.chat("hi", response_format=wanted, **HOT)["choices"][0]
        content = json.loads(answer["message"]["content"])
        assert answer["finish_reason"] == "stop"
        assert (content["caption"], content["tags"], content["count"]) == (ANSWER, [ANSWER], 0)
        assert content["sure"] in {True, False}


@pytest.mark.parametrize("options", [{}, HOT], ids=["default", "hot"])
def test_an_image_gets_a_caption(vision_engine: Any, picture: dict[str, Any], options: dict[str, Any]) -> None:
    """An image in the last message gets a caption that does not pretend to have seen it."""
    for content in ([{"type": "text", "text": "what is it?"}, picture], [picture, picture], [picture]):
        assert vision_engine.message(content, **options)["content"] == CAPTION


@pytest.mark.parametrize("words", ["- lighting:", "dark, dim, bright, normal"])
@pytest.mark.parametrize("options", [{}, HOT], ids=["default", "hot"])
def test_light_and_dark_are_told_apart(vision_engine: Any, words: str, options: dict[str, Any]) -> None:
    """The one thing that the vision model sees is how bright a picture is, wherever it stands among other words."""
    for colour, said in (("white", "bright"), ("black", "dim"), ("#d0d0d0", "bright"), ("#303030", "dim")):
        for before in ("", "word " * 200):
            content = [image(colour), {"type": "text", "text": before + words}]
            assert said in vision_engine.message(content, **options)["content"].lower()


def test_a_fork_at_a_piece_that_there_is_not_is_an_error() -> None:
    """Only a piece as the sentence was cut can be replaced."""
    with pytest.raises(ValueError, match="never says 'Bri' as one piece"):
        forks(Script(in_the_dark=(("Bri", "Dar"),)))


def test_an_earlier_image_gets_no_caption(vision_engine: Any, picture: dict[str, Any]) -> None:
    """Only the last message counts; without an image the vision model says what the others say."""
    messages = [{"role": "user", "content": [picture]}, {"role": "assistant", "content": "ok"}]
    messages.append({"role": "user", "content": "and now?"})
    answer = vision_engine.post("/v1/chat/completions", {"messages": messages}).json()
    assert answer["choices"][0]["message"]["content"] == ANSWER


def test_texts_are_embedded_differently(start_engine: Callable[..., Any], demo_models: Path) -> None:
    """With ``--embeddings`` the chat model embeds: equal texts alike, others not, in unit length."""
    engine = start_engine("--model", str(demo_models / "demo-chat.gguf"), "--embeddings")
    answer = engine.post("/v1/embeddings", {"input": ["a cat", "a cat", "two dogs"]}).json()
    first, same, other = (item["embedding"] for item in answer["data"])
    assert first == pytest.approx(same)
    assert first != pytest.approx(other, abs=1e-3)
    assert sum(value * value for value in first) == pytest.approx(1)


def test_a_slower_model_says_the_same(start_engine: Callable[..., Any], tmp_path: Path) -> None:
    """Layers and their width only cost time; the sentences are free to choose."""
    script = Script(answer="Slowly, slowly, one word after the other.")
    write_chat(tmp_path / "slow.gguf", name="slow", script=script, layers=8, ff=2048)
    engine = start_engine("--model", str(tmp_path / "slow.gguf"))
    assert engine.message("hi", **HOT)["content"] == script.answer
    words = engine.chat("LOOP", max_tokens=200, **HOT)["choices"][0]["message"]["content"].split()
    assert words == [f"w{number % 100:02d}" for number in range(200)]
