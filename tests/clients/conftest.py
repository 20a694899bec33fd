"""One rolecall for all clients: the demo models on the real engine, and fake engines for what must go wrong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from clients.adapters import IS_COMPLETE
from clients.entries import FAKES, REAL, SHIPPED
from clients.slow_loads import SlowLoads, slow_loads
from harness import Rolecall

# `make test` has no client but OpenAI's, of another version, and curl.
ELSEWHERE = ("anthropic", "documented", "langchain", "litellm", "llama_index", "npm", "slow_loads")
collect_ignore = [] if IS_COMPLETE else [f"test_{name}.py" for name in ELSEWHERE]


def pytest_configure(config: pytest.Config) -> None:
    """Leave the clients' own warnings out of the summary."""
    for words in ("Item.*ReadOnly", "Accessing the 'model_"):
        config.addinivalue_line("filterwarnings", f"ignore:{words}")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run rolecall with the shipped registry on a fresh state folder, and the entries of these tests."""
    if not IS_COMPLETE:
        for package in ("xllamacpp", "gguf"):
            pytest.importorskip(package, reason="the real engine needs an extra: rolecall[llama]")
    folder = tmp_path_factory.mktemp("clients")
    with Rolecall(folder, [*SHIPPED, *REAL, *FAKES], settings={"llama_server": "embedded"}) as running:
        yield running
        assert "Traceback" not in running.words()


@pytest.fixture
def base_url(server: Rolecall) -> str:
    """What a client is configured with."""
    return f"{server.base_url}/v1"


@pytest.fixture(scope="session", autouse=True)
def slow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlowLoads | None]:
    """Begin with what takes longest if it is among the tests that are run: it goes on beside the others."""
    if any(item.path.stem == "test_slow_loads" for item in request.session.items):
        with slow_loads(tmp_path_factory.mktemp("slow")) as running:
            yield running
    else:
        yield None
