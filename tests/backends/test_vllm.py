"""What the vLLM driver makes of an entry: command line, memory share, GPUs, sleep. No process is started."""

from __future__ import annotations

import json
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from builders import entry
from rolecall.backends.base import Backend, Call, Launch, Places, Upstream
from rolecall.backends.vllm import DEFAULT_PARALLEL, TERM_GRACE_S, VllmServer, find_vllm
from rolecall.core.registry import read_registry
from rolecall.core.vram import HOST, Placement, Share

PLACES = Places(Path("/etc/rolecall"), Path("/var/lib/rolecall"))
VLLM: Backend = VllmServer(PLACES, ("/opt/vllm/bin/vllm",), 180, 30)
OURS_ALWAYS = ["--host", "127.0.0.1", "--port", "24001"]
SHARE = "--gpu-memory-utilization"
CARD_MB = 16_000
HALF = (Share("GPU-a", CARD_MB // 2, CARD_MB),)


def launch(*extra: str, placement: Placement = (), **fields: Any) -> Launch:
    """Return how an entry with these ``extra_args`` and fields is started."""
    config = {"model_path": "/m/tiny", "extra_args": extra, **fields.pop("backend_config", {})}
    made = VLLM.launch(entry("tiny", backend="vllm", backend_config=config, **fields), 24001, placement)
    assert isinstance(made, Launch)
    return made


def argv(*extra: str, placement: Placement = (), **fields: Any) -> list[str]:
    """Return the words of that command line."""
    return list(launch(*extra, placement=placement, **fields).argv)


def values(words: list[str], *flags: str) -> list[str]:
    """Return the values of any of ``flags``, in order."""
    joined = [word.partition("=")[2] for word in words if word.partition("=")[0] in flags and "=" in word]
    return [value for flag, value in pairwise(words) if flag in flags] + joined


# -- the command line


def test_the_command_line_of_vllm_serve() -> None:
    """Model, name, context, parallel requests, what the entry says, its share; host and port stand at the end."""
    assert argv("--enforce-eager", context_length=4096, max_parallel=8, placement=HALF) == [
        "/opt/vllm/bin/vllm", "serve", "/m/tiny", "--served-model-name", "tiny", "--max-model-len", "4096",
        "--max-num-seqs", "8", "--enforce-eager", SHARE, "0.5", *OURS_ALWAYS,
    ]  # fmt: skip


def test_nothing_is_said_of_what_nobody_knows() -> None:
    """Without a context and a placement vLLM is left to find out itself."""
    words = argv()
    assert words[2:] == [
        "/m/tiny",
        "--served-model-name",
        "tiny",
        "--max-num-seqs",
        str(DEFAULT_PARALLEL),
        *OURS_ALWAYS,
    ]


def test_a_model_path_is_that_of_a_folder() -> None:
    """It is relative to the config folder, and the entry is installed when it is there."""
    relative = entry("tiny", backend="vllm", backend_config={"model_path": "models/tiny"})
    assert VLLM.files(relative) == (Path("/etc/rolecall/models/tiny"),)
    made = VLLM.launch(relative, 24001)
    assert isinstance(made, Launch)
    assert made.argv[2] == "/etc/rolecall/models/tiny"
    assert VLLM.files(entry(download_location="/old")) == (Path("/old"),)
    assert VLLM.files(entry()) == ()


@pytest.mark.parametrize(
    ("extra", "flag"),
    [
        (("--max-model-len", "99"), "--max-model-len"),
        (("--max-model-len=99",), "--max-model-len"),
        (("--max_model_len", "99"), "--max-model-len"),
        (("--max_model_len=99",), "--max-model-len"),
        (("--max-num-seqs", "99"), "--max-num-seqs"),
        (("--served-model-name", "99"), "--served-model-name"),
    ],
)
def test_the_arguments_of_the_entry_go_first(extra: tuple[str, ...], flag: str) -> None:
    """What extra_args say is not said a second time, however they spell it."""
    assert values(argv(*extra, context_length=4096, max_parallel=8), flag) == ["99"]


@pytest.mark.parametrize("extra", [("--host", "0.0.0.0", "--port", "1"), ("--host=0.0.0.0", "--port=1")])
def test_host_and_port_are_ours(extra: tuple[str, ...]) -> None:
    """An engine listens on loopback, on the port that it was given, and nowhere else."""
    words = argv("--enforce-eager", *extra, "--seed", "7")
    assert words[-7:] == ["--enforce-eager", "--seed", "7", *OURS_ALWAYS]
    assert "0.0.0.0" not in " ".join(words)


def test_values_are_left_as_they_are() -> None:
    """Only flags are spelled in one way; JSON and names keep their underscores."""
    extra = ["--limit-mm-per-prompt", '{"image_x": 4}', "--tool-call-parser", "llama3_json", "-tp", "1"]
    words = argv(*extra)
    assert words[-len(extra) - 4 : -4] == extra


def test_how_many_requests_it_serves_at_once() -> None:
    """max_parallel goes first, then --max-num-seqs, then a default."""
    assert VLLM.parallel(entry(max_parallel=3)) == 3
    assert VLLM.parallel(entry(backend_config={"extra_args": ["--max-num-seqs", "5"]})) == 5
    assert VLLM.parallel(entry(backend_config={"extra_args": ["--max_num_seqs=6"]})) == 6
    assert VLLM.parallel(entry(backend_config={"extra_args": ["--max-num-seqs", "1k"]})) == DEFAULT_PARALLEL
    assert VLLM.parallel(entry()) == DEFAULT_PARALLEL


def test_requests_name_the_model_as_it_was_started() -> None:
    """The engine answers any other name with 404: the one in the arguments goes first, then the entry's two."""
    assert VLLM.served_id(entry("tiny")) == "tiny"
    assert VLLM.served_id(entry("tiny", served_model_id="org/tiny")) == "org/tiny"
    assert values(argv(served_model_id="org/tiny"), "--served-model-name") == ["org/tiny"]
    named = entry(
        "tiny", served_model_id="x", backend_config={"extra_args": ["--served-model-name", "first", "second"]}
    )
    assert VLLM.served_id(named) == "first"


# -- memory


@pytest.mark.parametrize(
    ("mb", "total_mb", "share"),
    [(8000, 16000, "0.5"), (12345, 16376, "0.753"), (16376, 16376, "1"), (39321, 143771, "0.273"), (9, 16376, "0.001")],
)
def test_the_share_of_the_card_is_that_of_the_reservation(mb: int, total_mb: int, share: str) -> None:
    """It is rounded down, so that never more is taken than was reserved."""
    assert values(argv(placement=(Share("GPU-a", mb, total_mb),)), SHARE) == [share]


@pytest.mark.parametrize(
    ("asked", "share"), [("0.3", "0.3"), ("0.50", "0.50"), ("0.85", "0.5"), ("1", "0.5"), ("lots", "0.5")]
)
@pytest.mark.parametrize("spelling", ["{flag} {value}", "{flag}={value}"])
def test_a_share_in_the_arguments_is_a_ceiling(asked: str, share: str, spelling: str) -> None:
    """The smaller of the two is given, once: two models with 0.85 each live side by side."""
    extra = spelling.format(flag=SHARE, value=asked).split(" ")
    assert values(argv(*extra, placement=HALF), SHARE) == [share]
    underscored = spelling.format(flag="--gpu_memory_utilization", value=asked).split(" ")
    assert values(argv(*underscored, placement=HALF), SHARE) == [share]


def test_the_share_in_the_arguments_holds_where_nothing_is_reserved() -> None:
    """Without a placement there is nothing to compare it with."""
    assert values(argv(SHARE, "0.85"), SHARE) == ["0.85"]


def test_the_size_of_the_kv_cache_is_passed_beside_the_share() -> None:
    """The engine takes that size, but does not start unless as much as the share is free."""
    words = argv("--kv-cache-memory-bytes", "2G", placement=HALF)
    assert values(words, "--kv-cache-memory-bytes") == ["2G"]
    assert values(words, SHARE) == ["0.5"]


def test_without_a_gpu_it_is_a_share_of_the_ram() -> None:
    """An engine for CPUs goes by the same flag, and would take 0.92 of the RAM without it."""
    assert values(argv(placement=(Share(HOST, 6000, 24000),)), SHARE) == ["0.25"]


# -- several GPUs


def test_a_model_on_two_gpus_is_split_by_tensors() -> None:
    """Each GPU gives the same share; the smallest one counts."""
    two = (Share("GPU-a", 8000, 16000), Share("GPU-b", 8000, 20000))
    words = argv(placement=two)
    assert values(words, "--tensor-parallel-size") == ["2"]
    assert values(words, SHARE) == ["0.4"]
    assert "--tensor-parallel-size" not in argv(placement=HALF)


@pytest.mark.parametrize(
    ("extra", "gpus"),
    [
        (("-tp", "2"), 2),
        (("-tp=2",), 2),
        (("--tensor-parallel-size", "4"), 4),
        (("--tensor_parallel_size=4",), 4),
        (("--pipeline-parallel-size", "2"), 2),
        (("-pp", "3"), 3),
        (("-tp", "2", "-pp", "3"), 6),
        (("-tp", "1"), 1),
        (("-dp", "2", "-tp", "2"), 4),
    ],
)
def test_the_arguments_say_over_how_many_gpus(extra: tuple[str, ...], gpus: int) -> None:
    """That number is asked for, no other one is possible, and nothing is added to it."""
    asking = VLLM.spread(entry(backend_config={"extra_args": extra}))
    assert (asking.asked, asking.possible) == (gpus, (gpus,))
    placement = tuple(Share(f"GPU-{index}", 8000, 16000) for index in range(gpus))
    words = argv(*extra, placement=placement)
    assert [word for word in words if word.startswith(("-tp", "--tensor", "-pp", "--pipe", "-dp"))] == [
        word.replace("_", "-") for word in extra if word.startswith("-")
    ]


def test_where_the_arguments_are_silent_powers_of_two_are_possible() -> None:
    """One GPU if the model fits there, and no number by which attention heads are seldom divisible."""
    silent = VLLM.spread(entry())
    assert (silent.asked, silent.possible) == (None, (1, 2, 4, 8))
    assert VLLM.spread(entry(backend_config={"extra_args": ["-tp", "none"]})).asked is None


# -- how it lives


def test_it_reports_to_nobody_and_asks_nobody() -> None:
    """No usage statistics, nothing looked up elsewhere; the entry's own environment goes first."""
    env = dict(launch(backend_config={"env": {"HF_HUB_OFFLINE": "0", "VLLM_CPU_KVCACHE_SPACE": 1}}).env)
    assert env == {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }


def test_how_it_is_watched_and_ended() -> None:
    """The time limits are the settings', but a stop never waits longer than is of use."""
    made = launch()
    assert (made.base_url, made.health_path) == ("http://127.0.0.1:24001/v1", "/health")
    assert (made.load_timeout_s, made.term_grace_s) == (180, TERM_GRACE_S)
    assert made.killed_last
    assert made.killed_last in "python -B -c from multiprocessing.resource_tracker import main;main(31)"
    hasty = VllmServer(PLACES, ("vllm",), 5, 1).launch(entry(backend_config={"model_path": "/m"}), 24001)
    assert (hasty.load_timeout_s, hasty.term_grace_s) == (5, 1)


def test_its_ports_and_its_memory() -> None:
    """Ten ports of its own; it takes as much memory as it is given."""
    assert [*(VLLM.ports or ())] == [*range(24001, 24011)]
    assert (VLLM.takes_share, VLLM.managed, VLLM.has_port) == (True, True, True)
    assert VLLM.upstream(entry(), 24003) == Upstream("http://127.0.0.1:24003/v1")


# -- sleep


def test_an_engine_that_may_sleep_is_told_how() -> None:
    """The flag opens vLLM's development endpoints; at level 1 the weights go to RAM and come back by one call."""
    made = launch("--enable-sleep-mode")
    assert made.env["VLLM_SERVER_DEV_MODE"] == "1"
    light, deep = made.sleeps
    assert (light.level, deep.level) == (1, 2)
    assert light.sleep == Call("POST", "http://127.0.0.1:24001/sleep?level=1")
    assert light.wake == (Call("POST", "http://127.0.0.1:24001/wake_up"),)
    assert light.is_sleeping == Call("GET", "http://127.0.0.1:24001/is_sleeping")
    assert launch("--enable_sleep_mode").sleeps == made.sleeps


def test_after_level_two_the_weights_are_read_again() -> None:
    """Memory for the weights, the weights, then memory for the KV cache: without the second step it talks nonsense."""
    (deep,) = launch("--enable-sleep-mode", metadata={"sleep_level": 2}).sleeps
    assert (deep.level, deep.sleep.url) == (2, "http://127.0.0.1:24001/sleep?level=2")
    assert deep.wake == (
        Call("POST", "http://127.0.0.1:24001/wake_up?tags=weights"),
        Call("POST", "http://127.0.0.1:24001/collective_rpc", {"method": "reload_weights"}),
        Call("POST", "http://127.0.0.1:24001/wake_up?tags=kv_cache"),
    )


def test_no_other_engine_sleeps() -> None:
    """Without the flag the endpoints stay closed, whatever level the entry names."""
    made = launch(metadata={"sleep_level": 2})
    assert made.sleeps == ()
    assert "VLLM_SERVER_DEV_MODE" not in made.env


# -- what an entry lacks


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"backend_config": {"model_path": "/m"}}, None),
        ({"download_location": "/m"}, None),
        ({}, "backend_config.model_path is missing"),
        ({"download_location": "/m", "metadata": {"sleep_level": 2}}, None),
        (
            {"download_location": "/m", "metadata": {"sleep_level": 3}},
            "metadata.sleep_level is 3; 1 and 2 are possible",
        ),
        ({"backend_config": {"command": ["serve", "{port}"]}}, None),
        (
            {"backend_config": {"command": ["serve"]}},
            "backend_config.command holds no {port} and backend_config.port is not set",
        ),
    ],
)
def test_what_an_entry_lacks(fields: dict[str, Any], reason: str | None) -> None:
    """The reason is in words; an entry with a command of its own needs no model path."""
    assert VLLM.unavailable(entry(**fields)) == reason


