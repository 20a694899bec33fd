"""The entry of one model: its fields, what older files call them, and what makes it wrong."""

from __future__ import annotations

import math
import posixpath
import shlex
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from rolecall.core.json_text import no_text

ReasoningField: TypeAlias = Literal["as_is", "reasoning_content", "reasoning", "think", "drop"]
"""How thoughts reach the client: as the engine gives them, in one of two fields, in the content, or not at all."""

DEFAULT_ROLE_PRIORITY = 50
"""A role that is listed without a priority stands in the middle: above the demo models, below a considered choice."""

CAPABILITIES = ("text", "vision", "embedding", "rerank", "audio", "reasoning", "tools")

_WITHOUT_TEXT = frozenset({"embedding", "rerank", "audio"})
"""What a model may do that writes no text; whatever else it can do, it writes."""
_STARTED_FOR = frozenset({"text", "embedding", "rerank"})
_CAPABILITY_FLAGS = {
    **dict.fromkeys(("--embedding", "--embeddings"), "embedding"),
    **dict.fromkeys(("--rerank", "--reranking"), "rerank"),
}
"""Arguments of an engine by which it does what the entry need not list then."""

_SYNONYMS: dict[str, str] = {
    synonym: capability
    for capability, synonyms in {
        "text": "chat completion completions instruct llm language generate generation "
        "text_generation conversational assistant",
        "vision": "image images img vl vlm visual multimodal mm image_input image_text_to_text "
        "visual_question_answering image_to_text image_captioning captioning vision_language ocr picture pictures",
        "embedding": "embed embeddings embedder text_embedding feature_extraction sentence_similarity vector vectors",
        "rerank": "reranker reranking re_rank re_ranker re_ranking ranking text_ranking cross_encoder",
        "audio": "speech asr stt tts voice sound transcription audio_input automatic_speech_recognition",
        "reasoning": "thinking think reason reasoner cot chain_of_thought",
        "tools": "tool tool_use tool_call tool_calls tool_calling function functions function_call function_calling",
    }.items()
    for synonym in synonyms.split()
}
BACKENDS = ("llama_cpp", "vllm", "ollama", "openai")
"""The engines that rolecall drives; an entry of another one brings its own command."""

_BACKENDS: dict[str, str] = {
    "llamacpp": "llama_cpp",
    "llama.cpp": "llama_cpp",
    "llama-cpp": "llama_cpp",
    "llama_server": "llama_cpp",
    "llama-server": "llama_cpp",
    "gguf": "llama_cpp",
    "openai_compatible": "openai",
    "openai-compatible": "openai",
}
CONTEXT_FLAGS = ("--max-model-len", "--ctx-size", "-c")
CONTEXT_DEFAULTS = ("context_window", "context_length", "num_ctx", "ctx_size", "n_ctx")
"""The context of an engine among its arguments, and among the generation defaults."""
SIZE_DEFAULTS = frozenset(
    {*CONTEXT_DEFAULTS, "batch_size", "n_batch", "num_batch", "ubatch_size", "n_ubatch", "num_ubatch"}
)
"""Generation defaults that size the engine at its start, and are no fields of a request."""


def _split(value: Any) -> Any:
    return value.split(",") if isinstance(value, str) else value


def _listed(value: Any) -> Any:
    """Take the names of ``{"vision": true, "audio": false}``, or of ``"vl, chat"``."""
    return [name for name, has in value.items() if has] if isinstance(value, Mapping) else _split(value)


def _plain(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip().lower() for word in words if word.strip()))


def _fold_capabilities(words: tuple[str, ...]) -> tuple[str, ...]:
    """Fold older spellings: ``Image-Text-to-Text``, ``vl``, ``tool calling``."""
    spelled = (word.replace("-", "_").replace(" ", "_") for word in _plain(words))
    return tuple(dict.fromkeys(_SYNONYMS.get(word, word) for word in spelled))


def _lower_keys(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name).strip().lower(): number for name, number in value.items() if number is not None}
    return value


def _as_argv(value: Any) -> Any:
    """A string is split as a shell would; numbers become words."""
    if isinstance(value, str):
        return tuple(shlex.split(value))
    return tuple(map(_as_word, value)) if isinstance(value, Sequence) else value


def _as_env(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _as_word(word) for name, word in value.items() if word is not None}
    return value


