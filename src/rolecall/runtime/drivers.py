"""Which driver an entry's ``backend`` names."""

from __future__ import annotations

from collections.abc import Callable

from rolecall.backends.base import Backend, Places
from rolecall.backends.custom import CustomCommand
from rolecall.backends.external import OpenAIServer
from rolecall.backends.llama_server import LlamaServer
from rolecall.backends.ollama import OllamaDaemon
from rolecall.backends.vllm import VllmServer, find_vllm
from rolecall.errors import ConfigurationError
from rolecall.runtime.engines import find_llama_engine
from rolecall.settings import Settings, located


def backends(settings: Settings) -> Callable[[str], Backend]:
    """Return the driver for a backend's name; raises ``ConfigurationError`` for a llama.cpp engine that is none."""
    places = Places(settings.config_dir, settings.state_dir)
    try:
        engine = find_llama_engine(settings.llama_server)
    except ConfigurationError as error:
        raise located(settings, error) from None
    llama = LlamaServer(places, engine)
    known: dict[str, Backend] = {llama.name: llama, OpenAIServer.name: OpenAIServer()}
    known[VllmServer.name] = VllmServer(
        places, find_vllm(settings.vllm_command), settings.vllm_start_timeout_s, settings.vllm_stop_timeout_s
    )
    known[OllamaDaemon.name] = OllamaDaemon(settings.ollama_base_url)

    def driver(name: str) -> Backend:
        found = known.get(name)
        return CustomCommand(places, name) if found is None else found

    return driver
