"""What the backends make of an entry: command lines, addresses, files, reasons. No process is started."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from builders import entry
from rolecall.backends.base import Backend, Launch, Places, Spread, Upstream, mmproj_path, model_path
from rolecall.backends.custom import CustomCommand
from rolecall.backends.external import OpenAIServer
from rolecall.backends.llama_server import LlamaServer
from rolecall.core.vram import Share

PLACES = Places(Path("/etc/rolecall"), Path("/var/lib/rolecall"))
LLAMA = LlamaServer(PLACES, ("/usr/bin/llama-server",))
OURS_ALWAYS = ["--host", "127.0.0.1", "--port", "4711"]


def argv(**fields: Any) -> list[str]:
    """Return the command line that an entry with this ``backend_config`` and these fields is started with."""
    config = {"model_path": "/m/tiny.gguf", **fields.pop("backend_config", {})}
    return list(LLAMA.launch(entry("tiny", backend_config=config, **fields), 4711).argv)


def values(words: list[str], *flags: str) -> list[str]:
    """Return the words that follow any of ``flags``, in order."""
    return [value for flag, value in pairwise(words) if flag in flags]


# -- paths


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("models/a.gguf", "/etc/rolecall/models/a.gguf"),
        ("/m/a.gguf", "/m/a.gguf"),
        ("${STATE_DIR}/a.gguf", "/var/lib/rolecall/a.gguf"),
        ("${CONFIG_DIR}/a.gguf", "/etc/rolecall/a.gguf"),
        ("~/a.gguf", "/home/someone/a.gguf"),
        ("${HOME}/$STATE_DIR/{STATE_DIR}", "/etc/rolecall/${HOME}/$STATE_DIR/{STATE_DIR}"),
        ("~nobody-of-that-name/a", "/etc/rolecall/~nobody-of-that-name/a"),
    ],
)
def test_paths_of_the_registry_are_filled_in(path: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The home folder and our two folders have names; other paths are relative to the config folder."""
    monkeypatch.setenv("HOME", "/home/someone")
    assert PLACES.expand(path) == Path(expected)


def test_a_folder_that_is_named_like_a_placeholder_is_not_filled_in_again() -> None:
    """What a placeholder stands for is taken as it is, even if it holds the text of another one."""
    places = Places(Path("/etc/${STATE_DIR}"), Path("/var"))
    assert places.expand("${CONFIG_DIR}/a") == Path("/etc/${STATE_DIR}/a")


@pytest.mark.parametrize("field", ["mmproj_path", "mmproj_id"])
@pytest.mark.parametrize(
    ("projector", "expected"), [("mm.gguf", "/m/mm.gguf"), ("sub/mm.gguf", "/m/sub/mm.gguf"), ("/m/x/mm", "/m/x/mm")]
)
def test_a_projector_is_beside_its_model(field: str, projector: str, expected: str) -> None:
    """A projector's path is relative to the model's folder, whichever field names it."""
    seeing = entry(backend_config={"model_path": "/m/tiny.gguf", field: projector})
    assert mmproj_path(seeing, PLACES) == Path(expected)
    assert LLAMA.files(seeing) == (Path("/m/tiny.gguf"), Path(expected))
    assert values(list(LLAMA.launch(seeing, 1).argv), "--mmproj") == [expected]


def test_the_download_location_stands_in_for_the_model_path() -> None:
    """Older files name the model under download_location alone; model_path goes first where both are there."""
    assert model_path(entry(download_location="/old.gguf"), PLACES) == Path("/old.gguf")
    both = entry(download_location="/old.gguf", backend_config={"model_path": "/new.gguf"})
    assert model_path(both, PLACES) == Path("/new.gguf")
    assert model_path(entry(), PLACES) is None


# -- llama.cpp


def test_the_command_line_of_llama_server() -> None:
    """Model, name, context, and slots with one unified cache; host and port stand at the end."""
    assert argv(context_length=4096) == [
        "/usr/bin/llama-server", "--model", "/m/tiny.gguf", "--alias", "tiny", "--ctx-size", "4096",
        "--parallel", "4", "--kv-unified", "--metrics", *OURS_ALWAYS,
    ]  # fmt: skip


def test_the_context_may_stand_in_the_generation_defaults() -> None:
    """The engine gets the context that the model is shown with, wherever the entry tells it."""
    assert values(argv(generation_defaults={"context_window": 2048}), "--ctx-size") == ["2048"]
    assert values(argv(), "--ctx-size") == []


