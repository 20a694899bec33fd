"""Models that are to be started otherwise, once they are idle: after a change of sizes that may wait for that."""

from __future__ import annotations

import builders
from builders import ask, configured, spec
from rolecall.core.events import BecameReady, Exited, Freed, Released, Spec, UnloadRequested
from rolecall.core.lifecycle import State


class Bench(builders.Bench):
    """``change`` gives models new specs, to be taken in when they are idle."""

    def change(self, *specs: Spec) -> list[str]:
        return self.post(configured(*specs, at_idle=True))


def sized(name: str, tokens: int, mb: int = 300) -> Spec:
    return spec(name, mb, generation_defaults={"ctx_size": tokens}, max_parallel=2)


def busy(*others: Spec) -> Bench:
    """Return a bench with model ``a``, which answers request 1."""
    bench = Bench(sized("a", 1000), *others)
    bench.post(ask(1, "a"), BecameReady("a"))
    return bench


def test_a_model_that_answers_goes_on_until_it_is_idle() -> None:
    """Its answers are finished, newer requests are served too, and then it is started anew without being asked for."""
    bench = busy()
    assert bench.change(sized("a", 2000)) == []
    assert bench.scheduler.is_outdated("a")
    assert bench.post(ask(2, "a")) == ["grant 2 a"]
    assert bench.post(Released("a")) == []
    assert bench.post(Released("a")) == ["stop a"]
    assert bench.post(Exited("a")) == []
    assert bench.post(Freed("a")) == ["start a"]
    assert not bench.scheduler.is_outdated("a")
    assert bench.post(BecameReady("a"), ask(3, "a")) == ["grant 3 a"]


def test_an_idle_model_is_started_anew_at_once() -> None:
    """There is nothing to wait for."""
    bench = busy()
    bench.post(Released("a"))
    assert bench.change(sized("a", 2000)) == ["stop a"]
    assert bench.post(Exited("a"), Freed("a")) == ["start a"]


def test_a_model_that_loads_is_started_anew_at_once() -> None:
    """Nobody has an answer of it yet, and who waits goes on waiting."""
    bench = Bench(sized("a", 1000))
    bench.post(ask(1, "a"))
    assert bench.change(sized("a", 2000)) == ["stop a"]
    assert bench.post(Exited("a"), Freed("a")) == ["start a"]


def test_a_change_that_is_taken_back() -> None:
    """A model whose engine is right again before it was idle stays loaded."""
    bench = busy()
    bench.change(sized("a", 2000))
    bench.change(sized("a", 1000))
    assert not bench.scheduler.is_outdated("a")
    assert bench.post(Released("a")) == []


def test_another_change_of_the_registry_does_not_wait() -> None:
    """What differs by the registry drains at once, as ever; the same registry read again changes nothing."""
    bench = busy()
    bench.change(sized("a", 2000))
    assert bench.post(configured(sized("a", 2000))) == []
    assert bench.scheduler.is_outdated("a")
    assert bench.post(configured(sized("a", 3000)), ask(2, "a")) == []
    assert bench.scheduler.state("a") is State.STOPPING


def test_it_comes_back_only_into_what_is_free() -> None:
    """A model that has grown too large for what others leave is not brought back, and nobody goes for it."""
    bench = busy(spec("b", 500))
    bench.post(ask(2, "b"), BecameReady("b"), Released("b"))
    bench.change(sized("a", 2000, 600), spec("b", 500))
    assert bench.post(Released("a"), Exited("a"), Freed("a")) == ["stop a"]
    assert bench.post(ask(3, "a")) == ["stop b"]


def test_it_waits_for_a_load_that_is_under_way() -> None:
    """One load at a time: it is started when the other model is there."""
    bench = busy(spec("b", 500))
    bench.change(sized("a", 2000), spec("b", 500))
    assert bench.post(ask(2, "b"), Released("a")) == ["start b", "stop a"]
    assert bench.post(Exited("a"), Freed("a")) == []
    assert bench.post(BecameReady("b")) == ["grant 2 b", "start a"]


def test_who_waits_for_a_load_goes_first() -> None:
    """While somebody waits for another model nothing is brought back."""
    bench = busy(spec("b", 900))
    bench.change(sized("a", 2000), spec("b", 900))
    assert bench.post(ask(2, "b"), Released("a")) == ["stop a"]
    assert bench.post(Exited("a"), Freed("a")) == ["start b"]


def test_a_model_that_was_unloaded_by_hand_stays_away() -> None:
    """An unload in the meantime is meant."""
    bench = busy()
    bench.change(sized("a", 2000))
    bench.post(Released("a"), UnloadRequested("a"))
    assert bench.post(Exited("a"), Freed("a")) == []


def test_a_model_that_is_not_there_any_more_stays_away() -> None:
    """What cannot be served is not started."""
    bench = busy()
    bench.change(sized("a", 2000))
    bench.post(Released("a"))
    gone = spec("a", 300, unavailable="not installed", generation_defaults={"ctx_size": 2000}, max_parallel=2)
    assert bench.post(configured(gone), Exited("a"), Freed("a")) == []


def test_servers_of_others_have_nothing_to_be_started() -> None:
    """A changed entry of a server that somebody else runs holds at once."""
    bench = Bench(spec("s", 0, managed=False))
    bench.post(ask(1, "s"), BecameReady("s"))
    changed = spec("s", 0, managed=False, served_model_id="other")
    assert not bench.scheduler.is_outdated("unknown")
    bench.change(changed)
    assert bench.scheduler.state("s") is State.STOPPING
