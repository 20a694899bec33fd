"""How an engine is made from its entry: port, GPUs, fingerprint; and taken over from an earlier run."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from builders import entry
from fakes import FakeBackend, FakeLauncher
from rolecall.backends.base import Call, Launch, RemoteLoad
from rolecall.core.models import ModelEntry
from rolecall.core.vram import HOST, Placement, Share
from rolecall.runtime.engine import Engine, EngineMaker
from rolecall.runtime.instance import Instance
from rolecall.runtime.leftovers import EngineRoll
from rolecall.runtime.remote import RemoteInstance
from unused_ports import unused_port, unused_ports

PORTS = unused_ports(10)

ON_G0: Placement = (Share("g0", 6000, 16_000),)
ON_TWO: Placement = (Share("g1", 5000, 16_000), Share("g0", 5000, 16_000))
IN_RAM: Placement = (Share(HOST, 6000, 64_000),)


@dataclass
class Words(FakeBackend):
    """A backend whose command line holds the entry's arguments and the port; ``env`` is what it asks for itself."""

    env: Mapping[str, str] = field(default_factory=dict)
    error: Exception | None = None

    def launch(self, entry: ModelEntry, port: int, placement: Placement = ()) -> Launch:
        """Return the launch, or raise the error that the test gave."""
        if self.error is not None:
            raise self.error
        made = super().launch(entry, port, placement)
        return replace(made, argv=(entry.name, *entry.backend_config.extra_args, str(port)), env=self.env)


class Daemon:
    """A backend whose models a daemon of somebody else loads; the rest is as in ``FakeBackend``."""

    def __init__(self, held_mb: int | None) -> None:
        self.has_port = False
        self._fake, self._held_mb = FakeBackend(), held_mb

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fake, name)

    def launch(self, entry: ModelEntry, port: int, placement: Placement = ()) -> RemoteLoad:
        """Return calls that nobody makes here."""
        call = Call("GET", "http://127.0.0.1:9/api")
        return RemoteLoad("http://127.0.0.1:9/v1", call, call, call, lambda _: self._held_mb)