def test_the_embedded_engine_gets_the_same_command_line() -> None:
    """The engine's own words come first; the rest does not depend on it."""
    engine = (sys.executable, "-m", "engine")
    embedded = LlamaServer(PLACES, engine).launch(entry("tiny", backend_config={"model_path": "/m/tiny.gguf"}), 4711)
    assert embedded.argv == (*engine, *argv()[1:])


@pytest.mark.parametrize(
    "extra",
    [
        ["--model", "/other.gguf"],
        ["-m", "/other.gguf"],
        ["--alias", "other"],
        ["-a", "other"],
        ["--ctx-size", "99"],
        ["-c", "99"],
        ["--ctx-size=99"],
        ["--parallel", "2"],
        ["-np", "2"],
        ["--mmproj", "/other.mm"],
    ],
    ids=" ".join,
)
def test_flags_of_the_entry_go_before_ours(extra: list[str]) -> None:
    """A flag that extra_args hold is theirs alone, in either spelling: ours would be a second, contradicting one."""
    spelled = {"-m": "--model", "-a": "--alias", "-c": "--ctx-size", "-np": "--parallel"}
    flag = extra[0].partition("=")[0]
    long = spelled.get(flag, flag)
    words = argv(context_length=4096, backend_config={"extra_args": extra, "mmproj_path": "mm.gguf"})
    ours = words[: words.index(extra[0])]
    assert long not in ours
    assert words[-len(OURS_ALWAYS) - len(extra) :] == [*extra, *OURS_ALWAYS]


def test_host_and_port_are_always_ours() -> None:
    """An engine listens on loopback where rolecall looks for it, whatever extra_args say: the last flag counts."""
    words = argv(backend_config={"extra_args": ["--host", "0.0.0.0", "--port", "1"]})
    assert words[-4:] == OURS_ALWAYS


def test_values_of_extra_args_are_no_flags() -> None:
    """A value that reads like one of our flags, such as a prompt, does not take its place away."""
    words = argv(backend_config={"extra_args": ["--alias-note", "x"]})
    assert values(words, "--alias") == ["tiny"]


@pytest.mark.parametrize(
    ("fields", "slots"),
    [
        ({}, 4),
        ({"max_parallel": 7}, 7),
        ({"backend_config": {"extra_args": ["--parallel", "3"]}}, 3),
        ({"backend_config": {"extra_args": ["-np", "3"]}}, 3),
        ({"backend_config": {"extra_args": ["--parallel=3"]}}, 3),
        ({"backend_config": {"extra_args": ["-np", "2", "--parallel", "5"]}}, 5),
        ({"backend_config": {"extra_args": ["--parallel", "3"]}, "max_parallel": 2}, 2),
        ({"backend_config": {"extra_args": ["--parallel", "0"]}}, 4),
        ({"backend_config": {"extra_args": ["--parallel", "-1"]}}, 4),
        ({"backend_config": {"extra_args": ["--parallel", "many"]}}, 4),
        ({"backend_config": {"extra_args": ["--parallel"]}}, 4),
    ],
)
def test_the_slots_of_an_engine(fields: dict[str, Any], slots: int) -> None:
    """max_parallel counts, then a number in extra_args, then four."""
    assert LLAMA.parallel(entry(**fields)) == slots


@pytest.mark.parametrize(
    ("args", "fields", "shares"),
    [
        ([], {}, True),
        ([], {"max_parallel": 8}, True),
        ([], {"max_parallel": 1}, False),
        (["--parallel", "2"], {}, False),
        (["-np", "2", "-kvu"], {}, True),
        (["--no-kv-unified"], {}, False),
    ],
)
def test_which_requests_share_a_context(args: list[str], fields: dict[str, Any], shares: bool) -> None:  # noqa: FBT001 - of a table
    """Slots share one cache as we start the engine, unless its arguments say otherwise, or there is but one slot."""
    backend = LlamaServer(PLACES, ("llama-server",))
    assert backend.shares_context(entry(backend_config={"extra_args": args}, **fields)) is shares
    assert not backend.shares_context(entry(backend_config={"command": ["x", "{port}"]}))
    assert not backend.shares_context(entry(backend_config={"mode": "cli"}))


