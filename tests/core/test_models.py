"""The registry: what is read, what is folded, what is merged, and what every mistake is called."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from builders import entry, row
from rolecall.core.models import (
    CAPABILITIES,
    DEFAULT_ROLE_PRIORITY,
    BackendConfig,
    ModelEntry,
    RequestRules,
    dashed,
    flag_value,
)
from rolecall.core.registry import RegistryError, read_registry, registry_schema, rows_of

OPTIONAL = [name for name, field in ModelEntry.model_fields.items() if not field.is_required()]

SYNONYMS = {
    "text": ["text", "Chat", "completion", "instruct", "LLM", "text-generation", "conversational"],
    "vision": ["vision", "image", "images", "VL", "vlm", "visual", "multimodal", "Image-Text-to-Text", "image input"],
    "embedding": ["embedding", "embed", "embeddings", "feature-extraction", "sentence-similarity", "text embedding"],
    "rerank": ["rerank", "Reranker", "re-ranking", "text-ranking", "cross-encoder"],
    "audio": ["audio", "speech", "ASR", "stt", "tts", "transcription", "automatic-speech-recognition"],
    "reasoning": ["reasoning", "thinking", "think", "CoT", "chain of thought", "reasoner"],
    "tools": ["tools", "tool", "tool_use", "tool-calling", "functions", "function calling", "function_call"],
}

FOREIGN: list[dict[str, Any]] = [
    {"name": "nulls", "backend": "vllm", **dict.fromkeys(OPTIONAL)},
    row("more nulls", backend_config=dict.fromkeys(BackendConfig.model_fields), request={"strip": None, "set": None}),
    row(
        "numbers", backend_config={"extra_args": ["--ctx-size", 8192, "--temp", 0.5], "env": {"THREADS": 4, "A": None}}
    ),
    row("a string", backend_config={"extra_args": "--ctx-size 8192 --alias 'my model'"}, roles="chat, caption"),
    row("tag one", backend="ollama", served_model_id="qwen2.5vl:7b", capabilities={"vision": True, "audio": False}),
    row("tag two", backend="ollama", served_model_id="qwen2.5vl:7b", capabilities="vl, chat,", model_aliases="qwen"),
    row("source", source={"repo": "org/model", "revision": None}, license={"id": "mit"}, role_priority={"chat": None}),
    row("unknown keys", vram_estimate=4, _comment="mine", backend_config={"extra_arg": []}, request={"strips": []}),
]


def problems(*rows: Any, discovered: Any = ()) -> str:
    with pytest.raises(RegistryError) as caught:
        read_registry(list(rows), discovered)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return str(caught.value)


def only(*rows: dict[str, Any], discovered: Any = ()) -> ModelEntry:
    (read,) = read_registry(list(rows), discovered).entries
    return read


# -- a registry of someone else


def test_foreign_registry_loads() -> None:
    """Nulls, strings for lists, numbers in arguments, one tag served twice and unknown keys: all of it loads."""
    registry = read_registry(FOREIGN)
    assert [read.name for read in registry.entries] == [wild["name"] for wild in FOREIGN]
    assert list(registry.merged) == FOREIGN


def test_null_is_absent() -> None:
    """A field that is null, wherever it stands, has its default."""
    entries = {read.name: read for read in read_registry(FOREIGN).entries}
    assert entries["nulls"].model_dump(exclude={"name"}) == entry("x", backend="vllm").model_dump(exclude={"name"})
    assert entries["more nulls"].backend_config == BackendConfig.model_validate({})
    assert entries["more nulls"].request == RequestRules()
    assert entries["source"].priorities == {}
    assert entries["source"].source == {"repo": "org/model", "revision": None}


@pytest.mark.parametrize("field", ["name", "backend"])
def test_null_is_not_enough_where_something_is_needed(field: str) -> None:
    """The two required fields may not be null."""
    assert f"field {field}: Input should be a valid string (got None)" in problems({**row(), field: None})


def test_arguments_become_words() -> None:
    """Numbers in arguments and environment become words; a string is split as a shell would; null is left out."""
    entries = {read.name: read.backend_config for read in read_registry(FOREIGN).entries}
    assert entries["numbers"].extra_args == ("--ctx-size", "8192", "--temp", "0.5")
    assert entries["numbers"].env == {"THREADS": "4"}
    assert entries["a string"].extra_args == ("--ctx-size", "8192", "--alias", "my model")


def test_unknown_keys_are_kept_and_warned_about() -> None:
    """Each unknown key is warned about once, with what may have been meant, and stays in the merged form."""
    unknown = FOREIGN[-1]
    registry = read_registry([unknown, row("other", vram_estimate=5)])
    assert registry.warnings == (
        "unknown field '_comment' in 1 entry, kept",
        "unknown field 'vram_estimate' in 2 entries, kept; did you mean 'vram_estimate_mb'?",
        "unknown field 'backend_config.extra_arg' in 1 entry, kept; did you mean 'extra_args'?",
        "unknown field 'request.strips' in 1 entry, kept; did you mean 'strip'?",
    )
    assert registry.merged[0] == unknown
    assert registry.entries[0].model_extra == {"vram_estimate": 4, "_comment": "mine"}


@pytest.mark.parametrize(
    ("synonym", "capability"), [(synonym, name) for name, synonyms in SYNONYMS.items() for synonym in synonyms]
)
def test_capability_synonyms_fold(synonym: str, capability: str) -> None:
    """A capability means the same whatever it is called, in a list, as a key, or between commas."""
    for form in ([synonym], {synonym: True, "telepathy": False}, f" {synonym} , ", [synonym, synonym.upper()]):
        assert entry(capabilities=form).capabilities == (capability,)


def test_forty_synonyms_in_one_entry() -> None:
    """All synonyms together are the seven capabilities, and nothing to warn about."""
    everything = [synonym for synonyms in SYNONYMS.values() for synonym in synonyms]
    assert len(everything) >= 40
    registry = read_registry([row(capabilities=everything)])
    assert registry.entries[0].all_capabilities == set(CAPABILITIES)
    assert registry.warnings == ()


def test_unknown_capability_is_kept_and_warned_about() -> None:
    """A capability nobody knows is no error."""
    registry = read_registry([row("m", capabilities=["telepathy"])])
    assert registry.entries[0].all_capabilities == {"telepathy", "text"}
    assert registry.warnings == (
        "'m': unknown capability 'telepathy', kept; known are text, vision, embedding, rerank, audio, reasoning, tools",
    )


NOT_SERVED = "which cannot be served without a backend_config.command"


@pytest.mark.parametrize(
    ("backend", "command", "warning"),
    [
        ("lama_cpp", [], f"'lama_cpp' in 2 entries, {NOT_SERVED}; did you mean 'llama_cpp'?"),
        ("mystery", [], f"'mystery' in 2 entries, {NOT_SERVED}; known are llama_cpp, vllm, ollama, openai"),
        ("vlm", ["x"], "'vlm' in 2 entries, driven by its command alone; did you mean 'vllm'?"),
        ("mystery", ["x"], None),
        ("llama.cpp", [], None),
    ],
)
def test_a_backend_that_nobody_knows_is_warned_about(backend: str, command: list[str], warning: str | None) -> None:
    """Without a command nothing could start it; with one it is a typo if it is almost one of ours."""
    rows = [{"name": name, "backend": backend, "backend_config": {"command": command}} for name in "ab"]
    assert read_registry(rows).warnings == (() if warning is None else (f"unknown backend {warning}",))


@pytest.mark.parametrize(
    ("config", "backend", "warning"),
    [
        ({"extra_args": ["--host", "0.0.0.0"]}, "llama_cpp", "--host in extra_args are left out"),
        ({"extra_args": ["--port=1", "--uds", "/x"]}, "vllm", "--port and --uds in extra_args are left out"),
        ({"extra_args": ["--host", "0.0.0.0"]}, "openai", None),
        ({"command": ["x", "--host", "0.0.0.0", "{port}"]}, "new", "its command listens on 0.0.0.0"),
        ({"command": ["x", "{port}"], "extra_args": ["--host=::"]}, "llama_cpp", "its command listens on ::"),
        ({"command": ["x", "--host", "{HOST}", "{port}"]}, "new", None),
        ({"command": ["x", "--host", "localhost", "{port}"]}, "llama_cpp", None),
        ({"command": ["/usr/bin/docker", "run", "x", "--host", "0.0.0.0", "{port}"]}, "vllm", None),
        (
            {"command": ["podman", "run", "--network=host", "x", "--host", "0.0.0.0", "{port}"]},
            "vllm",
            "its command listens on 0.0.0.0",
        ),
        ({}, "llama_cpp", None),
    ],
)
def test_addresses_that_others_could_reach_are_warned_about(
    config: dict[str, Any], backend: str, warning: str | None
) -> None:
    """An engine is for this machine alone: what would open it is left out, or told where it is a command's own."""
    warnings = read_registry([{"name": "m", "backend": backend, "backend_config": config}]).warnings
    assert [warning is not None and warning in each for each in warnings] == ([] if warning is None else [True])


