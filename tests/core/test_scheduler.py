"""The scheduler's rules, one by one: an event and its time in, effects in words out."""

from __future__ import annotations

from typing import Any

import pytest

import builders
from builders import configured, entry, spec
from rolecall.core.events import (
    Arrived,
    BecameReady,
    Cancelled,
    Event,
    Exited,
    Grant,
    Purpose,
    Reject,
    Released,
    ShutdownRequested,
    Spec,
    Tick,
    UnloadRequested,
)
from rolecall.core.lifecycle import State
from rolecall.core.selection import Demand, Rules
from rolecall.core.slot import BACKOFF_LIMIT_S, SETTLED_S
from rolecall.errors import RolecallError


class Bench(builders.Bench):
    """One whose engines' memory is free at once when they exit, as the driver shows it mostly."""

    def __init__(self, *specs: Spec, **fields: Any) -> None:
        super().__init__(*specs, frees=True, **fields)

    def error(self) -> RolecallError:
        """Return the error of the one rejection among the last effects."""
        (error,) = (effect.error for effect in self.effects if isinstance(effect, Reject))
        return error

    def states(self) -> dict[str, str]:
        return {row.name: row.state.value for row in self.scheduler.status(self.now)}


def named(waiter: int, model: str) -> Arrived:
    return Arrived(waiter, Demand(), (model,))


def load(waiter: int, model: str, purpose: Purpose = "hand") -> Arrived:
    return Arrived(waiter, Demand(), (model,), purpose)


def role(waiter: int, *models: str, **demand: Any) -> Arrived:
    return Arrived(waiter, Demand(role="r", **demand), models)


def player(name: str, priority: float, footprint_mb: int | None = 1000, **fields: Any) -> Spec:
    """Return a model that plays the role ``r``."""
    return spec(name, footprint_mb, role_priority={"r": priority}, **fields)


# -- the way of one request


def test_cold_model_is_started_once_and_serves() -> None:
    """A request for a cold model starts it, is granted when it is ready, and leaves it loaded."""
    bench = Bench(spec("a"))
    assert bench.post(named(1, "a")) == ["start a"]
    assert bench.post(Tick()) == []
    assert bench.post(BecameReady("a")) == ["grant 1 a"]
    assert bench.post(Released("a")) == []
    assert bench.post(named(2, "a")) == ["grant 2 a"]
    assert bench.states() == {"a": "ready"}


def test_fifty_requests_for_a_cold_model_start_it_once() -> None:
    """Single flight: fifty simultaneous requests are one start, and are granted in order of arrival."""
    bench = Bench(spec("a", max_parallel=4))
    effects = [bench.post(named(number, "a")) for number in range(50)]
    assert effects == [["start a"], *([[]] * 49)]
    granted = bench.post(BecameReady("a"))
    while bench.scheduler.waiting():
        granted += bench.post(Released("a"))
    assert granted == [f"grant {number} a" for number in range(50)]


def test_grant_carries_the_selection() -> None:
    """A grant says which model was chosen and why."""
    bench = Bench(player("a", 80))
    bench.post(role(1, "a"))
    bench.post(BecameReady("a"))
    (grant,) = bench.effects
    assert isinstance(grant, Grant)
    assert grant.selection.best().name == "a"
    assert grant.selection.reason == "highest priority that fits"


def test_no_more_in_flight_than_allowed() -> None:
    """A ready model serves ``max_parallel`` requests; the next is granted when one is over."""
    bench = Bench(spec("a", max_parallel=2))
    bench.ready("a")
    assert bench.post(named(1, "a"), named(2, "a"), named(3, "a")) == ["grant 1 a", "grant 2 a"]
    assert bench.post(Released("a")) == ["grant 3 a"]


def test_two_models_that_fit_live_side_by_side() -> None:
    """What fits beside the loaded models costs none of them its place."""
    bench = Bench(spec("a", 400), spec("b", 600))
    bench.ready("a", "b")
    assert bench.states() == {"a": "ready", "b": "ready"}


def test_unknown_size_takes_the_whole_budget() -> None:
    """A model whose size nobody knows is given everything there is."""
    bench = Bench(spec("a", 1), spec("b", None))
    bench.ready("a")
    assert bench.post(named(1, "b")) == ["stop a"]
    assert bench.post(Exited("a")) == ["start b"]
    assert bench.scheduler.ledger.held_mb("b") == 1000


def test_external_engine_takes_no_memory_and_no_turn() -> None:
    """An engine that somebody else runs is reached at once, while another loads, and is never in the way."""
    bench = Bench(spec("a"), spec("far", 0, managed=False), max_models=1)
    assert bench.post(named(1, "a"), named(2, "far")) == ["start a", "start far"]
    assert bench.post(BecameReady("far")) == ["grant 2 far"]
    assert bench.scheduler.ledger.used_mb == 1000