def test_without_vllm_the_reason_says_how_to_get_it() -> None:
    """Only an entry with a command of its own can do without."""
    bare = VllmServer(PLACES, None, 180, 30)
    reason = bare.unavailable(entry(download_location="/m"))
    assert reason is not None
    assert "pip install vllm" in reason
    assert "vllm_command" in reason
    assert bare.unavailable(entry(backend_config={"command": ["serve", "{port}"]})) is None


def test_a_command_of_the_entrys_own() -> None:
    """It is taken as it stands; the time limits are vLLM's."""
    command = ["{python}", "-m", "own", "{model}", "--port", "{port}"]
    made = launch("--seed", "1", backend_config={"command": command}, placement=HALF)
    assert made.argv == (sys.executable, "-m", "own", "/m/tiny", "--port", "24001", "--seed", "1")
    assert (made.load_timeout_s, made.term_grace_s, made.sleeps) == (180, TERM_GRACE_S, ())


def test_the_entries_of_its_page_can_be_served() -> None:
    """Each JSON example of docs/vllm.md is an entry without an unknown field, and works as it stands."""
    page = (Path(__file__).parents[2] / "docs" / "vllm.md").read_text(encoding="utf-8")
    examples = [json.loads(block) for block in re.findall(r"^```json\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)]
    assert len(examples) >= 4
    registry = read_registry(examples)
    assert registry.warnings == ()
    assert [VLLM.unavailable(each) for each in registry.entries] == [None] * len(examples)


# -- which vLLM


def program(folder: Path) -> Path:
    """Make something that can be run."""
    path = folder / "bin" / "vllm"
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_program_is_a_path_or_stands_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home folder is filled in; None if there is no such program."""
    path = program(tmp_path)
    monkeypatch.setenv("PATH", str(path.parent))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_vllm("vllm") == find_vllm(str(path)) == find_vllm("~/bin/vllm") == (str(path),)
    assert find_vllm("vllm-of-old") is None


def test_the_build_is_the_version_of_its_environment(tmp_path: Path) -> None:
    """It is read from the folder that the program belongs to, also through a link, without asking the slow program."""
    path = program(tmp_path / "env")
    (tmp_path / "env/lib/python3.12/site-packages/vllm-0.32.0+cpu.dist-info").mkdir(parents=True)
    link = tmp_path / "vllm"
    link.symlink_to(path)
    for command in (path, link):
        assert VllmServer(PLACES, (str(command),), 1, 1).build() == "vllm 0.32.0+cpu"


def test_the_build_of_any_other_program_is_when_it_was_made(tmp_path: Path) -> None:
    """A script is known by its time, one that is gone by its name; without vLLM there is none."""
    path = program(tmp_path)
    assert VllmServer(PLACES, (str(path),), 1, 1).build() == f"vllm {path.stat().st_mtime_ns}"
    assert VllmServer(PLACES, (str(tmp_path / "gone"),), 1, 1).build() == "gone"
    assert VllmServer(PLACES, None, 1, 1).build() == "none"