@pytest.mark.parametrize(
    ("fields", "capabilities"),
    [
        ({}, {"text"}),
        ({"capabilities": ["embed"]}, {"embedding"}),
        ({"capabilities": ["audio"]}, {"audio"}),
        ({"capabilities": ["reranker", "embed"]}, {"embedding", "rerank"}),
        ({"capabilities": ["embed", "tools"]}, {"embedding", "tools", "text"}),
        ({"capabilities": ["vision"]}, {"vision", "text"}),
        ({"backend_config": {"mmproj_path": "mmproj.gguf"}}, {"text", "vision"}),
        ({"backend_config": {"mmproj_id": "mmproj.gguf"}, "capabilities": ["tools"]}, {"text", "vision", "tools"}),
    ],
)
def test_all_capabilities(fields: dict[str, Any], capabilities: set[str]) -> None:
    """A model writes text unless all that is listed does without, and sees images if it has a projector."""
    assert entry(**fields).all_capabilities == capabilities


@pytest.mark.parametrize(
    ("spelling", "backend"), [("llama.cpp", "llama_cpp"), (" GGUF ", "llama_cpp"), ("vLLM", "vllm"), ("new", "new")]
)
def test_backend_spellings_fold(spelling: str, backend: str) -> None:
    """Backends go by their own name, whatever an older file calls them; a new one is nobody's mistake."""
    assert entry(backend=spelling).backend == backend