def test_slots_by_max_parallel_share_one_cache() -> None:
    """Each of the slots may use the whole context."""
    words = argv(max_parallel=2)
    assert values(words, "--parallel") == ["2"]
    assert words.count("--kv-unified") == 1


def test_the_engine_is_told_the_name_that_requests_are_sent_with() -> None:
    """served_model_id names the model towards the engine, at its start and in requests alike."""
    other = entry("tiny", served_model_id="other", backend_config={"model_path": "/m/tiny.gguf"})
    assert LLAMA.served_id(other) == "other"
    assert values(list(LLAMA.launch(other, 1).argv), "--alias") == ["other"]
    assert LLAMA.served_id(entry("tiny")) == "tiny"


def test_odd_names_and_paths_stay_one_word() -> None:
    """Spaces, quotes and dashes in a path or name never become further arguments."""
    odd = entry('a "b" --port 1', backend_config={"model_path": "/m/x --mmproj y.gguf"})
    words = list(LLAMA.launch(odd, 4711).argv)
    assert values(words, "--model") == ["/m/x --mmproj y.gguf"]
    assert values(words, "--alias") == ['a "b" --port 1']
    assert values(words, "--port") == ["4711"]


def test_variables_and_address_of_an_engine() -> None:
    """The entry's variables go to the engine; it is reached and probed on loopback."""
    launch = LLAMA.launch(entry(backend_config={"model_path": "/m", "env": {"CUDA_VISIBLE_DEVICES": 1}}), 4711)
    assert launch.env == {"CUDA_VISIBLE_DEVICES": "1"}
    assert (launch.base_url, launch.health_path) == ("http://127.0.0.1:4711/v1", "/health")
    assert LLAMA.upstream(entry(), 4711) == Upstream("http://127.0.0.1:4711/v1")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({}, "model_path is missing"),
        ({"model_path": "/m"}, None),
        ({"command": ["serve", "{port}"]}, None),
        ({"command": ["serve"], "model_path": "/m"}, "holds no {port}"),
    ],
)
def test_what_a_llama_entry_lacks(config: dict[str, Any], reason: str | None) -> None:
    """An entry that can never work says why."""
    found = LLAMA.unavailable(entry(backend_config=config))
    assert found is None if reason is None else reason in (found or "")


