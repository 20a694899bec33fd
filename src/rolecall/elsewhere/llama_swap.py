"""llama-swap's ``config.yaml`` as entries of the registry.

What is read is what its `config.example.yaml` and its loader knew in August 2026, with the older spellings.
"""

from __future__ import annotations

from collections.abc import Mapping

from rolecall.elsewhere.command_line import LLAMA_SERVER, most_used, program_of, split_command, without_env
from rolecall.elsewhere.llama_swap_entry import EntryReader
from rolecall.elsewhere.llama_swap_model import Model
from rolecall.elsewhere.llama_swap_routing import carry_routing
from rolecall.elsewhere.macros import Macros
from rolecall.elsewhere.outcome import Outcome
from rolecall.elsewhere.tree import Node

FORMAT = "llama-swap"

_GLOBAL = {
    "logLevel": "rolecall's is log_level in rolecall.toml",
    "logTimeFormat": "rolecall's log has its times in one form",
    "logToStdout": "what engines print is kept in files of their own",
    "logRequests": "rolecall logs every request",
    "metricsMaxInMemory": "rolecall's request log is a file: max_log_bytes and log_backups bound it",
    "captureBuffer": "prompts and answers are logged where log_prompts says so",
    "store": "rolecall's request log is a file: log_path",
    "ui": "rolecall has no such setting",
    "performance": "rolecall has no such setting",
    "startPort": "rolecall takes a free port at each start of an engine",
    "sendLoadingState": "streams that wait are told in comments, not in the answer: stream_loading_comments",
    "includeAliasesInList": "aliases answer to requests; the list has them with their model",
    "unloadTimeout": "rolecall waits for answers in flight (drain_limit_s), then for the engine to end",
    "upstream": "rolecall passes no other paths on to engines",
    "profiles": "names are not switched at run time; a role can be given to another model: rolecall roles set",
}
_MODEL = {
    "cmdStop": "rolecall ends an engine by SIGTERM, and by SIGKILL if that does not do",
    "unlisted": "rolecall lists every model that is installed",
    "unloadTimeout": _GLOBAL["unloadTimeout"],
    "sendLoadingState": _GLOBAL["sendLoadingState"],
    "compat": "rolecall has no websockets",
    "timeouts": "rolecall's are backend_timeout_ms and stream_idle_timeout_ms in rolecall.toml, for all engines",
}
_READ = ("models", "macros", "groups", "matrix", "routing", "hooks", "peers", "selectors", "apiKeys", "globalTTL")
_READ_OF_MODEL = (
    *("cmd", "name", "description", "aliases", "env", "proxy", "checkEndpoint", "ttl", "useModelName", "filters"),
    *("macros", "metadata", "concurrencyLimit", "capabilities", "healthCheckTimeout"),
)


def read_llama_swap(root: Node, text: str, folder: str, environ: Mapping[str, str]) -> Outcome:
    """Return the models of a configuration; ``folder`` is its own, where relative paths are taken to begin.

    Raises ``SourceError`` for what llama-swap would refuse too.
    """
    outcome = Outcome(FORMAT)
    macros = Macros(dict(outcome.mapping(root, "macros", "")), environ)
    for key, node in root.members():
        if key in _GLOBAL:
            outcome.lost(node.line, key, _GLOBAL[key])
        elif key not in (*_READ, "healthCheckTimeout") and not key.startswith("x-"):  # what anchors are kept under
            outcome.lost(node.line, key, "is not known to be a setting of llama-swap")
    models = [_model(name, node, macros, outcome) for name, node in outcome.mapping(root, "models", "")]
    programs = _programs(models, outcome)
    for model in models:
        if model.words:
            EntryReader(model, outcome, text.split("\n"), folder, programs).read(root)
    usable = [model for model in models if model.entry]
    peers = carry_routing(root, macros, usable, outcome)
    for model in (*usable, *peers):
        outcome.add(model.entry, model.node, model.subject)
    _keys(root, outcome)
    if models and not any("ttl" in dict(model.node.members()) for model in models) and root["globalTTL"] is None:
        why = (
            "nothing sets a ttl, so llama-swap unloads no idle model; rolecall does after idle_unload_s of its profile"
        )
        outcome.changed(models[0].node.line, "models", f"{why}, and idle_unload_s of an entry goes first (0: never)")
    return outcome.finished()