Make = Callable[[Any], EngineMaker]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Return what makes a maker of engines of one backend."""
    launcher = FakeLauncher()
    async with launcher.http() as http:
        yield lambda backend: EngineMaker(launcher, http, lambda _: backend, EngineRoll(tmp_path))


@contextlib.contextmanager
def taken(*ports: int) -> Iterator[None]:
    """Listen on all these ports, but for those that somebody has already."""
    with contextlib.ExitStack() as stack:
        for port in ports:
            with contextlib.suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
        yield


def launch_of(engine: Engine) -> Launch:
    """Return what the engine will be started with."""
    assert isinstance(engine.instance, Instance)
    return engine.instance._launch


class TestPort:
    async def test_any_free_port(self, make: Make) -> None:
        """Without a wish of anybody an engine gets a port of its own, and its command line names it."""
        engine = make(Words()).make(entry(), ON_G0)
        with socket.create_server(("127.0.0.1", engine.port)):
            pass
        with pytest.raises(OSError, match="in use"), socket.socket() as without_sharing:
            without_sharing.bind(("127.0.0.1", engine.port))
        assert launch_of(engine).argv == ("alpha", str(engine.port))
        assert launch_of(engine).base_url == f"http://127.0.0.1:{engine.port}/v1"

    async def test_the_entrys_own_port_goes_first(self, make: Make) -> None:
        """``backend_config.port`` is taken, though the driver has ports of its own."""
        port = unused_port()
        assert make(Words(ports=PORTS)).make(entry(backend_config={"port": port}), ON_G0).port == port

    async def test_the_entrys_own_port_is_taken(self, make: Make) -> None:
        """Somebody else on it is an error that names him."""
        port = unused_port()
        with taken(port), pytest.raises(OSError, match=rf"port {port} is taken by process {os.getpid()} \("):
            make(Words()).make(entry(backend_config={"port": port}), ON_G0)

    async def test_the_entrys_own_port_is_another_models(self, make: Make) -> None:
        """A model that is loading on it may not listen yet: the port is taken all the same."""
        port = unused_port()
        with pytest.raises(OSError, match=f"port {port} is that of another model"):
            make(Words()).make(entry(backend_config={"port": port}), ON_G0, {port})

    async def test_the_first_free_port_of_the_drivers(self, make: Make) -> None:
        """The first is taken that nobody listens on."""
        assert make(Words(ports=PORTS)).make(entry(), ON_G0).port == PORTS[0]
        with taken(*PORTS[:2]):
            assert make(Words(ports=PORTS)).make(entry(), ON_G0).port == PORTS[2]

    async def test_two_that_load_side_by_side_get_two_ports(self, make: Make) -> None:
        """An engine that has not bound its port yet has it all the same."""
        maker = make(Words(ports=PORTS))
        first = maker.make(entry("a"), ON_G0).port
        assert maker.make(entry("b"), ON_G0, {first}).port == PORTS[1]

    async def test_none_of_the_drivers_ports_is_free(self, make: Make) -> None:
        """All ten taken is an error that names them, and who has the first."""
        maker = make(Words(ports=PORTS))
        first, last = PORTS[0], PORTS[-1]
        with taken(*PORTS), pytest.raises(OSError, match=f"ports {first} to {last} are all taken, {first} by process"):
            maker.make(entry(), ON_G0)
        with pytest.raises(OSError, match=f"are all taken, {first} by models that are loaded"):
            maker.make(entry(), ON_G0, PORTS)


class TestMove:
    async def test_it_gets_another_port(self, make: Make) -> None:
        """The command line names the new one, which is neither the old one nor another engine's."""
        maker = make(Words(ports=PORTS))
        engine = maker.make(entry(), ON_G0)
        lost, instance = engine.port, engine.instance
        assert maker.move(engine, {lost, lost + 1})
        assert engine.port not in {lost, lost + 1}
        assert engine.held_port is None
        assert launch_of(engine).argv == ("alpha", str(engine.port))
        assert engine.instance is not instance

    async def test_one_that_was_held_is_let_go(self, make: Make) -> None:
        """A server that shares its port with no other socket could not have it; all that follow are its own."""
        maker = make(Words())
        engine = maker.make(entry(), ON_G0)
        lost = engine.port
        maker.note_ended(engine)
        assert maker.move(engine, ())
        again = maker.make(entry(), ON_G0)
        for port in (lost, engine.port, again.port):
            with socket.socket() as server:
                server.bind(("127.0.0.1", port))

    async def test_not_for_ever(self, make: Make) -> None:
        """Who loses port after port is given up after the third."""
        maker = make(Words())
        engine = maker.make(entry(), ON_G0)
        assert [maker.move(engine, ()) for _ in range(4)] == [True, True, True, False]

    async def test_a_fixed_port_is_never_changed(self, make: Make) -> None:
        """Clients may know ``backend_config.port``."""
        maker = make(Words())
        engine = maker.make(entry(backend_config={"port": unused_port()}), ON_G0)
        assert not maker.move(engine, ())

    async def test_no_other_port_is_free(self, make: Make) -> None:
        """The first failure stands."""
        maker = make(Words(ports=PORTS))
        engine = maker.make(entry(), ON_G0)
        assert not maker.move(engine, PORTS)


class TestDevices:
    @pytest.mark.parametrize(("placement", "seen"), [(ON_G0, "g0"), (ON_TWO, "g1,g0")])
    async def test_only_the_gpus_of_its_placement_are_visible(
        self, make: Make, placement: Placement, seen: str
    ) -> None:
        """The engine sees its GPUs by UUID, in the order of the placement, and keeps its own variables."""
        engine = make(Words(env={"A": "1"})).make(entry(), placement)
        assert launch_of(engine).env == {"A": "1", "CUDA_VISIBLE_DEVICES": seen}

    @pytest.mark.parametrize("placement", [IN_RAM, ()])
    async def test_without_a_gpu_nothing_is_said(self, make: Make, placement: Placement) -> None:
        """In host RAM, or placed nowhere, an engine is started with the environment as it is."""
        assert launch_of(make(Words()).make(entry(), placement)).env == {}

    async def test_the_entrys_own_choice_stands(self, make: Make) -> None:
        """Who sets ``CUDA_VISIBLE_DEVICES`` himself has his reasons."""
        engine = make(Words(env={"CUDA_VISIBLE_DEVICES": "3"})).make(entry(), ON_G0)
        assert launch_of(engine).env == {"CUDA_VISIBLE_DEVICES": "3"}

    async def test_what_it_was_given(self, make: Make) -> None:
        """What is reserved counts by GPU; host RAM, which nobody measures, does not."""
        maker = make(Words())
        assert maker.make(entry(), ON_TWO).reserved_mb == {"g0": 5000, "g1": 5000}
        assert maker.make(entry(), IN_RAM).reserved_mb == {}