# -- the fields


def test_entry_says_nothing_that_was_not_said() -> None:
    """An entry of a name and a backend asks for nothing and forbids nothing."""
    plain = entry()
    assert (plain.pinned, plain.preload, plain.deprecated) == (False, False, False)
    assert (plain.priorities, plain.max_parallel, plain.idle_unload_s) == ({}, None, None)


def test_entries_do_not_change() -> None:
    """A request in flight keeps the entry it was started with: nobody can change it under it."""
    with pytest.raises(ValidationError, match="frozen"):
        entry().pinned = True


@pytest.mark.parametrize(
    "fields",
    [
        {"role_priority": {"a": 0, "b": 100}},
        {"backend_config": {"port": 1}},
        {"backend_config": {"port": 65535}},
        {"max_parallel": 1},
        {"max_parallel": 4096},
        {"context_length": 1},
        {"idle_unload_s": 0},
        {"load_timeout_s": 0.5},
        {"name": "x" * 256},
    ],
)
def test_bounds_belong_to_what_is_allowed(fields: dict[str, Any]) -> None:
    """The smallest and the largest value of a field are allowed, by the reader and by the schema."""
    assert len(read_registry([row() | fields]).entries) == 1
    assert schema_problems([row() | fields]) == []


def test_ids_may_hold_what_model_names_hold() -> None:
    """Slashes, colons, brackets and spaces are fine in names and aliases."""
    read = only(row("org/m:Q4_K_M (FP8)", model_aliases=["a b"]))
    assert read.ids == ("org/m:Q4_K_M (FP8)", "a b")


def test_roles_and_priorities() -> None:
    """A role with a priority counts as listed; one without stands in the middle; case and spaces do not matter."""
    read = entry(roles=["Chat", " caption", "chat", ""], role_priority={" Caption ": 85, "keywords": 79.5, "x": None})
    assert read.roles == ("chat", "caption")
    assert read.priorities == {"chat": DEFAULT_ROLE_PRIORITY, "caption": 85, "keywords": 79.5}
    assert json.dumps(read.role_priority) == '{"caption": 85, "keywords": 79.5}'


