"""The settings: command line > ``CHAT_PROXY_*`` > ``configs/rolecall.toml`` > default."""

from __future__ import annotations

import difflib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import AliasChoices, ConfigDict, Field, PrivateAttr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from typing_extensions import TypedDict

from rolecall.core.addresses import read_host
from rolecall.core.hosts import host_rule, origin_rule
from rolecall.core.models import ReasoningField
from rolecall.core.selection import Policy, RolePolicy
from rolecall.errors import ConfigurationError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PREFIX = "CHAT_PROXY_"
SETTINGS_FILE = "rolecall.toml"
SHIPPED = (SETTINGS_FILE, "profiles.toml", "model_registry.curated.json", "experiments.toml")
_FROM_ENVIRONMENT = "in the environment variable"
_OPTIONS = {"deployment_profile": "--profile"}
"""Options of the command line that are not called like their setting."""
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
SecondsAboveZero = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Points = Annotated[int | float, Field(ge=0, le=100)]


class RoleTable(TypedDict, total=False):
    """What a ``[roles.NAME]`` table says; what it leaves out is ``role_policy`` and ``quality_tolerance``."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc] # how pydantic is told for a TypedDict

    policy: Policy
    quality_tolerance: Points
    fallback: list[str]


class Settings(BaseSettings):
    """Every setting, with its unit in its name. ``docs/configuration.md`` says what each is for."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, populate_by_name=True)

    host: str = Field("127.0.0.1", description="Address to listen on; loopback unless you say otherwise.")
    port: int = Field(8100, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    config_dir: Path = Field(Path("configs"), description="Folder of rolecall.toml, profiles.toml and the registry.")
    state_dir: Path = Field(Path(), description="Folder of engine logs, process ids and the demo models.")
    models_dir: Path | None = Field(
        None,
        description="Folder of the models that `rolecall models pull` fetches; models in the state folder if empty.",
    )
    api_keys_file: Path | None = Field(
        None, description="File of API keys, which every caller then needs; relative to the config folder. Empty: none."
    )
    allowed_hosts: list[str] = Field(
        [], description="Names by which this server is called in Host, beside loopback's; *.name stands for all below."
    )
    allowed_origins: list[str] = Field(
        [], description="Web pages that may send requests and read the answers, as https://chat.example.org."
    )
    log_path: Path = Field(Path("logs/chat_proxy.jsonl"), description="The JSONL log, one line per request.")
    max_log_bytes: Positive = Field(25_000_000, description="Size at which the log is rotated.")
    log_backups: NotNegative = Field(5, description="Rotated log files that are kept.")
    log_prompts: bool = Field(default=False, description="Write prompts and answers into the log.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="What is printed on the terminal at the least."
    )
    backend_timeout_ms: Positive = Field(120_000, description="Longest wait for an engine's first byte.")
    stream_idle_timeout_ms: Positive = Field(60_000, description="Longest pause inside a streamed answer.")
    autostart_enabled: bool = Field(default=True, description="Start a model on its first request.")
    autostart_grace_period_s: SecondsAboveZero = Field(
        120, description="Longest wait for an engine to become ready; load_timeout_s of an entry goes first."
    )
    max_wait_s: SecondsAboveZero = Field(
        270, description="Longest wait of an unstreamed request for a model; then 503."
    )
    stream_loading_comments: bool = Field(
        default=True, description="Send comments to waiting streams while a model loads."
    )
    drain_limit_s: Seconds = Field(300, description="Longest wait for answers in flight before an unload.")
    shutdown_grace_s: Seconds = Field(20, description="Longest wait for answers in flight at shutdown.")
    keep_engines_on_exit: bool = Field(
        default=False, description="Let engines live on when rolecall ends; the next start takes them over."
    )
    probe_every_s: Seconds = Field(5, description="Time between two health checks of a loaded model; 0: never.")
    max_queue: Positive = Field(1000, description="Requests that may wait; one more is answered with 429.")
    max_overtake_s: Seconds = Field(20, description="How long requests for a loaded model may pass a waiting one.")
    record_decisions: Path | None = Field(
        None, description="File for the scheduler's decision log, which rolecall replay reads; empty: none."
    )
    role_policy: Policy = Field(
        "adaptive", description="How roles choose: adaptive may take a loaded model instead of a swap, priority never."
    )
    quality_tolerance: Annotated[float, Field(ge=0, le=100)] = Field(
        0, description="Priority points a loaded model may be worse by and still be taken instead of a swap."
    )
    roles: dict[str, RoleTable] = Field(
        {},
        description="Tables [roles.NAME] with policy (adaptive, priority), quality_tolerance (0-100) and fallback "
        "(names and role:NAME to try when no model of the role can serve) of a role.",
    )
    max_body_bytes: Positive = Field(64 * 2**20, description="Largest request body; a larger one is answered with 413.")
    max_upload_bytes: Positive = Field(2**30, description="Largest upload to /v1/audio; it is kept on the disk.")
    body_timeout_ms: Positive = Field(60_000, description="Longest pause between two parts of a body; then 408.")
    min_body_bytes_per_s: NotNegative = Field(
        500, description="Lowest average rate of a body that takes longer than body_timeout_ms; 0: any."
    )
    max_header_bytes: Positive = Field(2**16, description="Largest head of a request; a larger one: 431.")
    max_headers: Positive = Field(200, description="Most headers of a request; one more is answered with 431.")
    header_timeout_ms: Positive = Field(10_000, description="Longest time for the head of a request; then 408.")
    max_connections: Positive = Field(2000, description="Connections at the same time; one more is answered with 503.")
    max_messages: Positive = Field(10_000, description="Most messages of a request, or inputs; one more: 400.")
    max_image_bytes: Positive = Field(9_000_000, description="Largest image, decoded from base64.")
    max_images: NotNegative = Field(500, description="Most images of a request.")
    image_urls: Literal["fetch", "refuse", "pass"] = Field(
        "fetch", description="What is done with an image's address: fetch it, refuse it, or pass it to the engine."
    )
    image_hosts: list[str] = Field(
        [], description="Hosts, with or without a port, that images are fetched from although they are not public."
    )
    image_fetch_timeout_ms: Positive = Field(10_000, description="Longest time that one image may take to be fetched.")
    include_non_installed: bool = Field(default=False, description="List models whose files are absent as well.")
    demo_models: bool = Field(
        default=True, description="Make the demo models on first start if the registry names them."
    )
    deployment_profile: str | None = Field(
        None,
        description="Profile to use instead of the detected one.",
        validation_alias=AliasChoices(
            "deployment_profile", f"{PREFIX}DEPLOYMENT_PROFILE", "IMAGEWORKS_DEPLOYMENT_PROFILE"
        ),
    )
    max_vram_mb: Positive | None = Field(None, description="Ceiling for the memory budget, in MB.")
    llama_server: str = Field(
        "auto", description="llama.cpp engine: auto (the PATH, else embedded), embedded, or the path of a llama-server."
    )
    vision_truncate_history: bool = Field(
        default=True, description="Drop earlier turns when the current one holds an image."
    )
    vision_keep_system: bool = Field(default=True, description="Keep system messages when images make turns go.")
    vision_keep_last_n_turns: NotNegative = Field(
        0, description="Turns before the current one that stay when images make turns go."
    )
    reasoning_truncate_history: bool = Field(
        default=False, description="Drop the reasoning of past turns that have any, and older turns."
    )
    reasoning_keep_system: bool = Field(default=True, description="Keep system messages when reasoning makes turns go.")
    reasoning_keep_last_n_turns: NotNegative = Field(
        1, description="Turns before the current one that stay when reasoning makes turns go."
    )
    history_fit: Literal["off", "vision", "all"] = Field(
        "vision", description="Which conversations are cut to the model's context: off, vision (with images), all."
    )
    reasoning_field: ReasoningField = Field(
        "reasoning_content",
        description="How the thoughts of models reach clients: reasoning_content, reasoning, think, drop, as_is.",
    )
    vllm_command: str = Field("vllm", description="vLLM's program: a name on the PATH, or a path.")
    vllm_start_timeout_s: SecondsAboveZero = Field(
        180, description="Longest wait for vLLM to become ready; load_timeout_s of an entry goes first."
    )
    vllm_stop_timeout_s: Seconds = Field(30, description="Longest wait for vLLM to end before it is killed.")
    sleep_enabled: bool = Field(
        default=True, description="Let vLLM sleep instead of being stopped where that is cheaper."
    )
    sleep_ram_mb: NotNegative | None = Field(
        None, description="Host RAM that sleeping engines may take, in MB; a quarter of the RAM if not given."
    )
    otel_enabled: bool = Field(
        default=False, description="Send traces over OTLP, to where the OTEL_* variables say; needs the extra otel."
    )
    ollama_base_url: str = Field("http://127.0.0.1:11434", description="Address of the Ollama server.")

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)
    _given: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def models_folder(self) -> Path:
        """The folder of the models that are pulled."""
        return self.models_dir or self.state_dir / "models"

    def origin(self, name: str) -> str:
        """Return where a setting's value came from, in words; "by default" where nobody gave it."""
        return self._origins.get(name, "by default")

    def is_from_environment(self, name: str) -> bool:
        """Whether a setting's value came from an environment variable."""
        return self.origin(name).startswith(_FROM_ENVIRONMENT)

    def read_again(self) -> Settings:
        """Return the settings as they are now, with what the command line gave; raises ``ConfigurationError``."""
        return load_settings({**self._given, "config_dir": self.config_dir})

    def with_values_of(self, other: Settings, names: Iterable[str]) -> Settings:
        """Return a copy that has some values of other settings, and knows where those came from."""
        names = tuple(names)
        changed = self.model_copy(update={name: getattr(other, name) for name in names})
        changed._origins = {  # noqa: SLF001 - our own kind
            name: origin for name, origin in self._origins.items() if name not in names
        } | {name: origin for name, origin in other._origins.items() if name in names}
        return changed

    def role_policies(self) -> dict[str, RolePolicy]:
        """Return the policy of each role that has a table of its own, complete."""
        return {
            role: RolePolicy(
                table.get("policy", self.role_policy), table.get("quality_tolerance", self.quality_tolerance)
            )
            for role, table in self.roles.items()
        }

    @field_validator(
        "state_dir",
        "models_dir",
        "log_path",
        "record_decisions",
        "api_keys_file",
        "host",
        "llama_server",
        "vllm_command",
        mode="before",
    )
    @classmethod
    def _no_null(cls, value: Any) -> Any:
        if "\0" in str(value):
            raise ValueError("must not hold a null character")
        return value

    @field_validator("state_dir")
    @classmethod
    def _whole_path(cls, value: Path) -> Path:
        return _absolute(value)

    @field_validator("models_dir")
    @classmethod
    def _whole_models_path(cls, value: Path | None) -> Path | None:
        return value and _absolute(value)

    @field_validator("record_decisions", "api_keys_file", "models_dir", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("api_keys_file")
    @classmethod
    def _in_config_dir(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        folder: Path = info.data.get("config_dir", Path())  # absent if it is wrong itself
        return value and folder / os.path.expanduser(value)  # noqa: PTH111 - as in _absolute

    @field_validator("log_path", "record_decisions")
    @classmethod
    def _at_home(cls, value: Path | None) -> Path | None:
        return value and Path(os.path.expanduser(value))  # noqa: PTH111 - as in _absolute

    @field_validator("allowed_hosts", "allowed_origins", "image_hosts", mode="before")
    @classmethod
    def _from_commas(cls, value: Any) -> Any:
        return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts(cls, value: list[str]) -> list[str]:
        return [host_rule(name) for name in value]

    @field_validator("allowed_origins")
    @classmethod
    def _origins_of_pages(cls, value: list[str]) -> list[str]:
        return [origin_rule(origin) for origin in value]

    @field_validator("roles", mode="before")
    @classmethod
    def _from_json(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError(f"is no JSON object ({error})") from None

    @field_validator("image_hosts")
    @classmethod
    def _image_hosts(cls, value: list[str]) -> list[str]:
        return [read_host(name) for name in value]

    @field_validator("roles")
    @classmethod
    def _as_roles_are_asked_for(cls, value: dict[str, RoleTable]) -> dict[str, RoleTable]:
        return {role.strip().lower(): table for role, table in value.items()}

    @field_validator("ollama_base_url")
    @classmethod
    def _http_address(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return value.rstrip("/")

    @field_validator("vllm_command")
    @classmethod
    def _some_program(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must name a program, such as vllm")
        return value.strip()

    @field_validator("log_level", mode="before")
    @classmethod
    def _any_case(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("host")
    @classmethod
    def _some_host(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must name an address, such as 127.0.0.1")
        return value.strip()

    @classmethod
    def settings_customise_sources(cls, *_args: Any, **_sources: Any) -> tuple[Any, ...]:
        """Take values from ``load_settings`` alone, which knows where each came from."""
        return (_sources["init_settings"],)


def load_settings(
    arguments: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    may_be_absent: bool = False,
) -> Settings:
    """Return the settings from command-line ``arguments``, the environment, and the settings file.

    Arguments that are None count as not given. With ``may_be_absent`` a config folder that was named need not exist
    yet. Raises ``ConfigurationError``, one line a problem: the setting, the value, where it came from and what is
    allowed.
    """
    environ = os.environ if environ is None else environ
    given = {name: value for name, value in (arguments or {}).items() if value is not None}
    env_names = _environment(environ)
    config_dir = find_config_dir(given.get("config_dir"), environ, may_be_absent=may_be_absent)
    from_file = _read_file(config_dir / SETTINGS_FILE)
    values: dict[str, Any] = {**from_file}
    values |= {name: environ[variable] for name, variable in env_names.items()}
    values |= given
    values = {"state_dir": platformdirs.user_state_path("rolecall"), **values, "config_dir": config_dir}
    origins = dict.fromkeys(from_file, f"in {config_dir / SETTINGS_FILE}")
    origins |= {name: f"{_FROM_ENVIRONMENT} {variable}" for name, variable in env_names.items()}
    origins |= {name: f"from the command line ({_option(name)})" for name in given}
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise ConfigurationError("\n".join(_problem(each, origins) for each in error.errors())) from None
    settings._origins.update(origins)  # noqa: SLF001 - its maker
    settings._given.update(given)  # noqa: SLF001
    return settings


def find_config_dir(given: str | Path | None, environ: Mapping[str, str], *, may_be_absent: bool = False) -> Path:
    """Return the config folder: as given, ``CHAT_PROXY_CONFIG_DIR``, ``./configs``, else the user's own.

    Raises ``ConfigurationError`` if a folder that was named does not exist, or is a file.
    """
    variable = _environment(environ).get("config_dir")
    named = given or (environ[variable] if variable else None)
    if named:
        folder = _absolute(named)
        if not folder.is_dir() and not (may_be_absent and not folder.exists()):
            origin = "--config-dir" if given else variable
            raise ConfigurationError(f"config_dir: {str(named)!r} from {origin} is not a folder that exists")
        return folder
    local = Path("configs").resolve()
    return local if local.is_dir() else platformdirs.user_config_path("rolecall")


def _absolute(path: str | Path) -> Path:
    # Path.expanduser raises for a user that does not exist.
    return Path(os.path.expanduser(path)).resolve()  # noqa: PTH111


def _option(name: str) -> str:
    return _OPTIONS.get(name, "--" + name.replace("_", "-"))


def prepare_config_dir(settings: Settings) -> None:
    """Fill the user's own config folder with the shipped files on the first start; any other folder is left alone."""
    folder = settings.config_dir
    if not _is_to_be_filled(folder):
        return
    folder.mkdir(parents=True)
    for name in SHIPPED:
        shutil.copyfile(shipped(name), folder / name)


def _is_to_be_filled(folder: Path) -> bool:
    return not folder.exists() and folder == platformdirs.user_config_path("rolecall")


def standing(path: Path) -> Path:
    """Return a file of the config folder, or the shipped one that it will be filled with: for those who only look."""
    return shipped(path.name) if path.name in SHIPPED and _is_to_be_filled(path.parent) else path


def shipped(name: str) -> Path:
    """Return a file of the configuration that comes with rolecall: in the package, or in the clone it runs from."""
    package = Path(__file__).parent / "defaults" / name
    return package if package.exists() else Path(__file__).parents[2] / "configs" / name


def prepare_state_dir(settings: Settings) -> None:
    """Make the state folder; raises ``ConfigurationError`` if nothing can be written there: no engine could start."""
    folder = settings.state_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise located(settings, ConfigurationError(f"state_dir: {folder} cannot be written: {reason}")) from None


def located(settings: Settings, error: ConfigurationError) -> ConfigurationError:
    """Return an error that begins with a setting's name, with where its value came from."""
    name = str(error).partition(":")[0]
    return ConfigurationError(f"{error}; {name} was given {settings.origin(name)}")


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Return a warning for each ``CHAT_PROXY_*`` variable that names no setting."""
    known = [name.upper() for name in Settings.model_fields]
    # Compared without the prefix, by which any two variables are alike.
    named = {name: name.upper().removeprefix(PREFIX) for name in sorted(environ) if name.upper().startswith(PREFIX)}
    return [
        f"the environment variable {variable} names no setting{_did_you_mean(name, known, PREFIX)}"
        for variable, name in named.items()
        if name not in known
    ]


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return setting to the name of the variable that gives it; read in any case, empty ones count as not given."""
    upper = {name.upper(): name for name, value in environ.items() if value}
    found = {name: upper[_variable(name)] for name in Settings.model_fields if _variable(name) in upper}
    if "IMAGEWORKS_DEPLOYMENT_PROFILE" in upper:
        found.setdefault("deployment_profile", upper["IMAGEWORKS_DEPLOYMENT_PROFILE"])
    return found


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from None
    if "config_dir" in values:
        raise ConfigurationError(f"config_dir: in {path} comes too late; use --config-dir or {PREFIX}CONFIG_DIR")
    strange = [name for name in values if name not in Settings.model_fields]
    if strange:
        lines = [f"{name}: in {path} names no setting{_did_you_mean(name, Settings.model_fields)}" for name in strange]
        raise ConfigurationError("\n".join(lines))
    return values


def _did_you_mean(name: str, known: Any, prefix: str = "") -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {prefix + near[0]!r}?" if near else ""


def _problem(problem: Any, origins: Mapping[str, str]) -> str:
    name = str(problem["loc"][0])
    where = ".".join(map(str, problem["loc"]))
    allowed = Settings.model_fields[name].description if name in Settings.model_fields else ""
    return f"{where}: {problem['msg']}, not {problem['input']!r} {origins.get(name, '')}. {allowed}".rstrip()
