"""Which program a configuration belongs to, by what is in it."""

from __future__ import annotations

from collections.abc import Mapping

from rolecall.elsewhere.litellm import read_litellm
from rolecall.elsewhere.llama_swap import read_llama_swap
from rolecall.elsewhere.outcome import Outcome
from rolecall.elsewhere.registry_rows import read_rows
from rolecall.elsewhere.source import read_source
from rolecall.elsewhere.tree import Node, SourceError

_LLAMA_SWAP = {"peers", "macros", "healthCheckTimeout", "startPort", "groups", "hooks", "matrix", "selectors"}
_LITELLM = {"model_list", "litellm_settings", "router_settings", "general_settings"}


def read_configuration(data: bytes, folder: str, environ: Mapping[str, str]) -> Outcome:
    """Return what a file of any of the known kinds comes to; ``folder`` is the one it lies in.

    Raises ``SourceError`` that says what is wrong in which line, or that the file is of no known kind.
    """
    root = read_source(data)
    if isinstance(root.value, list):
        return read_rows(root)
    if not isinstance(root.value, dict):
        raise SourceError(f"holds {root.kind}, and no configuration of llama-swap, LiteLLM or ImageWorks")
    keys = set(root.value)
    models = root["models"]
    if keys & _LITELLM:
        return read_litellm(root, environ)
    if models is not None and isinstance(models.value, list):
        return read_rows(root)
    if (models is not None and _has_commands(models)) or keys & _LLAMA_SWAP:
        return read_llama_swap(root, data.decode("utf-8-sig"), folder, environ)
    named = ", ".join(sorted(keys)[:8])
    raise SourceError(
        f"is no configuration of llama-swap (models with cmd), LiteLLM (model_list) or ImageWorks (a list of entries): "
        f"its keys are {named}"
    )


def _has_commands(models: Node) -> bool:
    if not isinstance(models.value, dict):
        return True
    return not models.value or any(
        isinstance(node.value, dict) and node["cmd"] is not None for _, node in models.members()
    )