@pytest.mark.parametrize(("given_mb", "mb"), [(3500, 3500), (3500.2, 3501), ("3500", 3500), (0, 0), (None, None)])
def test_estimate_is_rounded_up(given_mb: object, mb: int | None) -> None:
    """Part of a megabyte is a megabyte."""
    assert entry(vram_estimate_mb=given_mb).vram_estimate_mb == mb


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, None),
        ({"context_length": 4096, "generation_defaults": {"context_window": 1}}, 4096),
        ({"generation_defaults": {"context_window": 8192}, "backend_config": {"extra_args": ["-c", "1"]}}, 8192),
        ({"generation_defaults": {"num_ctx": 2048, "context_window": None}}, 2048),
        ({"generation_defaults": {"context_window": "a lot"}}, None),
        ({"generation_defaults": {"context_window": 0, "num_ctx": 1}}, 1),
        ({"backend_config": {"extra_args": ["--max-model-len", 16384]}}, 16384),
        ({"backend_config": {"extra_args": ["--ctx-size=4096"]}}, 4096),
        ({"backend_config": {"extra_args": ["-c", "2048", "--ctx-size", "1024"]}}, 1024),
        ({"backend_config": {"extra_args": ["--max-model-len", "32k"]}}, None),
        ({"backend_config": {"extra_args": ["-c", "0"]}}, None),
        ({"backend_config": {"extra_args": ["-c", "²"]}}, None),
        ({"backend_config": {"extra_args": ["-c"]}}, None),
    ],
)
def test_context_tokens(fields: dict[str, Any], tokens: int | None) -> None:
    """The context is the listed one, else that of the generation defaults, else that of the arguments."""
    assert entry(**fields).context_tokens == tokens


@pytest.mark.parametrize(
    ("argv", "value"),
    [
        ("--port 1 --host x", "1"),
        ("--port=1", "1"),
        ("--port= --host", ""),
        ("--port 1 -p 2", "2"),
        ("--host", None),
        ("--port", None),
        ("", None),
    ],
)
def test_flag_value(argv: str, value: str | None) -> None:
    """The last of a flag's spellings counts, with a blank or an equals sign; none if it is absent or bare."""
    assert flag_value(argv.split(), "--port", "-p") == value


@pytest.mark.parametrize(
    ("model", "projector"),
    [
        (None, "mmproj.gguf"),
        ("/models/a/m.gguf", "mmproj.gguf"),
        ("/models/a/m.gguf", "..mmproj.gguf"),
        ("/models/a/m.gguf", "sub/mmproj.gguf"),
        ("/models/a/m.gguf", "/models/a/mmproj.gguf"),
        ("/models/a/m.gguf", "/models/a//sub/./mmproj.gguf"),
        ("/m.gguf", "/mmproj.gguf"),
        ("~/models/m.gguf", "~/models/mmproj.gguf"),
        ("${STATE_DIR}/demo/m.gguf", "${STATE_DIR}/demo/mmproj.gguf"),
    ],
)
@pytest.mark.parametrize("field", ["mmproj_path", "mmproj_id"])
def test_projector_beside_the_model(field: str, model: str | None, projector: str) -> None:
    """A projector inside the model's folder is taken as it is written."""
    read = entry(backend_config={"model_path": model, field: projector})
    assert getattr(read.backend_config, field) == projector


@pytest.mark.parametrize(
    ("model", "projector"),
    [
        ("/models/a/m.gguf", "../mmproj.gguf"),
        ("/models/a/m.gguf", "sub/../../mmproj.gguf"),
        ("/models/a/m.gguf", "/etc/passwd"),
        ("/models/a/m.gguf", "/models/ab/mmproj.gguf"),
        ("/models/a/m.gguf", "/models/a/../b/mmproj.gguf"),
        ("/models/a/m.gguf", "/models/a"),
        ("/models/a/m.gguf", "~/mmproj.gguf"),
        ("x/m.gguf", "${STATE_DIR}/../x/mmproj.gguf"),
        ("m.gguf", "/mmproj.gguf"),
        ("~/models/m.gguf", "~root/models/mmproj.gguf"),
        (None, "/mmproj.gguf"),
    ],
)
@pytest.mark.parametrize("field", ["mmproj_path", "mmproj_id"])
def test_projector_outside_is_refused(field: str, model: str | None, projector: str) -> None:
    """No projector leaves the model's folder, by dots, by an absolute path, or by a folder of a similar name."""
    said = problems(row("m", backend_config={"model_path": model, field: projector}))
    assert said == (
        f"entry 1 'm': field backend_config.{field}: leaves the model's folder; keep the projector beside the model "
        f"(got {projector!r})"
    )