def test_external_engine_waits_for_no_load() -> None:
    """An engine that somebody else runs is reached at once, however many wait for loads before it."""
    bench = Bench(spec("a"), spec("b"), spec("far", 0, managed=False))
    assert bench.post(named(1, "a"), named(2, "b")) == ["start a"]
    assert bench.post(named(3, "far"), named(4, "far")) == ["start far"]
    assert bench.post(BecameReady("far")) == ["grant 3 far"]


# -- refusals


def test_request_that_nobody_can_serve_is_refused_at_once() -> None:
    """What could never be served does not wait: too large, not installed, unknown."""
    bench = Bench(spec("big", 2000), spec("absent", unavailable="not installed"))
    assert bench.post(named(1, "big"), named(2, "absent"), named(3, "unheard of")) == [
        "reject 1 model_too_large",
        "reject 2 model_not_found",
        "reject 3 model_not_found",
    ]
    assert bench.scheduler.waiting() == 0


def test_full_queue_turns_the_newest_away() -> None:
    """Beyond ``max_queue`` a request is told to come back; one that can be served at once is served all the same."""
    bench = Bench(spec("a", 500), spec("b", 500), max_queue=2)
    bench.ready("b")
    assert bench.post(named(1, "a"), named(2, "a"), named(3, "a")) == ["start a", "reject 3 queue_full"]
    assert bench.error().message == "The queue is full: 2 requests are waiting."
    assert bench.error().retry_after_s == 5
    assert bench.post(named(4, "b")) == ["grant 4 b"]


def test_request_that_is_turned_away_starts_nothing() -> None:
    """Nothing is loaded or stopped for a request that finds the queue full."""
    bench = Bench(spec("a", 500), spec("b", 500), spec("c", 500), max_queue=1)
    bench.ready("a", "b")
    assert bench.post(named(1, "b"), named(2, "b")) == ["grant 1 b"]
    assert bench.post(named(3, "c")) == ["reject 3 queue_full"]


def test_shutdown_refuses_all_who_wait_and_come() -> None:
    """From the shutdown on nobody is admitted and nothing starts; what is in flight ends in peace."""
    bench = Bench(spec("a", 500), spec("b", 500))
    bench.ready("a")
    assert bench.post(named(1, "a"), named(2, "a"), named(3, "b")) == ["grant 1 a", "start b"]
    assert bench.post(ShutdownRequested()) == ["reject 2 shutting_down", "reject 3 shutting_down"]
    assert bench.post(named(4, "a")) == ["reject 4 shutting_down"]
    assert bench.post(Released("a"), UnloadRequested("a"), UnloadRequested("b")) == ["stop a", "stop b"]
    assert bench.post(Exited("a"), Exited("b")) == []


# -- cancellation


def test_cancelled_waiter_is_forgotten() -> None:
    """A client that left is granted nothing; one that is not waiting is no error."""
    bench = Bench(spec("a"))
    bench.post(named(1, "a"), named(2, "a"))
    assert bench.post(Cancelled(1), Cancelled(1), Cancelled(99)) == []
    assert bench.post(BecameReady("a")) == ["grant 2 a"]


def test_load_whose_clients_left_gives_way() -> None:
    """A load that nobody waits for any longer is broken off as soon as another model is wanted."""
    bench = Bench(spec("a"), spec("b"))
    bench.post(named(1, "a"))
    assert bench.post(Cancelled(1)) == []
    assert bench.post(named(2, "b")) == ["stop a"]
    assert bench.post(BecameReady("a")) == []
    assert bench.post(Exited("a")) == ["start b"]


def test_load_whose_clients_wait_is_not_broken_off() -> None:
    """A load that somebody waits for is finished and serves before it makes room."""
    bench = Bench(spec("a"), spec("b"))
    assert bench.post(named(1, "a"), named(2, "b")) == ["start a"]
    assert bench.post(BecameReady("a")) == ["grant 1 a"]
    assert bench.post(Released("a")) == ["stop a"]


def test_pinned_load_is_not_broken_off() -> None:
    """A pinned model that nobody waits for any longer is loaded to its end."""
    bench = Bench(spec("a", 500, pinned=True), spec("b", 500))
    bench.post(named(1, "a"), Cancelled(1))
    assert bench.post(named(2, "b")) == []
    assert bench.post(BecameReady("a")) == ["start b"]


# -- making room


def test_idle_model_makes_room() -> None:
    """A swap: the idle model is stopped, and the other one started only when its memory is free."""
    bench = Bench(spec("a"), spec("b"))
    bench.ready("a")
    assert bench.post(named(1, "b")) == ["stop a"]
    assert bench.post(Tick()) == []
    assert bench.post(Exited("a")) == ["start b"]
    assert bench.scheduler.status(bench.now)[0].error is None


def test_least_recently_used_makes_room() -> None:
    """Of two idle models the one that was used longer ago goes."""
    bench = Bench(spec("a", 500), spec("b", 500), spec("c", 500))
    bench.ready("a", "b")
    assert bench.post(named(1, "a"), Released("a"), at=10) == ["grant 1 a"]
    assert bench.post(named(2, "c")) == ["stop b"]