# -- llama.cpp, one process for each request


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with llama.cpp's programs, and a PATH on which none is."""
    for name in ("llama-server", "llama-completion", "llama-cli", "llama-mtmd-cli"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    return tmp_path


def test_the_command_line_of_mode_cli(programs: Path) -> None:
    """Ours before the --, sizes and the entry's own arguments behind it; files of requests go to the state folder."""
    config = {"model_path": "/m/tiny.gguf", "mmproj_path": "mm.gguf", "mode": "cli", "extra_args": ["-t", "2"]}
    one = entry("-odd name", backend_config=config, context_length=4096, generation_defaults={"batch_size": 64})
    launch = LlamaServer(PLACES, (str(programs / "llama-server"),)).launch(one, 4711)
    assert launch.argv[launch.argv.index("-m") + 1 :] == (
        "rolecall.backends.oneshot",
        f"--cli={programs}/llama-completion",
        f"--mtmd-cli={programs}/llama-mtmd-cli",
        "--model=/m/tiny.gguf",
        "--mmproj=/m/mm.gguf",
        "--alias=-odd name",
        "--host=127.0.0.1",
        "--port=4711",
        "--spool=/var/lib/rolecall/oneshot",
        "--", "--ctx-size", "4096", "--batch-size", "64", "-t", "2",
    )  # fmt: skip
    assert launch.argv[0] == sys.executable
    assert launch.base_url == "http://127.0.0.1:4711/v1"


def test_where_the_programs_of_mode_cli_are_found(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside llama-server, also behind a link to it, else on the PATH; llama-cli where its new name is missing."""
    one = entry(backend_config={"model_path": "/m", "mode": "cli"})
    link = programs / "bin" / "llama-server"
    link.parent.mkdir()
    link.symlink_to(programs / "llama-server")

    def cli(*engine: str) -> list[str]:
        words = LlamaServer(PLACES, engine).launch(one, 1).argv
        return [word.partition("=")[2] for word in words if word.startswith("--cli=")]

    assert cli(str(link)) == [f"{programs}/llama-completion"]
    assert cli(sys.executable, "-m", "engine") == []
    monkeypatch.setenv("PATH", str(programs))
    (programs / "llama-completion").unlink()
    assert cli(sys.executable, "-m", "engine") == [f"{programs}/llama-cli"]


def test_what_mode_cli_lacks(programs: Path) -> None:
    """Which program is missing, and where it comes from; images need one of their own."""
    text = {"model_path": "/m/a.gguf", "mode": "cli"}
    images = {**text, "mmproj_path": "mm.gguf"}
    driver = LlamaServer(PLACES, (str(programs / "llama-server"),))
    assert [driver.unavailable(entry(backend_config=config)) for config in (text, images)] == [None, None]
    (programs / "llama-mtmd-cli").unlink()
    assert driver.unavailable(entry(backend_config=text)) is None
    assert "needs llama-mtmd-cli, beside" in (driver.unavailable(entry(backend_config=images)) or "")
    reason = LlamaServer(PLACES, None).unavailable(entry(backend_config=images)) or ""
    assert "needs llama-completion or llama-cli and llama-mtmd-cli" in reason
    assert "model_path" in (driver.unavailable(entry(backend_config={"mode": "cli"})) or "")


def test_mode_cli_answers_one_request_at_a_time() -> None:
    """Each request loads the model: two at once would need its memory twice."""
    config = {"model_path": "/m", "mode": "cli", "extra_args": ["--parallel", "3"]}
    assert LLAMA.parallel(entry(backend_config=config, max_parallel=4)) == 1
    own = {"command": ["x", "{port}"], "mode": "cli"}
    assert LLAMA.parallel(entry(backend_config=own, max_parallel=4)) == 4


# -- llama.cpp, sizes and devices


@pytest.mark.parametrize(
    ("defaults", "flag", "value"),
    [
        ({"ctx_size": 2048}, "--ctx-size", ["2048"]),
        ({"n_ctx": 2048}, "--ctx-size", ["2048"]),
        ({"context_window": 1024, "ctx_size": 1024}, "--ctx-size", ["1024"]),
        ({"batch_size": 256}, "--batch-size", ["256"]),
        ({"ubatch_size": 128}, "--ubatch-size", ["128"]),
        ({"batch_size": 0}, "--batch-size", []),
        ({"batch_size": "many"}, "--batch-size", []),
        ({"batch_size": True}, "--batch-size", []),
        ({"temperature": 0.5, "top_k": 3}, "--temp", []),
    ],
)
@pytest.mark.parametrize("mode", ["server", "cli"])
def test_sizes_are_given_at_the_start(mode: str, defaults: dict[str, Any], flag: str, value: list[str]) -> None:
    """The engine gets its sizes from the generation defaults in both modes; sampling travels with the requests."""
    assert values(argv(generation_defaults=defaults, backend_config={"mode": mode}), flag) == value


@pytest.mark.parametrize("extra", [["--batch-size", "9"], ["-b", "9"], ["--batch-size=9"]])
def test_sizes_of_the_arguments_go_before_those_of_the_defaults(extra: list[str]) -> None:
    """A size in extra_args is theirs alone."""
    words = argv(generation_defaults={"batch_size": 256}, backend_config={"extra_args": extra})
    assert "256" not in words


@pytest.mark.parametrize(
    ("cards", "extra", "split"),
    [
        (0, [], []),
        (1, [], []),
        (2, [], ["1,1"]),
        (3, [], ["1,1,1"]),
        (2, ["-ts", "3,1"], ["3,1"]),
        (2, ["--split-mode", "row"], []),
    ],
)
def test_several_gpus_get_equal_parts(cards: int, extra: list[str], split: list[str]) -> None:
    """What was reserved on each GPU is what the model takes there; by itself llama.cpp splits by free memory."""
    placement = tuple(Share(f"GPU-{index}", 6000, 24000) for index in range(cards))
    two = entry("tiny", backend_config={"model_path": "/m/tiny.gguf", "extra_args": extra})
    assert values(list(LLAMA.launch(two, 4711, placement).argv), "--tensor-split", "-ts") == split


def test_a_model_can_lie_over_any_number_of_gpus() -> None:
    """One if it fits, else as many as it takes."""
    assert LLAMA.spread(entry()) == Spread(possible=tuple(range(1, 17)))


def test_which_build_an_engine_is(tmp_path: Path) -> None:
    """A binary with its time, the embedded engine with its version, nothing where there is none."""
    binary = tmp_path / "llama-server"
    binary.touch()
    assert LlamaServer(PLACES, (str(binary),)).build() == f"llama-server {binary.stat().st_mtime_ns}"
    assert LlamaServer(PLACES, ("/gone/llama-server",)).build() == "llama-server"
    assert LlamaServer(PLACES, None).build() == "none"


def test_without_an_engine_only_commands_work() -> None:
    """A machine without llama.cpp is told the three ways to it; an entry with its own command does not need it."""
    bare = LlamaServer(PLACES, None)
    reason = bare.unavailable(entry(backend_config={"model_path": "/m"})) or ""
    assert all(way in reason for way in ("PATH", "llama_server", "rolecall[llama]"))
    assert bare.unavailable(entry(backend_config={"command": ["serve", "{port}"]})) is None


# -- commands of one's own

CUSTOM = CustomCommand(PLACES, "vllm")


def command(*words: str, **fields: Any) -> tuple[str, ...]:
    """Return the command line that becomes of a command."""
    config = {"model_path": "/m/tiny.gguf", "mmproj_path": "mm.gguf", **fields.pop("backend_config", {})}
    return CUSTOM.launch(entry("a b", backend_config={**config, "command": list(words)}, **fields), 4711).argv


@pytest.mark.parametrize("backend", [CUSTOM, LLAMA], ids=["vllm", "llama_cpp"])
def test_placeholders_of_a_command(backend: Backend) -> None:
    """Every placeholder is filled in, with and without a dollar, in any case, inside of words too."""
    words = ["{python}", "${PORT}", "--url=http://{host}:{port}/", "{model}", "{MMPROJ}", "${alias}"]
    config = {"model_path": "/m/tiny.gguf", "mmproj_path": "mm.gguf", "command": words}
    launch = backend.launch(entry("a b", backend_config=config), 4711)
    assert isinstance(launch, Launch)
    assert launch.argv == (
        sys.executable, "4711", "--url=http://127.0.0.1:4711/", "/m/tiny.gguf", "/m/mm.gguf", "a b",
    )  # fmt: skip


def test_a_command_is_asked_where_its_entry_says() -> None:
    """``health_path`` goes before /health, which is asked where the entry says nothing."""
    for path, asked in ((None, "/health"), ("/v1/models", "/v1/models")):
        launch = CUSTOM.launch(entry("a", backend_config={"command": ["x", "{port}"], "health_path": path}), 1)
        assert launch.health_path == asked


def test_what_is_no_placeholder_stays() -> None:
    """JSON and shell text in a command pass as they are."""
    words = ('{"port": 1}', "${HOME}", "{}", "{unknown}", "$PORT", "{ port }")
    assert command(*words) == words


def test_filled_in_text_is_not_filled_in_again() -> None:
    """A model that is called like a placeholder stays what it is."""
    odd = entry("{port}", backend_config={"command": ["x", "{alias}", "{port}"]})
    assert CUSTOM.launch(odd, 4711).argv == ("x", "{port}", "4711")


def test_words_of_a_command_are_never_split() -> None:
    """A list is taken word by word; only a command written as one string is split as a shell would, before filling."""
    assert command("serve now", "{alias}") == ("serve now", "a b")
    spelled = entry("a b", backend_config={"command": "serve '{alias} x' {port}"})
    assert CUSTOM.launch(spelled, 1).argv == ("serve", "a b x", "1")


def test_extra_args_follow_a_command_as_they_are() -> None:
    """Further arguments come last, and have no placeholders."""
    assert command("serve", backend_config={"extra_args": ["{port}", 7]}) == ("serve", "{port}", "7")


def test_files_that_an_entry_does_not_have_are_empty_words() -> None:
    """A command may ask for a model that the entry does not name."""
    assert CUSTOM.launch(entry(backend_config={"command": ["x", "{model}", "{mmproj}"]}), 1).argv == ("x", "", "")


@pytest.mark.parametrize(
    ("config", "works"),
    [
        ({"command": ["serve", "--port={port}"]}, True),
        ({"command": ["serve", "${PORT}"]}, True),
        ({"command": ["serve"], "port": 9000}, True),
        ({"command": ["serve"]}, False),
        ({"command": ["serve", "$PORT"]}, False),
        ({"command": ["serve"], "extra_args": ["{port}"]}, False),
    ],
)
@pytest.mark.parametrize("backend", [CUSTOM, LLAMA], ids=["vllm", "llama_cpp"])
def test_a_command_must_know_its_port(backend: Backend, config: dict[str, Any], works: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """A command that would listen where nobody looks is said to be wrong, unless its port is fixed."""
    reason = backend.unavailable(entry(backend_config=config))
    assert (reason is None) is works
    assert works or "{port}" in (reason or "")


def test_a_backend_that_is_not_driven_says_so() -> None:
    """An entry of such a backend loads, and its reason names the backend and the way out."""
    reason = CUSTOM.unavailable(entry(backend="vllm")) or ""
    assert "'vllm' is not supported" in reason
    assert "backend_config.command" in reason


def test_facts_about_a_custom_engine() -> None:
    """One request at a time unless the entry says more; its file counts if there is one; it is ours to start."""
    assert (CUSTOM.name, CUSTOM.managed) == ("vllm", True)
    assert [CUSTOM.parallel(entry()), CUSTOM.parallel(entry(max_parallel=3))] == [1, 3]
    assert CUSTOM.files(entry()) == ()
    assert CUSTOM.files(entry(download_location="m")) == (Path("/etc/rolecall/m"),)
    assert [CUSTOM.served_id(entry("a")), CUSTOM.served_id(entry("a", served_model_id="b"))] == ["a", "b"]
    assert CUSTOM.upstream(entry(), 4711) == Upstream("http://127.0.0.1:4711/v1")


# -- servers of somebody else

SERVER = OpenAIServer()


@pytest.mark.parametrize(
    ("config", "base_url"),
    [
        ({"base_url": "https://api.example"}, "https://api.example/v1"),
        ({"base_url": "https://api.example/"}, "https://api.example/v1"),
        ({"base_url": "https://api.example/v1"}, "https://api.example/v1"),
        ({"base_url": "https://api.example/v1/"}, "https://api.example/v1"),
        ({"base_url": "https://api.example/openai/v4"}, "https://api.example/openai/v4"),
        ({"base_url": "http://[::1]:9000"}, "http://[::1]:9000/v1"),
        ({"port": 9000}, "http://127.0.0.1:9000/v1"),
        ({"port": 9000, "host": "gpu.lan"}, "http://gpu.lan:9000/v1"),
        ({"port": 9000, "base_url": "http://x:1/v1"}, "http://x:1/v1"),
    ],
)
def test_the_address_of_an_external_server(config: dict[str, Any], base_url: str) -> None:
    """An address without a path is completed with /v1, one with a path is taken as it is; host and port do as well."""
    external = entry(backend="openai", backend_config=config)
    assert SERVER.unavailable(external) is None
    assert SERVER.upstream(external, 0).base_url == base_url


@pytest.mark.parametrize(
    ("base_url", "endpoint", "url"),
    [
        ("http://x/v1", "/v1/chat/completions", "http://x/v1/chat/completions"),
        ("http://x/openai/v4", "/v1/chat/completions", "http://x/openai/v4/chat/completions"),
        ("http://x/v1", "/tokenize", "http://x/tokenize"),
        ("http://x/llama/v1", "/tokenize", "http://x/llama/tokenize"),
        ("http://x/openai/v4", "/tokenize", "http://x/openai/v4/tokenize"),
    ],
)
def test_the_address_of_an_endpoint(base_url: str, endpoint: str, url: str) -> None:
    """What is below /v1 goes below the base address; llama.cpp's own paths stand beside its /v1."""
    assert Upstream(base_url).url(endpoint) == url


def test_an_external_server_without_an_address() -> None:
    """The reason names the missing field."""
    assert "base_url" in (SERVER.unavailable(entry(backend="openai")) or "")


def test_facts_about_an_external_server() -> None:
    """It is not ours to start, has no files, and a queue of its own; its key is only named."""
    external = entry("a", backend="openai", backend_config={"port": 1, "api_key_env": "SOME_KEY"})
    assert not SERVER.managed
    assert SERVER.files(external) == ()
    assert [SERVER.parallel(external), SERVER.parallel(entry(max_parallel=2))] == [256, 2]
    assert [SERVER.served_id(external), SERVER.served_id(entry(served_model_id="b"))] == ["a", "b"]
    assert SERVER.upstream(external, 0).api_key_env == "SOME_KEY"
    with pytest.raises(TypeError, match="somebody else"):
        SERVER.launch(external, 1)