# -- what is wrong is named


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "tab\there"}, "name"),
        ({"name": "x" * 257}, "name"),
        ({"name": 5}, "name"),
        ({"name": ["m"]}, "name"),
        ({"name": "lone \ud800"}, "name"),
        ({"display_name": 5}, "display_name"),
        ({"display_name": "\udcff"}, "display_name"),
        ({"backend_config": {"extra_args": ["-x", "\ud800"]}}, "backend_config.extra_args.1"),
        ({"metadata": {"\ud800": 1}}, "metadata.�"),
        ({"of its own": {"x": "\ud800"}}, "of its own.x"),
        ({"model_aliases": [""]}, "model_aliases.0"),
        ({"model_aliases": 5}, "model_aliases"),
        ({"backend": ["vllm"]}, "backend"),
        ({"backend_config": []}, "backend_config"),
        ({"backend_config": {"port": 0}}, "backend_config.port"),
        ({"backend_config": {"port": 65536}}, "backend_config.port"),
        ({"backend_config": {"base_url": "localhost:8000"}}, "backend_config.base_url"),
        ({"backend_config": {"base_url": "file:///etc/passwd"}}, "backend_config.base_url"),
        ({"backend_config": {"extra_args": "--alias 'open"}}, "backend_config.extra_args"),
        ({"backend_config": {"extra_args": ["-x", True]}}, "backend_config.extra_args.1"),
        ({"backend_config": {"extra_args": {"-x": 1}}}, "backend_config.extra_args"),
        ({"backend_config": {"command": [None]}}, "backend_config.command.0"),
        ({"backend_config": {"env": {"A": True}}}, "backend_config.env.A"),
        ({"backend_config": {"env": ["A=1"]}}, "backend_config.env"),
        ({"backend_config": {"mode": "gui"}}, "backend_config.mode"),
        ({"name": ".."}, "name"),
        ({"name": "."}, "name"),
        ({"model_aliases": ["fine", ".."]}, "model_aliases.1"),
        ({"served_model_id": 5}, "served_model_id"),
        ({"capabilities": 5}, "capabilities"),
        ({"capabilities": [{"vision": True}]}, "capabilities.0"),
        ({"roles": [["chat"]]}, "roles.0"),
        ({"roles": {"chat": 85}}, "roles"),
        ({"role_priority": {"chat": 101}}, "role_priority.chat"),
        ({"role_priority": {"chat": -1}}, "role_priority.chat"),
        ({"role_priority": {"chat": "high"}}, "role_priority.chat"),
        ({"role_priority": {"chat": float("nan")}}, "role_priority.chat"),
        ({"role_priority": ["chat"]}, "role_priority"),
        ({"vram_estimate_mb": -1}, "vram_estimate_mb"),
        ({"vram_estimate_mb": "10 GB"}, "vram_estimate_mb"),
        ({"vram_estimate_mb": float("inf")}, "vram_estimate_mb"),
        ({"context_length": 0}, "context_length"),
        ({"generation_defaults": ["temperature"]}, "generation_defaults"),
        ({"request": {"strip": "seed"}}, "request.strip"),
        ({"request": {"set": []}}, "request.set"),
        ({"idle_unload_s": -1}, "idle_unload_s"),
        ({"pinned": "maybe"}, "pinned"),
        ({"gpus": 0}, "gpus"),
        ({"max_parallel": 0}, "max_parallel"),
        ({"load_timeout_s": 0}, "load_timeout_s"),
        ({"metadata": "none"}, "metadata"),
    ],
)
def test_wrong_field_is_named(fields: dict[str, Any], field: str) -> None:
    """A wrong value is refused with the entry, the field and the value, in one line."""
    wrong = row("m") | fields
    said = problems(row("fine"), wrong)
    label = f" {wrong['name']!r}"[:60] if isinstance(wrong["name"], str) else ": "
    assert said.startswith(f"entry 2{label}")
    assert f": field {field}: " in said
    assert "(got " in said
    assert len(said.splitlines()) == 1
    assert len(said) < 400


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(), "text"], "entry 2: must be an object, not a string"),
        ([[]], "entry 1: must be an object, not list"),
        ([7], "entry 1: must be an object, not a number"),
        ([{"name": "m"}], "entry 1 'm': field backend: is missing"),
        ([{"backend": "vllm"}], "entry 1: field name: is missing"),
        (
            [row("m"), row("m")],
            "entry 2 'm': field name: 'm' already belongs to entry 1 'm'; names and aliases must be unique",
        ),
        (
            [row("a", model_aliases=["z"]), row("z")],
            "entry 2 'z': field name: 'z' already belongs to entry 1 'a'; names and aliases must be unique",
        ),
        (
            [row("a", model_aliases=["z"]), row("b", model_aliases=["z"])],
            "entry 2 'b': field model_aliases: 'z' already belongs to entry 1 'a'; names and aliases must be unique",
        ),
    ],
)
def test_wrong_entry_is_named(rows: list[Any], said: str) -> None:
    """What is no entry, lacks a field or takes another's name is refused; a name taken twice names both."""
    assert problems(*rows) == said