def test_number_of_models_is_a_limit_too() -> None:
    """A model makes room when there is memory but no place."""
    bench = Bench(spec("a", 1), spec("b", 1), max_models=1)
    bench.ready("a")
    assert bench.post(named(1, "b")) == ["stop a"]


def test_answer_in_flight_is_not_broken_off_for_a_swap() -> None:
    """A busy model makes room when its request is over, however long that takes."""
    bench = Bench(spec("a"), spec("b"))
    bench.ready("a")
    assert bench.post(named(1, "a"), named(2, "b")) == ["grant 1 a"]
    assert bench.post(Tick(), at=10_000) == []
    assert bench.post(Released("a")) == ["stop a"]


def test_one_load_at_a_time_in_order_of_arrival() -> None:
    """Two cold models load one after the other, although both fit."""
    bench = Bench(spec("a", 500), spec("b", 500))
    assert bench.post(named(1, "b"), named(2, "a")) == ["start b"]
    assert bench.post(BecameReady("b")) == ["grant 1 b", "start a"]


def test_small_model_passes_a_large_one_only_for_a_while() -> None:
    """What fits now is loaded before a large model that finds no room; once that was overtaken too long, no more."""
    bench = Bench(spec("busy", 500), spec("large", 1000), spec("small", 100), spec("late", 100), max_overtake_s=20)
    bench.ready("busy")
    assert bench.post(named(1, "busy"), named(2, "large"), named(3, "small")) == ["grant 1 busy", "start small"]
    assert bench.post(BecameReady("small"), Released("small")) == ["grant 3 small"]
    assert bench.post(named(4, "late"), at=bench.now + 20) == ["stop small"]
    assert bench.post(Exited("small"), Released("busy")) == ["stop busy"]
    assert bench.post(Exited("busy")) == ["start large"]


def test_model_that_is_leaving_comes_back() -> None:
    """A request during an unload waits for its end, and the model is started again."""
    bench = Bench(spec("a"))
    bench.ready("a")
    assert bench.post(UnloadRequested("a")) == ["stop a"]
    assert bench.post(named(1, "a")) == []
    assert bench.post(Exited("a")) == ["start a"]


# -- pinned models


def test_pinned_model_never_makes_room() -> None:
    """A request for what has no room beside a pinned model is told so, and the pinned one stays."""
    bench = Bench(spec("p", 600, pinned=True), spec("b", 500), spec("c", 100), spec("q", 100, pinned=True))
    bench.ready("p", "c")
    assert bench.post(named(1, "b")) == ["reject 1 unavailable"]
    assert bench.error().message == (
        "The model 'b' needs 500 MB, but pinned models (p) hold 600 of 1000 MB and 1 of 10 places; unpin one."
    )
    assert bench.states()["p"] == "ready"


def test_role_goes_on_to_what_fits_beside_the_pinned() -> None:
    """A role takes its next candidate if the best has no room beside a pinned model."""
    bench = Bench(spec("p", 600, pinned=True), player("big", 90, 500), player("small", 50, 400))
    bench.ready("p")
    assert bench.post(role(1, "big", "small")) == ["start small"]


def test_waiter_moves_on_when_a_pinned_model_takes_its_room() -> None:
    """Who waits for a model that has no room from now on is given the next candidate, or told why there is none."""
    bench = Bench(spec("p", 600, pinned=True), player("big", 90, 500), player("small", 50, 400), spec("x"))
    assert bench.post(named(1, "x"), named(2, "p"), role(3, "big", "small"), role(4, "big")) == ["start x"]
    assert bench.post(named(5, "p"), named(6, "p")) == []  # most wait for the pinned one
    assert bench.post(Cancelled(1), Exited("x")) == ["stop x", "start p"]
    assert bench.post(BecameReady("p")) == ["reject 4 unavailable", "grant 2 p", "start small"]


def test_pinned_model_is_not_unloaded_when_idle() -> None:
    """A pinned model stays, however long it is idle; asked to, it goes."""
    bench = Bench(spec("p", idle_unload_s=10, pinned=True))
    bench.ready("p")
    assert bench.post(Tick(), at=1000) == []
    assert bench.post(UnloadRequested("p")) == ["stop p"]


# -- fairness


def test_loaded_model_is_collated_but_not_for_ever() -> None:
    """Requests for the loaded model pass a waiting one for ``max_overtake_s``; then they wait behind it."""
    bench = Bench(spec("a"), spec("b"), max_overtake_s=20)
    bench.ready("a")
    assert bench.post(named(1, "a"), named(2, "b"), at=100) == ["grant 1 a"]
    assert bench.post(named(3, "a"), at=110) == []
    assert bench.post(Released("a"), at=119.9) == ["grant 3 a"]
    assert bench.post(named(4, "a"), at=120.5) == []
    assert bench.post(Released("a"), at=121) == ["stop a"]
    assert bench.post(Exited("a"), BecameReady("b"), at=125) == ["start b", "grant 2 b"]


