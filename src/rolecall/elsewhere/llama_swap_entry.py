"""One model of a llama-swap configuration as an entry of the registry."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from rolecall.elsewhere.command import Command
from rolecall.elsewhere.command_line import fixed_port, keep_whole, program_of, take_apart
from rolecall.elsewhere.llama_swap_filters import filter_fields
from rolecall.elsewhere.llama_swap_model import Model
from rolecall.elsewhere.macros import PORT, secret_variable
from rolecall.elsewhere.outcome import Outcome
from rolecall.elsewhere.secrets import is_secret
from rolecall.elsewhere.tree import Node

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass
class EntryReader:
    """Makes the entry of one model."""

    model: Model
    outcome: Outcome
    lines: list[str]
    folder: str
    programs: Mapping[str, str]

    def read(self, root: Node) -> None:
        """Fill the model's entry."""
        model, outcome, node, subject = self.model, self.outcome, self.model.node, self.model.subject
        known = program_of(model.words)
        own = known is not None and self.programs[known[0]] == known[1]
        command = take_apart(model.words, self.folder) if own else keep_whole(model.words, self.folder)
        if known is not None and not own:
            self._say(
                known[1], "changed", f"most models have {self.programs[known[0]]}; this one keeps its own program"
            )
        for part in command.parts:
            self._say(part.word, part.kind, part.text)
        self._tell_secrets(command)
        config = dict(command.config)
        entry: dict[str, Any] = {
            "name": model.name,
            "display_name": outcome.text(node, "name", subject),
            "model_aliases": [str(alias.value) for alias in outcome.texts(node, "aliases", subject)],
            "backend": command.fields.pop("backend"),
            "backend_config": config,
            **command.fields,
        }
        if (name := outcome.text(node, "useModelName", subject)) is not None:
            entry["served_model_id"] = name
        entry["capabilities"], context = self._capabilities(command)
        entry.setdefault("context_length", context)
        self._environment(config, entry)
        self._address(config, entry)
        self._times(entry, root)
        entry.update(filter_fields(node, model.name, entry["model_aliases"], subject, outcome))
        self._parallel(entry, is_command="command" in config)
        self._metadata(entry)
        if "command" in config and "port" in config and config["port"] is None:
            text = (
                f"was left out: there is neither {PORT} in its cmd nor a port in its proxy, by which to find its engine"
            )
            outcome.lost(node.line, subject, text)
            return
        model.entry = entry

    def _line(self, word: str) -> int:
        """Return the line of a word of the command, else the one on which the command begins."""
        cmd = self.model.node["cmd"]
        first, last = (cmd.line, cmd.end_line) if cmd else (self.model.node.line, self.model.node.line)
        return next((number for number in range(first, last + 1) if word in self.lines[number - 1 : number][0]), first)

    def _say(self, word: str, kind: str, text: str) -> None:
        remark = {"changed": self.outcome.changed, "todo": self.outcome.todo, "lost": self.outcome.lost}[kind]
        remark(self._line(word), f"{self.model.subject}.cmd", text)

    def _tell_secrets(self, command: Command) -> None:
        for word in (*command.config.get("command", ()), *command.config.get("extra_args", ())):
            name = word.lstrip("-").partition("=")[0]
            if variable := secret_variable(word):
                self._say(word, "todo", f"${{env.{variable}}} is secret and was not filled in: put it there yourself")
            elif "=" in word and is_secret(name):
                self._say(word, "todo", f"the value of {name} stands in the registry in plain text now")

    def _capabilities(self, command: Command) -> tuple[list[str], int | None]:
        node, subject = self.model.node, f"{self.model.subject}.capabilities"
        found = list(command.capabilities)
        stated = node["capabilities"]
        if stated is None:
            return list(dict.fromkeys(found)), None
        takes = [str(each.value) for each in self.outcome.texts(stated, "in", subject)]
        gives = [str(each.value) for each in self.outcome.texts(stated, "out", subject)]
        found += ["text"] if "text" in takes and "embedding" not in found else []
        found += [ours for theirs, ours in (("image", "vision"), ("audio", "audio")) if theirs in takes]
        found += ["tools"] if self.outcome.flag(stated, "tools", subject) else []
        found += ["rerank"] if self.outcome.flag(stated, "reranker", subject) else []
        if "image" in gives:
            self.outcome.lost(stated.line, subject, "rolecall has no endpoint for images that a model makes")
        context = self.outcome.number(stated, "context", subject)
        return list(dict.fromkeys(found)), int(context) if context else None

    def _environment(self, config: dict[str, Any], entry: dict[str, Any]) -> None:
        subject = f"{self.model.subject}.env"
        variables = {name: (value, self._line(name)) for name, value in self.model.env.items()}
        for each in self.outcome.texts(self.model.node, "env", self.model.subject):
            name, equals, value = str(each.value).partition("=")
            if not equals:
                self.outcome.wrong(each.line, subject, "must be NAME=value")
            variables[name.strip()] = (value, each.line)
        env = {}
        for name, (value, line) in variables.items():
            if (
                name == "CUDA_VISIBLE_DEVICES"
                and value.strip("-0123456789, ") == ""
                and "-" not in value
                and value.strip()
            ):
                entry["gpus"] = [int(number) for number in value.split(",") if number.strip()]
                self.outcome.changed(line, subject, "CUDA_VISIBLE_DEVICES became gpus, in the order of nvidia-smi")
            elif variable := secret_variable(value):
                self.outcome.todo(
                    line,
                    subject,
                    f"${{env.{variable}}} is secret and was not copied: put {name} into backend_config.env",
                )
            else:
                env[name] = value
                if is_secret(name):
                    self.outcome.todo(line, subject, f"the value of {name} stands in the registry in plain text now")
        if env:
            config["env"] = env

    def _address(self, config: dict[str, Any], entry: dict[str, Any]) -> None:
        """Take the port and the path of the health check from where llama-swap would look for them."""
        node, subject = self.model.node, self.model.subject
        proxy = self.outcome.text(node, "proxy", subject) or f"http://localhost:{PORT}"
        line = node["proxy"].line if node["proxy"] else node.line
        host, port, path = _parts(proxy)
        if host is None:
            self.outcome.wrong(line, f"{subject}.proxy", "is no address such as http://127.0.0.1:9000")
        elif host not in _LOOPBACK and "command" in config:
            text = "is on another host, where rolecall starts nothing: the entry reaches it as a server that others run"
            self.outcome.changed(line, f"{subject}.proxy", text)
            entry["backend"] = "openai"
            for key in ("command", "model_path", "env"):
                config.pop(key, None)
            config["base_url"] = proxy.rstrip("/") + ("" if path.rstrip("/").endswith("/v1") else "/v1")
            return
        elif host not in _LOOPBACK or path.strip("/"):
            self.outcome.lost(line, f"{subject}.proxy", "engines are asked at 127.0.0.1, under /v1")
        self._health(config)
        if "command" in config and not any("{port}" in word for word in config["command"]):
            config["port"] = port or fixed_port(config["command"])

    def _health(self, config: dict[str, Any]) -> None:
        node, subject = self.model.node, f"{self.model.subject}.checkEndpoint"
        path = self.outcome.text(node, "checkEndpoint", self.model.subject)
        if path is None or path == "/health":
            return
        line = node["checkEndpoint"].line if node["checkEndpoint"] else node.line
        if path.lower() == "none":
            self.outcome.lost(
                line, subject, "rolecall waits until an engine answers 200 to GET /health, or health_path"
            )
        elif "command" in config:
            config["health_path"] = path if path.startswith("/") else f"/{path}"
        else:
            self.outcome.lost(line, subject, "this engine is asked at /health")

    def _times(self, entry: dict[str, Any], root: Node) -> None:
        node, subject = self.model.node, self.model.subject
        own = self.outcome.number(node, "ttl", subject)
        every = self.outcome.number(root, "globalTTL", "")
        ttl = own if own is not None and own >= 0 else every
        entry["idle_unload_s"] = ttl
        within = self.outcome.number(node, "healthCheckTimeout", subject)
        within = self.outcome.number(root, "healthCheckTimeout", "") if within is None else within
        if within:
            entry["load_timeout_s"] = max(within, 15)

    def _parallel(self, entry: dict[str, Any], *, is_command: bool) -> None:
        limit = self.outcome.number(self.model.node, "concurrencyLimit", self.model.subject)
        node = self.model.node["concurrencyLimit"]
        if limit and node is not None:
            entry["max_parallel"] = int(limit)
            text = "became max_parallel: further requests wait, and are not refused"
            self.outcome.changed(node.line, f"{self.model.subject}.concurrencyLimit", text)
        elif is_command and entry["backend"] not in ("llama_cpp", "vllm", "openai"):
            entry["max_parallel"] = 10  # llama-swap's own limit

    def _metadata(self, entry: dict[str, Any]) -> None:
        metadata = {
            key: node.plain for key, node in self.outcome.mapping(self.model.node, "metadata", self.model.subject)
        }
        description = self.outcome.text(self.model.node, "description", self.model.subject)
        entry["metadata"] = {**({"description": description} if description else {}), **metadata}


def _parts(address: str) -> tuple[str | None, int | None, str]:
    """Return host, port and path of an address; no host for what is none."""
    try:
        found = urlsplit(address.replace(PORT, "1"))
        host, port, path = found.hostname, found.port, posixpath.normpath(found.path or "/")
    except ValueError:
        return None, None, ""
    return (host if found.scheme in ("http", "https") else None), (None if PORT in address else port), path