def test_all_problems_are_named_at_once() -> None:
    """Nobody has to mend a registry one mistake at a time."""
    said = problems(row("a", pinned="maybe", roles=5), {"name": "b"}, row("c"), row("c"))
    assert [line.split(":")[0] for line in said.splitlines()] == [
        "entry 1 'a'",
        "entry 1 'a'",
        "entry 2 'b'",
        "entry 4 'c'",
    ]


@pytest.mark.parametrize("data", [None, {}, {"models": {}}, "text", 5, True, 0.5])
def test_registry_that_is_no_list(data: object) -> None:
    """A file that holds something else than a list says what it holds."""
    with pytest.raises(
        RegistryError, match=r"^the curated registry must be a JSON list of entries, not (an? )?[a-z]+$"
    ):
        read_registry(data)


def test_list_may_stand_under_models() -> None:
    """``{"models": [...]}`` is read like the list itself."""
    assert [read.name for read in read_registry({"models": [row("m")]}).entries] == ["m"]


def test_secrets_of_an_entry_stay_out_of_its_errors() -> None:
    """A mistake beside a secret in ``env`` does not print the secret."""
    said = problems(row(backend_config={"env": {"KEY": "s3cret"}, "mmproj_path": "../x", "base_url": "x"}))
    assert "s3cret" not in said


# -- curated over discovered


def test_curated_wins_field_by_field() -> None:
    """A curated field wins, also inside an object; what it leaves out or gives as null is taken as discovered."""
    found = row(
        "m",
        vram_estimate_mb=5000,
        family="qwen",
        roles=["chat", "caption"],
        backend_config={"model_path": "/m.gguf", "port": 1},
        metadata={"a": {"b": 1, "c": 2}},
        source="https://example.org/m",
        license={"id": "mit"},
    )
    by_hand = {
        "name": "m",
        "vram_estimate_mb": None,
        "family": "mine",
        "roles": ["keywords"],
        "backend_config": {"port": 2, "host": None},
        "metadata": {"a": {"b": 3}, "d": 4},
        "source": {"repo": "org/m"},
        "license": "apache-2.0",
    }
    registry = read_registry([by_hand], [found])
    assert registry.merged == (
        {
            "name": "m",
            "backend": "llama_cpp",
            "vram_estimate_mb": 5000,
            "family": "mine",
            "roles": ["keywords"],
            "backend_config": {"model_path": "/m.gguf", "port": 2, "host": None},
            "metadata": {"a": {"b": 3, "c": 2}, "d": 4},
            "source": {"repo": "org/m"},
            "license": "apache-2.0",
        },
    )
    assert only(by_hand, discovered=[found]).backend == "llama_cpp"


def test_curated_first_then_discovered() -> None:
    """Entries keep their order: those of the curated file, then those that were only discovered."""
    registry = read_registry([row("c"), row("a")], [row("b"), row("a")])
    assert [read.name for read in registry.entries] == ["c", "a", "b"]