def test_older_requests_of_the_model_in_the_way_are_served_first() -> None:
    """Whoever came before the overtaken request is served before the swap."""
    bench = Bench(spec("a"), spec("b"), max_overtake_s=20)
    bench.ready("a")
    bench.post(named(1, "a"), named(2, "a"), at=100)
    bench.post(named(3, "b"), at=101)
    bench.post(named(4, "a"), at=102)
    assert bench.post(Released("a"), at=130) == ["grant 2 a"]
    assert bench.post(Released("a"), at=140) == ["stop a"]


def test_only_who_is_in_the_way_drains() -> None:
    """A model that need not go serves on while another one drains."""
    bench = Bench(spec("a", 500), spec("b", 500), spec("c", 500), max_overtake_s=20)
    bench.ready("a", "b")
    bench.post(named(1, "a"), named(2, "b"), named(3, "c"), at=100)
    assert bench.post(named(4, "a"), named(5, "b"), at=121) == []
    assert bench.post(Released("a")) == ["grant 4 a"]
    assert bench.post(Released("b")) == ["stop b"]


def test_busy_neighbours_cannot_take_turns_for_ever() -> None:
    """Two models that are never idle at the same time do not keep out a third that needs the room of one of them."""
    bench = Bench(spec("a", 500, max_parallel=2), spec("b", 500, max_parallel=2), spec("c", 500), max_overtake_s=20)
    bench.ready("a", "b")
    bench.post(named(1, "a"), named(2, "b"), at=100)
    bench.post(named(3, "c"), at=100.5)
    waiter = 10
    for second in range(101, 200):
        for model in ("a", "b"):
            waiter += 1
            bench.post(named(waiter, model), at=second)
            if bench.post(Released(model), at=second) == [f"stop {model}"]:
                assert second <= 123
                return
    pytest.fail("the third model was never let in")


def test_pinned_model_is_in_nobodys_way() -> None:
    """A pinned model serves on while another one drains, though it was loaded before."""
    specs = [spec("p", 500, pinned=True), spec("a", 500), spec("b", 500)]
    bench = Bench(*specs, max_overtake_s=20)
    bench.ready("p", "a")
    bench.post(named(1, "p"), named(2, "a"), named(3, "b"), at=100)
    assert bench.post(named(4, "p"), named(5, "a"), Released("p"), at=121) == ["grant 4 p"]
    assert bench.post(Released("a")) == ["stop a"]


def test_no_drain_while_there_is_room() -> None:
    """A request that waits for its load, not for room, holds nobody back."""
    bench = Bench(spec("a", 300), spec("b", 300), spec("c", 300), max_overtake_s=20)
    bench.ready("a")
    assert bench.post(named(1, "b"), named(2, "c"), at=100) == ["start b"]
    assert bench.post(named(3, "a"), at=150) == ["grant 3 a"]


# -- failures


def test_failed_start_is_told_and_backed_off() -> None:
    """Who waits for a start that failed, or comes soon after, is told the engine's words and when to come back."""
    bench = Bench(spec("a"))
    bench.post(named(1, "a"))
    assert bench.post(Exited("a", "exit code 1: out of memory"), at=10) == ["reject 1 model_start_failed"]
    assert bench.error().message == "The model 'a' did not start: exit code 1: out of memory"
    assert bench.error().retry_after_s == 1
    assert bench.post(named(2, "a"), at=10.5) == ["reject 2 model_start_failed"]
    assert bench.error().retry_after_s == 0.5
    assert bench.post(named(3, "a"), at=11) == ["start a"]


def test_backoff_doubles_up_to_a_minute() -> None:
    """Each failed start in a row doubles the pause: 1, 2, 4 … 60 s; a minute is the most."""
    bench = Bench(spec("a"))
    pauses = []
    for waiter in range(8):
        bench.post(named(waiter, "a"), at=bench.now + BACKOFF_LIMIT_S)
        bench.post(Exited("a"))
        pauses.append(bench.error().retry_after_s)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_next_candidate_is_tried_after_a_failed_start() -> None:
    """Who waits by role for a start that failed is given the next candidate; the last one's failure is told."""
    bench = Bench(player("a", 90), player("b", 80))
    assert bench.post(role(1, "a", "b")) == ["start a"]
    assert bench.post(Exited("a", "broken a"), at=10) == ["start b"]
    assert bench.post(Exited("b", "broken b"), at=10.5) == ["reject 1 model_start_failed"]
    assert bench.error().message == "The model 'a' did not start: broken a"
    assert bench.error().retry_after_s == 0.5