class TestKinds:
    async def test_one_that_somebody_else_runs_has_no_process(self, make: Make) -> None:
        """It has neither port nor instance, and nothing of it could be adopted."""
        engine = make(FakeBackend(managed=False)).make(entry(), ())
        assert (engine.port, engine.instance, engine.fingerprint, engine.pid) == (0, None, "", None)
        assert engine.members() == frozenset()
        assert engine.told_mb() is None

    async def test_a_daemons_model_lies_in_equal_parts(self, make: Make) -> None:
        """What a daemon says that a model holds is spread over its GPUs, rounded up; before that nothing is known."""
        engine = make(Daemon(9001)).make(entry(backend="ollama"), ON_TWO)
        assert isinstance(engine.instance, RemoteInstance)
        assert engine.port == 0
        assert engine.told_mb() is None
        engine.instance.held_mb = 9001
        assert engine.told_mb() == {"g0": 4501, "g1": 4501}

    @pytest.mark.parametrize(
        ("entry_s", "expected_s"),
        [(None, 120), (7, 7)],
    )
    async def test_how_long_a_load_may_take(self, make: Make, entry_s: float | None, expected_s: float) -> None:
        """The entry's ``load_timeout_s`` goes before the setting."""
        engine = make(Words()).make(entry(load_timeout_s=entry_s), ON_G0)
        assert isinstance(engine.instance, Instance)
        assert engine.instance._load_timeout_s == expected_s

    async def test_one_that_cannot_be_launched(self, make: Make) -> None:
        """What the backend has against the entry reaches the caller."""
        with pytest.raises(ValueError, match="no such flag"):
            make(Words(error=ValueError("no such flag"))).make(entry(), ON_G0)


class TestFingerprint:
    def of(self, make: Make, placement: Placement = ON_G0, env: Mapping[str, str] | None = None, **config: Any) -> str:
        """Return the fingerprint of an engine with this configuration; its port is none that clients are given."""
        made = make(Words(env=env or {})).make(entry(backend_config={"port": 17_001, **config}), placement)
        return made.fingerprint

    async def test_the_same_twice(self, make: Make) -> None:
        """Two engines started in the same way are the same, in whatever order variables stand."""
        assert self.of(make) == self.of(make)
        assert self.of(make, env={"A": "1", "B": "2"}) == self.of(make, env={"B": "2", "A": "1"})

    async def test_whatever_changes_the_process_changes_it(self, make: Make) -> None:
        """Arguments, variables, GPUs and the port are all told apart."""
        kinds = [
            self.of(make),
            self.of(make, ON_TWO),
            self.of(make, env={"A": "1"}),
            self.of(make, extra_args=["--jinja"]),
            self.of(make, port=17_002),
        ]
        assert len(set(kinds)) == len(kinds)

    async def test_the_reserved_memory_alone_does_not(self, make: Make) -> None:
        """A figure that was corrected meanwhile is no reason to start a running engine anew."""
        assert self.of(make, (Share("g0", 1, 16_000),)) == self.of(make, (Share("g0", 9999, 16_000),))


class TestProgress:
    async def test_an_answer_that_gets_on(self, make: Make) -> None:
        """An engine gets on as long as one of its answers moved a moment ago."""
        engine = make(Words()).make(entry(), ON_G0)
        assert not engine.is_progressing(10)
        moved: list[bool] = []
        engine.leases.add(_Moving(moved))  # type: ignore[arg-type] # of a lease only this one question is asked
        assert not engine.is_progressing(10)
        moved.append(True)
        assert engine.is_progressing(10)

    async def test_nothing_is_known_of_the_progress_of_others_engines(self, make: Make) -> None:
        """One that somebody else runs has none; one of ours has some once it is started."""
        assert make(FakeBackend(managed=False)).make(entry(), ()).progress(5).fraction is None
        engine = make(Words()).make(entry(), ON_G0)
        assert engine.progress(5).fraction is None
        assert isinstance(engine.instance, Instance)
        engine.instance._busy_since = time.monotonic() - 2.5
        assert 0.3 < (engine.progress(5).fraction or 0) < 0.9


class _Moving:
    def __init__(self, moved: list[bool]) -> None:
        self._moved = moved

    def moved_within(self, seconds: float) -> bool:
        return seconds > 0 and bool(self._moved)
