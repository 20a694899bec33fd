"""LiteLLM's ``config.yaml`` as entries of the registry: ``model_list``, names of models, and what is said of them.

What is read is what its documentation (`proxy/configs`, `proxy/config_settings`) had in November 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rolecall.elsewhere.litellm_providers import provider_of
from rolecall.elsewhere.litellm_routing import LITELLM_SETTINGS, carry_settings
from rolecall.elsewhere.outcome import Outcome
from rolecall.elsewhere.secrets import is_no_key, is_secret, variable_for
from rolecall.elsewhere.tree import Node

FORMAT = "LiteLLM"

_ENVIRON = "os.environ/"
_DEFAULTS = (
    *("temperature", "top_p", "top_k", "min_p", "max_tokens", "max_completion_tokens", "presence_penalty", "seed"),
    *("frequency_penalty", "stop", "n", "logit_bias", "reasoning_effort", "response_format", "tools", "tool_choice"),
    *("repetition_penalty", "user", "parallel_tool_calls"),
)
_READ = (
    *("model", "api_base", "base_url", "api_key", "custom_llm_provider", "litellm_credential_name", "extra_body"),
    *("max_parallel_requests", "additional_drop_params"),
)
_LOST = {
    **dict.fromkeys(("rpm", "tpm"), "limits belong to API keys: rolecall keys add --rpm"),
    **dict.fromkeys(
        ("timeout", "stream_timeout"), "rolecall's are backend_timeout_ms and stream_idle_timeout_ms, for all"
    ),
    **dict.fromkeys(("weight", "order", "tags"), "rolecall chooses by role and priority"),
    **dict.fromkeys(("extra_headers", "headers", "organization"), "rolecall sends no headers of others to a server"),
    **dict.fromkeys(("max_retries", "num_retries"), "rolecall sends once more only what no engine has begun to answer"),
    "drop_params": "requests reach the server as they come, but for request.strip of the entry",
    "mock_response": "rolecall has no made-up answers",
}
_MODES = {
    "embedding": ["embedding"],
    "rerank": ["rerank"],
    "audio_transcription": ["audio"],
    "audio_speech": ["audio"],
    "chat": [],
    "completion": [],
    "responses": [],
}
_SUPPORTS = {
    "supports_vision": "vision",
    "supports_function_calling": "tools",
    "supports_tool_choice": "tools",
    "supports_parallel_function_calling": "tools",
    "supports_reasoning": "reasoning",
    "supports_audio_input": "audio",
}


@dataclass
class Deployment:
    """One element of ``model_list`` on its way to an entry; ``group`` is its ``model_name``."""

    group: str
    node: Node
    subject: str
    entry: dict[str, Any] = field(default_factory=dict)


def read_litellm(root: Node, environ: Mapping[str, str]) -> Outcome:
    """Return the models of a configuration; raises ``SourceError`` for what makes no sense."""
    outcome = Outcome(FORMAT)
    environ = _variables(root) | dict(environ)
    credentials = _credentials(root, outcome)
    found = []
    listed = root["model_list"]
    if listed is not None and not isinstance(listed.value, list):
        outcome.wrong(listed.line, "model_list", f"must be a list, not {listed.kind}")
        return outcome.finished()
    for number, node in enumerate(listed.elements() if listed else ()):
        deployment = _deployment(number, node, credentials, environ, outcome)
        if deployment is not None:
            found.append(deployment)
    _name_apart(found, outcome)
    carry_settings(root, {each.group: each.entry for each in reversed(found)}, outcome)
    for each in found:
        outcome.add(each.entry, each.node, each.subject)
    return outcome.finished()


def _variables(root: Node) -> dict[str, str]:
    """Return the variables that the file itself sets and that are no secrets; the environment's own go before them."""
    section = root["environment_variables"]
    members = section.members() if section is not None and isinstance(section.value, dict) else ()
    return {name: node.value for name, node in members if isinstance(node.value, str) and not is_secret(name)}