def test_a_crash_is_called_a_crash() -> None:
    """Who is turned away during the pause after a crash is told that the model crashed, not that it did not start."""
    bench = Bench(spec("a"))
    bench.ready("a")
    bench.post(Exited("a", "killed"))
    bench.post(named(1, "a"), BecameReady("a"), Exited("a", "killed again"))
    bench.post(named(2, "a"))
    assert bench.error().message == "The model 'a' crashed: killed again"


def test_fallback_is_told_in_the_reason() -> None:
    """The reason of a choice names the better models that cannot start now, and only those."""
    bench = Bench(player("a", 90), player("b", 80), player("c", 70))
    bench.post(role(1, "a", "b", "c"), Exited("a"), BecameReady("b"))
    assert isinstance(granted := bench.effects[-1], Grant)
    swap = "it needs a swap of 5.0 s, as nothing loaded is within 0 of its 80"
    assert granted.selection.reason == f"highest priority that fits; {swap}; a cannot start now"
    bench.post(Released("b"))
    bench.post(role(2, "b", "c"))
    assert isinstance(granted := bench.effects[-1], Grant)
    assert granted.selection.reason == "highest priority that fits"


def test_failure_does_not_hide_that_nobody_could_ever_serve() -> None:
    """A request that no model of the role can serve is refused for good, not put off, while one of them is failed."""
    bench = Bench(player("a", 90))
    bench.post(role(1, "a"), Exited("a"))
    assert bench.post(role(2, "a", needs=frozenset({"vision"}))) == ["reject 2 unsupported_input"]


def test_start_that_succeeds_clears_the_error() -> None:
    """The words of a failed start are shown until the engine is ready."""
    bench = Bench(spec("a"))
    bench.post(named(1, "a"), Exited("a", "broken"))
    bench.post(named(2, "a"), at=10)
    assert bench.scheduler.status(10)[0].error == "broken"
    bench.post(BecameReady("a"))
    assert bench.scheduler.status(10)[0].error is None


def test_unload_wipes_the_record() -> None:
    """An engine that was stopped on request shows no error, and its next failure counts as the first."""
    bench = Bench(spec("a"))
    bench.post(named(1, "a"), Exited("a"), named(2, "a"), at=0)
    bench.post(named(3, "a"), UnloadRequested("a"), Cancelled(3), Exited("a", "asked to"), at=10)
    assert bench.scheduler.status(10)[0].error is None
    assert bench.post(named(4, "a"), Exited("a")) == ["start a", "reject 4 model_start_failed"]
    assert bench.error().retry_after_s == 1
    bench.post(UnloadRequested("a"))
    assert bench.post(named(5, "a"), Exited("a")) == ["start a", "reject 5 model_start_failed"]
    assert bench.error().retry_after_s == 1


def test_crash_is_forgiven_once() -> None:
    """A ready engine that exits is started again at once for the next request; what was in flight ends on its own."""
    bench = Bench(spec("a"))
    bench.ready("a")
    bench.post(named(1, "a"), named(2, "a"))
    assert bench.post(Exited("a")) == ["start a"]
    assert bench.post(Released("a"), BecameReady("a")) == ["grant 2 a"]


def test_crash_after_crash_is_backed_off() -> None:
    """An engine that keeps crashing waits longer each time; one that had settled starts with a clean record."""
    bench = Bench(spec("a"))
    pauses = []
    for waiter in range(4):
        bench.post(named(waiter, "a"), BecameReady("a"), at=bench.now + BACKOFF_LIMIT_S)
        bench.post(Released("a"), Exited("a"), at=bench.now + 1)
        pauses.append(bench.scheduler.status(bench.now)[0].retry_in_s)
    assert pauses == [0, 1, 2, 4]
    bench.post(named(9, "a"), BecameReady("a"), at=bench.now + BACKOFF_LIMIT_S)
    bench.post(Released("a"), Exited("a"), at=bench.now + SETTLED_S)
    assert bench.scheduler.status(bench.now)[0].retry_in_s == 0


def test_crash_that_is_noticed_after_the_stop_was_decided() -> None:
    """An answer that broke off leaves a model idle before its crash is known: it is backed off as after any crash."""
    bench = Bench(spec("a"), spec("b", idle_unload_s=1))
    pauses = []
    for waiter in range(0, 8, 2):
        bench.post(named(waiter, "a"), BecameReady("a"), at=bench.now + BACKOFF_LIMIT_S)
        assert bench.post(named(waiter + 1, "b"), at=bench.now + 1) == []
        assert bench.post(Released("a")) == ["stop a"]
        assert bench.post(Exited("a", "killed by SIGSEGV", by_itself=True)) == ["start b"]
        bench.post(BecameReady("b"), Released("b"))
        assert bench.states()["a"] == "failed"
        pauses.append(bench.scheduler.status(bench.now)[0].retry_in_s)
        assert bench.post(Tick(), at=bench.now + 1) == ["stop b"]
        bench.post(Exited("b"))
    assert pauses == [0, 1, 2, 4]
    bench.post(named(8, "a"), at=bench.now + 1)
    assert bench.error().message.startswith("The model 'a' crashed: killed by SIGSEGV")