def _as_word(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _whole(value: float) -> float:
    """Keep 85 an integer, so that it is shown as it was written."""
    return int(value) if value.is_integer() else value


def _round_up(value: Any) -> Any:
    return math.ceil(value) if isinstance(value, float) and math.isfinite(value) else value


def _no_folder(name: str) -> str:
    """Refuse names that every client takes out of an address: nothing could be asked of ``/v1/models/..``."""
    if name in {".", ".."}:
        raise ValueError(f"{name!r} cannot stand in an address; give it another name")
    return name


Argv = Annotated[tuple[str, ...], BeforeValidator(_as_argv, json_schema_input_type=list[str | float] | str)]
Names = Annotated[
    tuple[str, ...], BeforeValidator(_split, json_schema_input_type=list[str] | str), AfterValidator(_plain)
]
Capabilities = Annotated[
    tuple[str, ...],
    BeforeValidator(_listed, json_schema_input_type=list[str] | dict[str, bool | None] | str),
    AfterValidator(_fold_capabilities),
]

NotNegative = Annotated[float, Field(ge=0)]
Megabytes = Annotated[int, Field(ge=0), BeforeValidator(_round_up, json_schema_input_type=NotNegative)]
Priority = Annotated[float, Field(ge=0, le=100), AfterValidator(_whole)]
Name = Annotated[
    str,
    Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$"),
    AfterValidator(_no_folder),
]


class _Record(BaseModel):
    """Frozen; unknown keys are kept; null means "not given"."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    @field_validator("*", mode="wrap")
    @classmethod
    def _null_is_absent(cls, value: Any, handler: Any, info: Any) -> Any:
        declared = cls.model_fields.get(info.field_name)
        if value is None and declared is not None and not declared.is_required():
            return declared.get_default(call_default_factory=True)
        return handler(value)


class BackendConfig(_Record):
    """How the engine is started or reached."""

    port: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        None, description="Fixed port; chosen freely when absent."
    )
    host: str | None = Field(
        None, description="Host of an engine that is already running; engines we start bind loopback."
    )
    base_url: str | None = Field(
        None, description="Base URL of an engine that is already running, with or without /v1."
    )
    api_key_env: str | None = Field(None, description="Environment variable that holds the upstream's API key.")
    model_path: str | None = Field(
        None,
        description="File or folder. `~`, ${STATE_DIR} and ${CONFIG_DIR} are expanded; relative to the config folder.",
    )
    mmproj_path: str | None = Field(None, description="Vision projector, inside the model's folder.")
    mmproj_id: str | None = Field(None, description="The same, by file name.")
    extra_args: Argv = Field((), description="Further arguments of the engine, as a list.")
    env: Annotated[dict[str, str], BeforeValidator(_as_env, json_schema_input_type=dict[str, str | float | None])] = (
        Field(default_factory=dict)
    )
    command: Argv = Field(
        (), description="Replaces the command line. {port} {host} {model} {mmproj} {alias} and {python} are filled in."
    )
    health_path: Annotated[str, Field(pattern=r"^/[^\s#]*$")] | None = Field(
        None, description="Path that answers 200 once a `command` can serve; `/health` if not given."
    )
    mode: Literal["server", "cli"] = "server"

    @field_validator("base_url")
    @classmethod
    def _http_only(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        return value

    @field_validator("mmproj_path", "mmproj_id")
    @classmethod
    def _stays_inside(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not _inside(value, info.data.get("model_path")):
            raise ValueError("leaves the model's folder; keep the projector beside the model")
        return value


class RequestRules(_Record):
    """What is removed from and forced into each request to this model."""

    strip: tuple[str, ...] = ()
    set: dict[str, Any] = Field(default_factory=dict)


class HistoryRules(_Record):
    """What this model's conversations may lose, where it differs from the settings of the same names."""

    vision_truncate_history: bool | None = None
    vision_keep_system: bool | None = None
    vision_keep_last_n_turns: Annotated[int, Field(ge=0)] | None = None
    reasoning_truncate_history: bool | None = None
    reasoning_keep_system: bool | None = None
    reasoning_keep_last_n_turns: Annotated[int, Field(ge=0)] | None = None
    history_fit: Literal["off", "vision", "all"] | None = None

    @cached_property
    def given(self) -> dict[str, Any]:
        """The fields that say something."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}


class ModelEntry(_Record):
    """One model of the registry (design §2). Only ``name`` and ``backend`` are required."""

    name: Name
    display_name: str | None = None
    model_aliases: Annotated[
        tuple[Name, ...],
        BeforeValidator(lambda v: (v,) if isinstance(v, str) else v, json_schema_input_type=list[Name] | Name),
    ] = ()
    backend: str
    backend_config: BackendConfig = Field(default_factory=lambda: BackendConfig.model_validate({}))
    served_model_id: str | None = Field(None, description="What the engine calls the model.")
    capabilities: Capabilities = Field(
        (), description=f"Some of {', '.join(CAPABILITIES)}; common synonyms are folded."
    )
    roles: Names = ()
    role_priority: Annotated[
        dict[str, Priority], BeforeValidator(_lower_keys, json_schema_input_type=dict[str, Priority | None])
    ] = Field(default_factory=dict, description="Role to priority, 0-100, higher is better; lists the role as well.")
    vram_estimate_mb: Megabytes | None = Field(None, description="Footprint in MB before anything better is known.")
    quantization: str | None = None
    family: str | None = None
    context_length: Annotated[int, Field(gt=0, le=2**40)] | None = Field(None, description="Tokens.")
    generation_defaults: dict[str, Any] = Field(default_factory=dict, description="Applied where a request is silent.")
    request: RequestRules = Field(default_factory=RequestRules)
    history: HistoryRules = Field(default_factory=HistoryRules)
    enabled: bool = Field(default=True, description="False: as if it were not installed; `rolecall models enable`.")
    idle_unload_s: NotNegative | None = Field(None, description="0 keeps it loaded; null: the profile's.")
    pinned: bool = False
    preload: bool = False
    allow_cpu: bool | None = Field(
        None,
        description="Whether it may run without a GPU: true also after it ran out of GPU memory, false never. "
        "Null: the profile's.",
    )
    gpus: tuple[int | str, ...] = ()
    max_parallel: Annotated[int, Field(ge=1, le=4096)] | None = Field(None, description="Requests served at once.")
    load_timeout_s: Annotated[float, Field(gt=0)] | None = None
    max_image_pixels: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Images with more pixels are scaled down before the engine gets them."
    )
    image_jpeg_quality: Annotated[int, Field(ge=1, le=100)] = Field(
        90, description="Quality of an image that was scaled down and is a JPEG."
    )
    image_tokens: Annotated[int, Field(ge=0, le=2**20)] | None = Field(
        None, description="Tokens of an image, whatever its size; goes before what is known of the model."
    )
    source: Any = None
    source_provider: str | None = None
    download_format: str | None = None
    download_location: str | None = None
    license: Any = None
    deprecated: bool = False
    metadata: dict[str, Any] = Field(default_factory=dict)
    chat_template: Any = None
    developer_role: bool | None = Field(
        None,
        description="Whether it knows the role `developer`, which otherwise becomes `system`. Null: its template says.",
    )
    reasoning_field: ReasoningField | None = Field(
        None, description="How its thoughts reach clients; null: as the setting of that name says."
    )
    backend_alternatives: Any = None

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and (field := no_text(value)) is not None:
            raise ValueError(f"field {field}: is no Unicode text (got half a character, a lone surrogate)")
        return value

    @field_validator("backend")
    @classmethod
    def _fold_backend(cls, value: str) -> str:
        folded = value.strip().lower()
        return _BACKENDS.get(folded, folded)

    def changed(self, config: Mapping[str, Any] | None = None, **fields: Any) -> ModelEntry:
        """Return a new entry with other ``fields``, and ``config`` in its ``backend_config``.

        A copy would keep what was worked out of the old ones.
        """
        whole = self.model_dump(exclude_unset=True)
        if config:
            whole["backend_config"] = {**whole.get("backend_config", {}), **config}
        return ModelEntry.model_validate({**whole, **fields})

    @property
    def ids(self) -> tuple[str, ...]:
        """The name and the aliases."""
        return (self.name, *self.model_aliases)

    @cached_property
    def all_capabilities(self) -> frozenset[str]:
        """What it can do: as listed, by projector and engine's arguments; ``text`` unless it only does without."""
        config = self.backend_config
        does = set(self.capabilities)
        if config.mmproj_path or config.mmproj_id:
            does.add("vision")
        if not does or not does <= _WITHOUT_TEXT:
            does.add("text")
        words = (*config.command, *config.extra_args)
        return frozenset(does | {_CAPABILITY_FLAGS[word] for word in map(dashed, words) if word in _CAPABILITY_FLAGS})

    @property
    def started_for(self) -> frozenset[str]:
        """The capabilities by which an engine is started in one way or another."""
        return self.all_capabilities & _STARTED_FOR

    @cached_property
    def priorities(self) -> dict[str, float]:
        """Role to priority (0-100) for each role it can play."""
        return dict.fromkeys(self.roles, DEFAULT_ROLE_PRIORITY) | self.role_priority

    @property
    def sizes(self) -> dict[str, Any]:
        """The generation defaults that the engine is started with."""
        return {key: value for key, value in self.generation_defaults.items() if key in SIZE_DEFAULTS}

    @property
    def sleep_level(self) -> Any:
        """The one level that it may sleep at, from its metadata; None allows for all."""
        return self.metadata.get("sleep_level")

    @cached_property
    def context_tokens(self) -> int | None:
        """The context in tokens: as listed, else from the generation defaults, else from the engine's arguments."""
        if self.context_length:
            return self.context_length
        for key in CONTEXT_DEFAULTS:
            value = self.generation_defaults.get(key)
            if isinstance(value, int) and value > 0:
                return value
        value = flag_value(self.backend_config.extra_args, *CONTEXT_FLAGS)
        return int(value) if value and value.isdecimal() and int(value) else None


def _inside(path: str, model_path: str | None) -> bool:
    """Whether ``path`` stays in the folder of ``model_path`` (lexically: model stores are full of symbolic links)."""
    if ".." in path.split("/"):
        return False
    if not posixpath.isabs(path) and not path.startswith(("~", "$")):
        return True
    folder = posixpath.dirname(model_path or "")
    return bool(folder) and posixpath.normpath(path).startswith(posixpath.normpath(folder).rstrip("/") + "/")


def flag_value(argv: Sequence[str], *flags: str) -> str | None:
    """Return the value of the last of ``flags`` in ``argv``, written ``--flag value`` or ``--flag=value``."""
    found = None
    for index, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if flag in flags:
            found = value if equals else next(iter(argv[index + 1 : index + 2]), None)
    return found


def dashed(word: str) -> str:
    """Return an option in the spelling with dashes: vLLM takes ``--max_model_len``, too."""
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value if flag.startswith("--") else word
