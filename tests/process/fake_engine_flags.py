"""The flags of the fake engine: what holds for its process, and the knobs of one answer."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

SHORT_FLAGS = {"-m": "--model", "-mm": "--mmproj", "-a": "--alias", "-c": "--ctx-size", "-np": "--parallel"}
SHORT_FLAGS |= {"--embedding": "--embeddings", "-h": "--help"}


def flag(default: object, text: str) -> Any:
    """A field that is a command line flag: its default, and its line in --help."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """What holds for the process; a field is a flag."""

    model: str = flag("fake.gguf", "model path; need not exist")
    mmproj: str | None = flag(None, "vision projector; without it an image is a 500")
    alias: str | None = flag(None, "model name in answers; default the model path")
    host: str = flag("127.0.0.1", "address to bind")
    port: int = flag(8080, "port to bind; 0 takes a free one and names it on stderr")
    ctx_size: int = flag(0, "context in tokens, divided by --parallel; 0 is no limit")
    parallel: int = flag(4, "slots; requests beyond them wait")
    embeddings: bool = flag(default=False, text="serve /v1/embeddings; else 501")
    metrics: bool = flag(default=False, text="serve /metrics; else 501")
    metrics_file: str | None = flag(None, "what /metrics says, instead of little; a pipe makes it wait for ever")
    version: bool = flag(default=False, text="print a version as llama-server does, and exit")
    bind_delay_s: float = flag(0.0, "connections are refused for so long")
    shares_no_port: bool = flag(default=False, text="bind without SO_REUSEADDR")
    bind_failure: str | None = flag(None, "what it says when it cannot bind, instead of llama-server's words")
    never_bind: bool = flag(default=False, text="connections are refused for ever")
    load_s: float = flag(0.0, "503 `Loading model` for so long after the bind")
    load_s_per_gb: float = flag(0.0, "and so long for each 1024 MB of GPU memory")
    progress_log: bool = flag(default=False, text="a line of log every 0.1 s while it loads")
    bind_when_loaded: bool = flag(default=False, text="connections are refused while it loads, as by vLLM")
    never_ready: bool = flag(default=False, text="503 `Loading model` for ever, silent after the time it loads")
    fail_start: str | None = flag(None, "after --load-s print this to stderr and exit with --exit-code")
    fail_start_times: int | None = flag(None, "only the first N starts fail, counted in --state")
    state: str | None = flag(None, "file that counts the starts (its size in bytes)")
    starts_log: str | None = flag(None, "file that gets a line `pid unix_time` at each start")
    crash_after_requests: int | None = flag(None, "SIGKILL itself when the N-th POST was answered")
    health_dies_after_s: float | None = flag(None, "/health is 503 so long after readiness")
    hang_health_after_s: float | None = flag(None, "/health is never answered so long after readiness")
    ignore_term: bool = flag(default=False, text="only SIGKILL ends it")
    term_delay_s: float = flag(0.0, "end so long after SIGTERM, answering on open connections meanwhile")
    slow_stop_with_stream: bool = flag(
        default=False, text="on SIGTERM stop writing, and end only when no client with an unfinished request is left"
    )
    spawn_child: bool = flag(default=False, text="start a grandchild in the process group, its pid in /stats")
    child_session: bool = flag(default=False, text="the grandchild has a session of its own, and so a group of its own")
    leave_child: bool = flag(default=False, text="a clean stop leaves the grandchild")
    child_holds_gpu: bool = flag(default=False, text="the GPU memory is the grandchild's, as that of vLLM's EngineCore")
    memory_mb: int = flag(0, "allocate and touch so many MB")
    gpu_mb: int = flag(0, "GPU memory taken while it loads, split over the GPUs of CUDA_VISIBLE_DEVICES (unset: GPU 0)")
    gpu_mb_per_gpu: int = flag(0, "the same, but so much on each GPU")
    gpu_mb_per_1k_ctx: int = flag(0, "GPU memory beside --gpu-mb for each 1024 tokens of --ctx-size")
    gpu_grow_mb: int = flag(0, "so much more is taken by its first completion; without room it aborts")
    gpu_release_late_s: float = flag(0.0, "GPU memory is free so long after the end of the process that held it")
    gpu_memory_utilization: float = flag(0.0, "as vLLM take this share of each GPU; 1 if it is not free at the start")
    kv_cache_memory_bytes: str | None = flag(None, "as vLLM take this (64M, 2G) beside --gpu-mb on each GPU, no share")
    sleep_mode: bool = flag(default=False, text="vLLM's development endpoints, and sleeping frees GPU memory")
    enable_sleep_mode: bool = flag(default=False, text="the same as vLLM has it: needs VLLM_SERVER_DEV_MODE=1 too")
    sleep_residual_mb: int = flag(500, "GPU memory that stays taken while asleep")
    sleep_s: float = flag(0.0, "how long falling asleep takes")
    wake_s: float = flag(0.0, "how long each waking takes")
    reload_s: float = flag(0.0, "how long reload_weights takes, which is needed after level 2")
    nonsense_after_wake: bool = flag(
        default=False, text="the answers are rubbish once it has slept, whatever the level"
    )
    keep_alive_s: float = flag(5.0, "an idle connection is closed after so long")
    keep_alive_requests: int = flag(100, "a connection is closed after so many requests")
    max_life_s: int = flag(900, "SIGALRM ends it after so long, so that no test leaves it behind for good")


@dataclass(frozen=True)
class Knobs:
    """What holds for one answer; a field is a flag, and a key of the request's `fake` object.

    A fault "after N tokens" strikes when N tokens are out (0: head sent, no token yet), streamed or not.
    """

    tokens: int = flag(8, "words in an answer; a smaller max_tokens cuts them (finish_reason length)")
    unicode: bool = flag(default=False, text="words hold characters of 2, 3 and 4 bytes")
    reasoning: bool = flag(default=False, text="three tokens of reasoning_content come first (chat only)")
    nonsense: bool = flag(default=False, text="every token is `!`")
    finish_reason: str | None = flag(None, "instead of stop or length, for instance abort")
    max_context: int | None = flag(None, "prompt tokens beyond which it is a 400; default from --ctx-size")
    head_delay_s: float = flag(0.0, "nothing is sent for so long, not even a status")
    first_token_delay_s: float = flag(0.0, "wait between head and first token")
    token_delay_s: float = flag(0.0, "wait before each further token")
    comment_every_s: float = flag(0.0, "SSE comments while a stream waits")
    split_bytes: int = flag(0, "the SSE is written in pieces of so many bytes, each a chunk of its own")
    chatty: int = flag(0, "lines of log on stderr for each POST")
    error_status: int | None = flag(None, "answer this status with an error body")
    error_times: int | None = flag(None, "only the first N errors of --error-status are given")
    garbage: bool = flag(default=False, text="answer bytes that are not HTTP, and close")
    bad_json: bool = flag(default=False, text="answer 200 with half a JSON body")
    crash_after_tokens: int | None = flag(None, "SIGKILL itself after N tokens")
    exit_after_tokens: int | None = flag(None, "exit with --exit-code after N tokens")
    exit_code: int | None = flag(None, "default 1 for --fail-start, 0 for --exit-after-tokens")
    drop_after_tokens: int | None = flag(None, "close the socket (FIN) after N tokens")
    reset_after_tokens: int | None = flag(None, "reset the connection (RST) after N tokens")
    error_after_tokens: int | None = flag(None, "error event and [DONE] after N tokens, as vLLM; a 500 if not streamed")


def parse(argv: Sequence[str]) -> tuple[Settings, Knobs]:
    """Flags for both, everything unknown ignored; a wrong value exits with 2."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, add_help=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--help", action="help", help="show this and exit")
    for title, kind in (("process", Settings), ("one answer (also per request in `fake`)", Knobs)):
        group = parser.add_argument_group(title)
        for field in dataclasses.fields(kind):
            name, help_text = "--" + field.name.replace("_", "-"), f"{field.metadata['help']} [{field.default}]"
            if field.type == "bool":
                group.add_argument(name, action="store_true", help=help_text)
            else:
                convert = {"int": int, "float": float, "str": str}[str(field.type).partition(" ")[0]]
                group.add_argument(name, type=convert, default=field.default, help=help_text)
    values = vars(parser.parse_known_args([SHORT_FLAGS.get(word, word) for word in argv])[0])
    if values["fail_start_times"] is not None and not (values["fail_start"] and values["state"]):
        parser.error("--fail-start-times needs --fail-start and --state")
    knobs = {field.name: values.pop(field.name) for field in dataclasses.fields(Knobs)}
    return Settings(**values), Knobs(**knobs)