def test_end_that_was_asked_for_is_no_crash() -> None:
    """Whatever it ended with: the next start has no pause, and nothing is said of it."""
    bench = Bench(spec("a"), spec("b"))
    bench.ready("a")
    assert bench.post(named(1, "b")) == ["stop a"]
    assert bench.post(Exited("a", "exit code 139")) == ["start b"]
    assert (bench.states()["a"], bench.scheduler.status(bench.now)[0].failures) == ("stopped", 0)


def test_load_that_fails_when_nobody_waits_for_it_any_more() -> None:
    """It is a start that failed, though it was to be broken off: the next one is backed off."""
    bench = Bench(spec("a"), spec("b"))
    bench.post(named(1, "a"), named(2, "b"))
    assert bench.post(Cancelled(1)) == ["stop a"]
    assert bench.post(Exited("a", "no such file", by_itself=True)) == ["start b"]
    bench.post(BecameReady("b"), Released("b"), named(3, "a"))
    assert bench.error().message.startswith("The model 'a' did not start: no such file")
    assert bench.error().retry_after_s == 1


@pytest.mark.parametrize("later", [[], [UnloadRequested("a")], [configured(spec("b"))]])
def test_crash_of_what_has_to_go_makes_way_all_the_same(later: list[Event]) -> None:
    """An unload, and a registry without the model, forget its failures; so they do right before one is known."""
    bench = Bench(spec("a"), spec("b"))
    bench.ready("a")
    assert bench.post(named(1, "b")) == ["stop a"]
    bench.post(*later)
    assert bench.post(Exited("a", "killed", by_itself=True)) == ["start b"]
    assert bench.states().get("a") == ("stopped" if later == [UnloadRequested("a")] else None if later else "failed")


def test_exit_frees_the_memory_at_once() -> None:
    """A crash gives the memory to the next in line."""
    bench = Bench(spec("a"), spec("b"))
    bench.ready("a")
    assert bench.post(named(1, "a"), named(2, "b")) == ["grant 1 a"]
    assert bench.post(Exited("a")) == ["start b"]
    assert bench.post(Released("a")) == []


# -- unloading


def test_idle_model_is_unloaded() -> None:
    """A model that nobody used for ``idle_unload_s`` goes; 0 keeps it."""
    bench = Bench(spec("a", 500, idle_unload_s=10), spec("b", 500, idle_unload_s=0))
    bench.ready("a", "b")
    bench.post(named(1, "a"), at=100)
    bench.post(Released("a"), at=200)
    assert bench.post(Tick(), at=209.9) == []
    assert bench.post(Tick(), at=210) == ["stop a"]
    assert bench.post(Tick(), at=10_000) == []


def test_busy_model_is_not_unloaded() -> None:
    """However long a request takes, its model is not idle."""
    bench = Bench(spec("a", idle_unload_s=10))
    bench.ready("a")
    bench.post(named(1, "a"))
    assert bench.post(Tick(), at=10_000) == []


def test_unload_waits_for_what_is_in_flight() -> None:
    """An unload admits nobody else and stops the engine when the last request is over, once."""
    bench = Bench(spec("a", max_parallel=2))
    bench.ready("a")
    assert bench.post(named(1, "a"), named(2, "a")) == ["grant 1 a", "grant 2 a"]
    assert bench.post(UnloadRequested("a"), UnloadRequested("a"), named(3, "a")) == []
    assert bench.post(Released("a")) == []
    assert bench.post(Released("a")) == ["stop a"]
    assert bench.post(UnloadRequested("a"), Tick(), Exited("a")) == ["start a"]


def test_drain_has_a_limit() -> None:
    """What is in flight after ``drain_limit_s`` goes down with the engine, which is stopped once."""
    bench = Bench(spec("a"), drain_limit_s=30)
    bench.ready("a")
    bench.post(named(1, "a"), UnloadRequested("a"), at=100)
    assert bench.post(Tick(), at=129) == []
    assert bench.post(Tick(), at=130) == ["stop a"]
    assert bench.post(Tick(), Released("a"), Exited("a"), at=131) == []
    assert bench.states() == {"a": "stopped"}


def test_unload_while_starting_stops_at_once() -> None:
    """An unload does not wait for a load; who waits for the model has it started again."""
    bench = Bench(spec("a"))
    bench.post(named(1, "a"))
    assert bench.post(UnloadRequested("a")) == ["stop a"]
    assert bench.post(BecameReady("a")) == []
    assert bench.post(Exited("a")) == ["start a"]