def _credentials(root: Node, outcome: Outcome) -> dict[str, Node]:
    listed = root["credential_list"]
    found = {}
    for number, node in enumerate(listed.elements() if listed is not None else ()):
        subject = f"credential_list.{number}"
        name, values = outcome.text(node, "credential_name", subject), node["credential_values"]
        if name is not None and values is not None:
            found[name] = values
    return found


def _deployment(
    number: int, node: Node, credentials: Mapping[str, Node], environ: Mapping[str, str], outcome: Outcome
) -> Deployment | None:
    subject = f"model_list.{number}"
    if not isinstance(node.value, dict):
        outcome.wrong(node.line, subject, f"must be a mapping, not {node.kind}")
        return None
    name, params = outcome.text(node, "model_name", subject), node["litellm_params"]
    model = outcome.text(params, "model", f"{subject}.litellm_params") if params is not None else None
    if not name or params is None or not model:
        lacking = "model_name" if not name else "litellm_params" if params is None else "litellm_params.model"
        outcome.wrong(node.line, subject, f"has no {lacking}")
        return None
    if "*" in name or "*" in model:
        text = f"{name!r} stands for any number of models; rolecall lists each: give those that you use by name"
        outcome.lost(node.line, f"{subject}.model_name", text)
        return None
    for key, each in node.members():
        if key not in ("model_name", "litellm_params", "model_info"):
            outcome.lost(each.line, f"{subject}.{key}", "is not carried over")
    reader = _Reader(Deployment(name, node, subject), params, credentials, environ, outcome)
    return reader.deployment if reader.read(model) else None