def test_wrong_discovered_entry_is_left_out() -> None:
    """What nobody wrote by hand stops nothing: it is left out with a warning, even under a curated entry."""
    discovered = [row("ok"), "text", {}, row("a", pinned="maybe"), row("ok"), row("x", model_aliases=["a"]), row("d")]
    registry = read_registry([row("a", family="mine")], discovered)
    assert [read.name for read in registry.entries] == ["a", "ok", "d"]
    assert [warning.split(": ", 1) for warning in registry.warnings] == [
        ["discovered entry 2", "must be an object, not a string"],
        ["discovered entry 3", "field name: is missing"],
        ["discovered entry 3", "field backend: is missing"],
        [
            "discovered entry 4 'a'",
            "field pinned: Input should be a valid boolean, unable to interpret input (got 'maybe')",
        ],
        [
            "discovered entry 5 'ok'",
            "field name: 'ok' already belongs to discovered entry 1 'ok'; names and aliases must be unique",
        ],
        [
            "discovered entry 6 'x'",
            "field model_aliases: 'a' already belongs to entry 1 'a'; names and aliases must be unique",
        ],
    ]


def test_curated_mistake_over_a_discovered_entry_is_the_curated_ones() -> None:
    """A mistake in a field that was laid over a discovered entry is an error of the curated one."""
    assert problems({"name": "m", "pinned": "maybe"}, discovered=[row("m")]).startswith("entry 1 'm': field pinned")


def test_broken_discovered_file_is_named() -> None:
    """A discovered file that is no list is an error that says which file."""
    with pytest.raises(RegistryError, match="the discovered registry must be a JSON list of entries, not null"):
        read_registry([], None)


# -- properties and the schema

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
wild_rows = st.dictionaries(
    st.sampled_from([*ModelEntry.model_fields, "other"]),
    json_values
    | st.dictionaries(st.sampled_from([*BackendConfig.model_fields, *RequestRules.model_fields]), json_values),
    max_size=4,
).map(lambda fields: {"name": "m", "backend": "vllm"} | fields)


@given(wild_rows)
def test_any_json_is_read_or_refused(wild: dict[str, Any]) -> None:
    """Whatever stands in a registry is read, or refused with the entry and the field: nothing else is ever raised."""
    try:
        said = read_registry([wild]).warnings
    except RegistryError as error:
        said = error.problems
    assert all(re.match(r"entry 1.*: field \w+|unknown field|'m': unknown capability", line) for line in said)


def schema_problems(rows: Any) -> list[str]:
    return [error.message for error in Draft202012Validator(registry_schema()).iter_errors(rows)]


def test_schema_is_a_schema() -> None:
    """What is written for editors is a valid JSON Schema of the draft that it names."""
    schema = registry_schema()
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert json.loads(json.dumps(schema)) == schema


def test_schema_takes_what_the_reader_takes() -> None:
    """A registry with nulls, synonyms, strings for lists and unknown keys is fine in an editor, too."""
    assert schema_problems(FOREIGN) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "m"},
        row(role_priority={"chat": 101}),
        row(vram_estimate_mb=-1),
        row(backend_config={"port": 0}),
        row(backend_config={"mode": "gui"}),
        row(max_parallel=0),
        row(roles=[5]),
        {"name": None, "backend": "vllm"},
    ],
)
def test_schema_refuses_what_the_reader_refuses(wrong: dict[str, Any]) -> None:
    """What the reader refuses an editor marks."""
    assert schema_problems([wrong])
    assert problems(wrong)


def test_one_spelling_of_options() -> None:
    """Options may come with underscores, as vLLM takes them; values and other words stay as they are."""
    assert [dashed(word) for word in ("--max_model_len=a_b", "--x-y", "a_b", "-a_b")] == [
        "--max-model-len=a_b",
        "--x-y",
        "a_b",
        "-a_b",
    ]


@pytest.mark.parametrize(
    ("data", "rows"),
    [([1], [1]), ({"models": [2]}, [2]), ({"models": 3}, []), ({"m": []}, []), (None, []), ("text", [])],
)
def test_the_rows_of_a_file(data: Any, rows: list[Any]) -> None:
    """A list, or that of an object; there are none in anything else."""
    assert list(rows_of(data)) == rows