def _model(name: str, node: Node, macros: Macros, outcome: Outcome) -> Model:
    subject = f"models.{name}"
    if not isinstance(node.value, dict):
        outcome.wrong(node.line, subject, f"must be a mapping, not {node.kind}")
        return Model(name, node, [], {})
    for key, each in node.members():
        if key in _MODEL and each.value is not False:
            outcome.lost(each.line, f"{subject}.{key}", _MODEL[key])
        elif key not in (*_MODEL, *_READ_OF_MODEL):
            outcome.lost(each.line, f"{subject}.{key}", "is not known to be a field of llama-swap")
    own = dict(outcome.mapping(node, "macros", subject))
    unused = (*_MODEL, "macros")
    kept = {key: _without_comments(each) if key == "cmd" else each for key, each in node.members() if key not in unused}
    model_macros = macros.for_model(name, own, node.line)
    filled = model_macros.expand(Node(kept, node.line, node.end_line), subject, outcome)
    filled = _with_keys(filled, model_macros, subject, outcome)
    env, words = _command(filled, subject, outcome)
    return Model(name, filled, words, env)


def _without_comments(node: Node) -> Node:
    if not isinstance(node.value, str):
        return node
    lines = (line for line in node.value.split("\n") if not line.strip().startswith("#"))
    return Node("\n".join(lines), node.line, node.end_line)


def _with_keys(node: Node, macros: Macros, subject: str, outcome: Outcome) -> Node:
    """Return a model with the macros in the keys of ``setParamsByID`` filled in, the only keys that have any."""
    filters = node["filters"]
    params = filters["setParamsByID"] if filters is not None else None
    if filters is None or params is None:
        return node
    subject = f"{subject}.filters.setParamsByID"
    ids = {macros.key(key, each.line, subject, outcome): each for key, each in params.members()}
    changed = Node(
        {**dict(filters.members()), "setParamsByID": Node(ids, params.line, params.end_line)},
        filters.line,
        filters.end_line,
    )
    return Node({**dict(node.members()), "filters": changed}, node.line, node.end_line)


def _command(node: Node, subject: str, outcome: Outcome) -> tuple[dict[str, str], list[str]]:
    cmd = outcome.text(node, "cmd", subject)
    if cmd is None:
        if node["cmd"] is None:
            outcome.wrong(node.line, subject, "has no cmd")
        return {}, []
    try:
        env, words = without_env(split_command(cmd))
    except ValueError as error:
        outcome.wrong(node["cmd"].line if node["cmd"] else node.line, f"{subject}.cmd", f"cannot be split: {error}")
        return {}, []
    if not words:
        outcome.wrong(node.line, f"{subject}.cmd", "is empty")
    return env, words


def _programs(models: list[Model], outcome: Outcome) -> dict[str, str]:
    """Return the programs that entries without a command can rely on, by kind, and the settings that name them."""
    found = [(model, known) for model in models if (known := program_of(model.words)) is not None]
    programs = {}
    for kind, setting in ((LLAMA_SERVER, "llama_server"), ("vllm", "vllm_command")):
        program = most_used(each for _, (its_kind, each) in found if its_kind == kind)
        if program is None:
            continue
        programs[kind] = program
        if "/" in program:
            line = next(model.node.line for model, known in found if known == (kind, program))
            outcome.todo(line, "models", f"{program} is named by {setting} in rolecall.toml, for all models")
            outcome.settings.append(f'{setting} = "{program}"')
        if kind == LLAMA_SERVER and "/" not in program and program != LLAMA_SERVER:
            outcome.settings.append(f'{setting} = "{program}"')
    return programs


def _keys(root: Node, outcome: Outcome) -> None:
    keys = root["apiKeys"]
    if keys is not None:
        text = (
            "keys are not copied: `rolecall keys add NAME` makes one for each caller, and api_keys_file asks for them"
        )
        outcome.todo(keys.line, "apiKeys", text)