@dataclass
class _Reader:
    """Makes the entry of one deployment."""

    deployment: Deployment
    params: Node
    credentials: Mapping[str, Node]
    environ: Mapping[str, str]
    outcome: Outcome

    @property
    def subject(self) -> str:
        """The way to its parameters."""
        return f"{self.deployment.subject}.litellm_params"

    def read(self, model: str) -> bool:
        """Fill the entry; whether there is one to be filled."""
        params, outcome = self.params, self.outcome
        base = self._value("api_base") or self._value("base_url")
        custom = outcome.text(params, "custom_llm_provider", self.subject)
        prefix, served, provider = provider_of(model, custom, has_base=base is not None)
        line = params["model"].line if params["model"] else params.line
        if provider is None:
            text = f"{prefix} has an API of its own, not OpenAI's: keep LiteLLM for it, reached by an entry openai"
            outcome.lost(line, f"{self.subject}.model", f"{self.deployment.group!r} was left out: {text}")
            return False
        address = self._expanded(base) if base is not None else provider.base_url
        if address is None and provider.backend == "openai":
            text = f"{self.deployment.group!r} was left out: no api_base says where its server is"
            outcome.lost(line, f"{self.subject}.model", text)
            return False
        if address is not None and not address.startswith(("http://", "https://")):
            outcome.wrong(line, f"{self.subject}.api_base", "must begin with http:// or https://")
        config: dict[str, Any] = {"base_url": self._base(address, provider.backend)}
        config["api_key_env"] = self._key(provider.key if base is None else None)
        name = self.deployment.group
        self.deployment.entry = {
            "name": name,
            "backend": provider.backend,
            "backend_config": {key: value for key, value in config.items() if value},
            "served_model_id": served,
            **self._information(),
            "generation_defaults": {key: node.plain for key, node in params.members() if key in _DEFAULTS},
            "request": self._request(),
        }
        parallel = outcome.number(params, "max_parallel_requests", self.subject)
        if parallel:
            self.deployment.entry["max_parallel"] = int(parallel)
        self._tell_lost()
        return True

    @staticmethod
    def _base(address: str | None, backend: str) -> str | None:
        if address is None:
            return None
        base = address.rstrip("/")
        return base.removesuffix("/v1") if backend == "ollama" else base

    def _value(self, key: str) -> str | None:
        """Return a parameter, from the deployment or from the credential that it names."""
        own = self.outcome.text(self.params, key, self.subject)
        name = self.outcome.text(self.params, "litellm_credential_name", self.subject)
        if own is not None or name is None:
            return own
        if name not in self.credentials:
            self.outcome.wrong(self.params.line, self.subject, f"names the credential {name!r}, which is not listed")
            return None
        return self.outcome.text(self.credentials[name], key, f"credential_list.{name}")

    def _expanded(self, value: str) -> str | None:
        """Return an address with a variable's value for its name."""
        if not value.startswith(_ENVIRON):
            return value
        name = value.removeprefix(_ENVIRON)
        if name not in self.environ:
            text = f"stands in the environment variable {name}, which is not set: set it and try again"
            self.outcome.wrong(self.params.line, f"{self.subject}.api_base", text)
            return "http://unknown"
        return self.environ[name]

    def _key(self, usual: str | None) -> str | None:
        """Return the variable that holds the key; a key itself is not copied."""
        key = self._value("api_key")
        if key is None:
            return usual
        if key.startswith(_ENVIRON):
            return key.removeprefix(_ENVIRON)
        if is_no_key(key):
            return None
        variable = variable_for(self.deployment.group)
        node = self.params["api_key"]
        text = f"the key is not copied: put it into the environment variable {variable}"
        self.outcome.todo(node.line if node else self.params.line, f"{self.subject}.api_key", text)
        return variable

    def _request(self) -> dict[str, Any]:
        strip = [str(each.value) for each in self.outcome.texts(self.params, "additional_drop_params", self.subject)]
        body = {key: node.plain for key, node in self.outcome.mapping(self.params, "extra_body", self.subject)}
        return {**({"strip": strip} if strip else {}), **({"set": body} if body else {})}

    def _information(self) -> dict[str, Any]:
        """Return what ``model_info`` says of the model itself."""
        node, subject = self.deployment.node["model_info"], f"{self.deployment.subject}.model_info"
        found: dict[str, Any] = {"capabilities": []}
        for key, each in node.members() if node is not None else ():
            if key == "mode":
                self._mode(str(each.value), each.line, subject, found)
            elif key in _SUPPORTS:
                found["capabilities"] += [_SUPPORTS[key]] if each.value is True else []
            elif (
                key in ("max_input_tokens", "max_tokens")
                and isinstance(each.value, int)
                and not isinstance(each.value, bool)
            ):
                if key == "max_input_tokens" or "max_input_tokens" not in dict(node.members() if node else ()):
                    found["context_length"] = each.value
            elif key in ("id", "base_model", "description", "version"):
                found.setdefault("metadata", {})[key] = each.plain
            else:
                self.outcome.lost(each.line, f"{subject}.{key}", "rolecall keeps no such account of a model")
        found["capabilities"] = list(dict.fromkeys(found["capabilities"]))
        return found

    def _mode(self, mode: str, line: int, subject: str, found: dict[str, Any]) -> None:
        if mode not in _MODES:
            self.outcome.lost(line, f"{subject}.mode", f"rolecall has no endpoint for {mode!r}")
        found["capabilities"] += _MODES.get(mode, [])

    def _tell_lost(self) -> None:
        for key, node in self.params.members():
            if key in _READ or key in _DEFAULTS:
                continue
            why = _LOST.get(key, LITELLM_SETTINGS.get(key, "has no counterpart"))
            hidden = "; its value is not shown" if is_secret(key) else ""
            self.outcome.lost(node.line, f"{self.subject}.{key}", why + hidden)


def _name_apart(found: list[Deployment], outcome: Outcome) -> None:
    """Give deployments of one name a name each, and a role of that name among which the choice is made."""
    taken = {each.group for each in found}
    groups: dict[str, list[Deployment]] = {}
    for each in found:
        groups.setdefault(each.group, []).append(each)
    for name, members in groups.items():
        if len(members) == 1:
            continue
        role = name.strip().lower()
        for number, each in enumerate(members, 1):
            each.entry["role_priority"] = {role: 50}
            if number > 1:
                own = next(word for at in range(number, 10**6) if (word := f"{name}-{at}") not in taken)
                taken.add(own)
                each.entry["name"] = own
                text = f"became {own!r}: names are unique here; role:{role} stands for all {len(members)} of {name!r}"
                outcome.changed(each.node.line, f"{each.subject}.model_name", text)