def test_unload_calls_off_the_loads_that_nobody_needs_for_a_request() -> None:
    """Loads by hand end, whether theirs is under way or waits its turn; requests have the model started again."""
    bench = Bench(spec("a"), spec("b"))
    assert bench.post(load(1, "a"), load(2, "a", purpose="preload"), load(3, "b")) == ["start a"]
    assert bench.post(UnloadRequested("b")) == ["reject 3 conflict"]
    assert bench.error().message == "The model 'b' was unloaded meanwhile; it is not loaded."
    assert bench.post(UnloadRequested("a")) == ["reject 1 conflict", "reject 2 conflict", "stop a"]
    assert bench.post(Exited("a")) == []
    assert bench.post(load(4, "a"), named(5, "a"), load(6, "a")) == ["start a"]
    assert bench.post(UnloadRequested("a")) == ["reject 4 conflict", "reject 6 conflict", "stop a"]
    assert bench.post(Exited("a"), BecameReady("a")) == ["start a", "grant 5 a"]


def test_unload_calls_off_what_a_role_was_loaded_for() -> None:
    """A load by the name of a role is one of the model that was chosen, and goes on to no other one."""
    bench = Bench(player("best", 90), player("other", 50))
    assert bench.post(Arrived(1, Demand(role="r"), ("best", "other"), "hand")) == ["start best"]
    assert bench.post(UnloadRequested("other")) == []
    assert bench.post(UnloadRequested("best")) == ["reject 1 conflict", "stop best"]
    assert bench.post(Exited("best")) == []


def test_engine_that_dies_while_it_drains() -> None:
    """An engine that exits before it is told to stop is stopped all the same, and its leases end later."""
    bench = Bench(spec("a"))
    bench.ready("a")
    bench.post(named(1, "a"), UnloadRequested("a"))
    assert bench.post(Exited("a", by_itself=True)) == []
    assert bench.post(Tick(), Released("a"), at=10_000) == []
    assert bench.states() == {"a": "stopped"}


def test_unload_of_what_is_not_loaded() -> None:
    """To unload a stopped model changes nothing; a failed one is given a clean record."""
    bench = Bench(spec("a"))
    assert bench.post(UnloadRequested("a")) == []
    bench.post(named(1, "a"), Exited("a", "broken"))
    assert bench.scheduler.status(0)[0].error == "broken"
    assert bench.post(UnloadRequested("a")) == []
    assert bench.scheduler.status(0)[0].error is None
    assert bench.post(named(2, "a")) == ["start a"]


# -- a new configuration


def test_removed_model_drains_and_is_forgotten() -> None:
    """A model that left the registry serves what is in flight, refuses the rest, and is shown until it is gone."""
    bench = Bench(spec("a"))
    bench.ready("a")
    bench.post(named(1, "a"), named(2, "a"))
    assert bench.post(configured()) == ["reject 2 model_not_found"]
    assert "removed from the registry" in bench.error().message
    assert bench.states() == {"a": "stopping"}
    assert bench.post(Released("a")) == ["stop a"]
    assert bench.post(Exited("a")) == []
    assert bench.states() == {}
    assert bench.post(configured(spec("a")), named(3, "a")) == ["start a"]


@pytest.mark.parametrize(
    "change",
    [
        {"backend": "vllm"},
        {"backend_config": {"extra_args": ["-fa"]}},
        {"download_location": "/models/b"},
        {"served_model_id": "other"},
        {"context_length": 4096},
        {"generation_defaults": {"context_window": 4096}},
        {"max_parallel": 4},
        {"capabilities": ["text", "embedding"]},
    ],
)
def test_model_that_would_start_otherwise_is_restarted(change: dict[str, Any]) -> None:
    """An engine whose command line is no longer that of the registry goes, and the next request starts the new one."""
    bench = Bench(spec("a"))
    bench.ready("a")
    changed = Spec(entry("a", **change), 1000)
    assert bench.post(configured(changed)) == ["stop a"]
    assert bench.post(named(1, "a"), Exited("a")) == ["start a"]


def test_model_that_changed_its_manners_only_stays() -> None:
    """Roles, defaults and estimates may change under a running engine."""
    bench = Bench(spec("a"))
    bench.ready("a")
    calmer = spec(
        "a", 900, roles=["r"], capabilities=["tools"], generation_defaults={"temperature": 0}, idle_unload_s=5
    )
    assert bench.post(configured(calmer)) == []
    assert bench.post(role(1, "a")) == ["grant 1 a"]
    assert bench.scheduler.ledger.used_mb == 1000


def test_new_configuration_rebinds_who_waits() -> None:
    """Who waits by role is given the best of the new registry; who cannot be served any longer is told."""
    bench = Bench(player("a", 90), player("b", 80), spec("c"))
    assert bench.post(role(1, "a", "b"), named(2, "c")) == ["start a"]
    limited = Rules(limit_mb=800)
    new = (player("a", 90), player("b", 95, 700), spec("c"))
    assert bench.post(configured(*new, rules=limited)) == ["reject 2 model_too_large", "stop a"]
    assert bench.post(Exited("a")) == ["start b"]


def test_reload_does_not_divert_from_a_load() -> None:
    """A model that is already loading costs no further swap: who waits for it stays with it."""
    bench = Bench(player("a", 80, 600), player("b", 80, 400), rules=Rules(1000, bias="quality"))
    bench.ready("b")
    assert bench.post(role(1, "a", "b")) == ["start a"]
    same = configured(player("a", 80, 600), player("b", 80, 400), rules=Rules(1000, bias="quality"))
    assert bench.post(same) == []
    assert bench.post(role(2, "a", "b")) == []
    assert bench.post(BecameReady("a"), Released("a")) == ["grant 1 a", "grant 2 a"]


def test_reload_does_not_forget_what_a_choice_cost() -> None:
    """Whoever waits for a model for which another one goes is told of the swap, though room is made by now."""
    bench = Bench(player("a", 80, 600), player("b", 80, 600))
    bench.ready("b")
    assert bench.post(role(1, "a")) == ["stop b"]
    assert bench.post(Exited("b")) == ["start a"]
    bench.post(configured(player("a", 80, 600), player("b", 80, 600)))
    bench.post(BecameReady("a"))
    granted = next(effect for effect in bench.effects if isinstance(effect, Grant))
    assert "swap" in granted.selection.reason
    assert [candidate.costs_swap for candidate in granted.selection.ranked] == [True]


def test_lowered_budget_takes_effect_with_the_next_load() -> None:
    """Models over a lowered budget serve on, and make room when something has to be loaded."""
    bench = Bench(spec("a", 500), spec("b", 500), spec("c", 300))
    bench.ready("a", "b")
    specs = (spec("a", 500), spec("b", 500), spec("c", 300))
    assert bench.post(configured(*specs, budget_mb=600)) == []
    assert bench.post(named(1, "b"), Released("b")) == ["grant 1 b"]
    assert bench.post(named(2, "c")) == ["stop a", "stop b"]


# -- choosing by role


def test_role_prefers_a_loaded_equal_to_a_swap() -> None:
    """Of equals the loaded one serves if the other would cost a swap; if there is room, the better one is loaded."""
    rules = Rules(1000, ("fp8",))
    better, loaded = player("a", 80, 600, quantization="fp8"), player("b", 80, 600)
    bench = Bench(better, loaded, rules=rules)
    bench.ready("b")
    assert bench.post(role(1, "a", "b")) == ["grant 1 b"]
    roomy = Bench(better, loaded, budget_mb=1200, rules=Rules(1200, ("fp8",)))
    roomy.ready("b")
    assert roomy.post(role(1, "a", "b")) == ["start a"]


def test_external_engine_costs_no_swap() -> None:
    """An engine of somebody else is taken for its priority, whatever is loaded here."""
    bench = Bench(player("far", 80, 0, managed=False), player("b", 79))
    bench.ready("b")
    assert bench.post(role(1, "far", "b")) == ["start far"]


# -- what others look at


def test_candidates_say_what_is_known_now() -> None:
    """Candidates carry size, reason, whether they are loaded and whether they would cost a swap."""
    bench = Bench(spec("a", 500), spec("b", 600), spec("c", 400), spec("gone", unavailable="not installed"))
    bench.ready("a")
    bench.post(named(1, "c"))
    found = bench.scheduler.candidates(["a", "b", "c", "gone", "unheard of"])
    assert [(c.name, c.footprint_mb, c.loaded, c.costs_swap) for c in found] == [
        ("a", 500, True, False),
        ("b", 600, False, True),
        ("c", 400, False, False),
        ("gone", 1000, False, True),
    ]
    assert found[-1].unavailable == "not installed"


def test_status_has_a_row_per_model() -> None:
    """Status tells the state, who is served, who waits, what is held, and the last error with its countdown."""
    bench = Bench(spec("b", 500, max_parallel=2), spec("a", 500))
    bench.ready("b")
    bench.post(named(1, "b"), named(2, "a"), named(3, "a"))
    bench.post(Cancelled(2), Exited("a", "broken"))
    bench.post(named(4, "b"), named(5, "b"))
    rows = bench.scheduler.status(bench.now + 0.25)
    assert [(r.name, r.state.value, r.in_flight, r.waiting, r.vram_mb, r.error, r.retry_in_s) for r in rows] == [
        ("a", "failed", 0, 0, 0, "broken", 0.75),
        ("b", "ready", 2, 1, 500, None, None),
    ]
    assert bench.scheduler.status(bench.now + 100)[0].retry_in_s == 0


def test_state_and_repr() -> None:
    """The state of a model that was never heard of is STOPPED; the scheduler shows itself in one line."""
    bench = Bench(spec("a"), spec("b"))
    bench.post(named(1, "a"), named(2, "b"))
    assert bench.scheduler.state("a") is State.STARTING
    assert bench.scheduler.state("unheard of") is State.STOPPED
    assert repr(bench.scheduler) == "<Scheduler [a starting 0 active, b stopped 0 active] 2 queued>"
