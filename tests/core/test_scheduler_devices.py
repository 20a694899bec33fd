"""The scheduler on several GPUs, with memory that others hold, with engines that sleep, and with groups."""

from __future__ import annotations

import pytest

import builders
from builders import ask, configured, spec
from rolecall.core.choosing import FOREIGN_PATIENCE_S
from rolecall.core.events import (
    Adopted,
    Arrived,
    BecameReady,
    Cancelled,
    Exited,
    FellAsleep,
    Freed,
    Group,
    Measured,
    Observed,
    Released,
    SleepCost,
    Start,
    Tick,
    UnloadRequested,
)
from rolecall.core.intake import SLEEP_ROUNDS
from rolecall.core.lifecycle import State
from rolecall.core.policy import STALE_S
from rolecall.core.selection import Demand, Rules
from rolecall.core.vram import HOST, Device, Share

LIGHT = SleepCost(level=1, residual_mb=50, host_mb=400, wake_s=1)
DEEP = SleepCost(level=2, residual_mb=50, host_mb=10, wake_s=3)


class Bench(builders.Bench):
    """One that says where models lie."""

    def devices(self, name: str) -> tuple[str, ...]:
        return next(row.devices for row in self.scheduler.status(self.now) if row.name == name)


def ask_role(waiter: int, *models: str) -> Arrived:
    return Arrived(waiter, Demand(role="r"), models)


# -- where a model is placed


def test_best_fit_leaves_the_large_gap() -> None:
    """A model goes where the least is left over."""
    bench = Bench(spec("a", 600), spec("b", 1500), gpus_mb=(2000, 800))
    assert bench.post(ask(1, "a"), ask(2, "b")) == ["start a g1", "start b g0"]


def test_several_gpus_load_side_by_side_and_each_one_at_a_time() -> None:
    """One load at a time on each GPU: a second model for the same GPU waits, one for another GPU does not."""
    first, second, third = (spec(name, 400, devices=(gpu,)) for name, gpu in (("a", "g0"), ("b", "g0"), ("c", "g1")))
    bench = Bench(first, second, third, gpus_mb=(1000, 1000))
    assert bench.post(ask(1, "a"), ask(2, "b"), ask(3, "c")) == ["start a g0", "start c g1"]
    assert bench.post(BecameReady("a")) == ["grant 1 a", "start b g0"]


def test_model_that_is_too_large_for_one_card_is_spread() -> None:
    """Equal parts on two cards where one is too small, and both must be free of loads."""
    bench = Bench(spec("big", 1500, spread=(1, 2)), spec("a", 900), gpus_mb=(1000, 1000))
    bench.ready("a")
    assert bench.post(ask(1, "big")) == ["stop a"]
    assert bench.post(Exited("a"), Freed("a")) == ["start big g0 g1"]
    (start,) = (effect for effect in bench.effects if isinstance(effect, Start))
    assert start.placement == (Share("g0", 750, 1000), Share("g1", 750, 1000))


def test_tensor_parallel_that_the_entry_asks_for() -> None:
    """A model that asks for two cards lies on two, also where one would do."""
    bench = Bench(spec("tp", 500, spread=(2,)), gpus_mb=(1000, 1000, 1000))
    assert bench.post(ask(1, "tp")) == ["start tp g0 g1"]


def test_sixteen_gpus_do_not_explode() -> None:
    """Among more sets of cards than can be compared one is found all the same."""
    bench = Bench(spec("wide", 8000, spread=(8,)), gpus_mb=(1000,) * 16)
    (words_of_start,) = bench.post(ask(1, "wide"))
    assert len(words_of_start.split()) == 2 + 8


def test_model_too_large_for_every_card_is_refused() -> None:
    """What no card holds, though all together would, is refused with the numbers."""
    bench = Bench(spec("big", 1500), gpus_mb=(1000, 1000))
    assert bench.post(ask(1, "big")) == ["reject 1 model_not_found"]
    message = bench.effects[0].error.message  # type: ignore[union-attr]
    assert "1500 MB" in message
    assert "1000 MB" in message


def test_model_whose_gpus_are_not_there_is_refused() -> None:
    """An entry whose field gpus names none of the machine's GPUs is told so."""
    bench = Bench(spec("far", 100, devices=("g7",)), gpus_mb=(1000,))
    assert bench.post(ask(1, "far")) == ["reject 1 model_not_found"]
    assert "gpus" in bench.effects[0].error.message  # type: ignore[union-attr]


def test_budget_over_all_devices_bounds() -> None:
    """A budget named by hand holds although each card has room."""
    devices = (Device("g0", 1000, 1000, 0), Device("g1", 1000, 1000, 1))
    bench = Bench()
    bench.post(configured(spec("a", 800), spec("b", 800), budget_mb=1200))
    event = configured(spec("a", 800), spec("b", 800), budget_mb=1200)
    bench.post(type(event)(event.specs, Rules(limit_mb=1200), devices, 1200, 10))
    bench.ready("a")
    assert bench.post(ask(1, "b")) == ["stop a"]


def test_the_cheapest_to_bring_back_makes_room() -> None:
    """Of two idle models the one that is reloaded in less time goes, be it the one used last."""
    bench = Bench(spec("slow", 500, load_s=60), spec("quick", 500, load_s=2), spec("new", 500))
    bench.ready("slow", "quick")
    assert bench.post(ask(1, "new")) == ["stop quick"]


def test_one_large_model_goes_rather_than_two() -> None:
    """One model that is enough goes, where the two cheaper ones would cost more together."""
    specs = (spec("s1", 300, load_s=10), spec("s2", 300, load_s=10), spec("one", 400, load_s=12))
    bench = Bench(*specs, spec("new", 400))
    bench.ready("s1", "s2", "one")
    assert bench.post(ask(1, "new")) == ["stop one"]


def test_most_waiting_per_second_of_load_is_loaded_next() -> None:
    """Two who wait for a quick load go before three who wait for a slow one."""
    bench = Bench(spec("busy"), spec("slow", load_s=30), spec("quick", load_s=3))
    bench.ready("busy")
    bench.post(ask(1, "busy"), *(ask(n, "slow") for n in (2, 3, 4)), *(ask(n, "quick") for n in (5, 6)))
    assert bench.post(Released("busy")) == ["stop busy"]
    assert bench.post(Exited("busy"), Freed("busy")) == ["start quick"]


def test_model_is_kept_for_a_client_that_comes_back() -> None:
    """The moment between two requests of one client costs no swap; nobody coming, the swap follows."""
    bench = Bench(spec("a", load_s=10), spec("b"), linger_share=0.05)
    bench.ready("a")
    bench.post(ask(1, "a"), ask(2, "b"), at=100)
    assert bench.post(Released("a"), at=101) == []
    assert bench.scheduler.wake_at() == 101.5
    assert bench.post(ask(3, "a"), at=101.2) == ["grant 3 a"]
    assert bench.post(Released("a"), at=102) == []
    assert bench.post(Tick(), at=102.5) == ["stop a"]


def test_model_is_not_kept_where_nobody_ever_comes_back() -> None:
    """A model whose clients did not come back in such moments for a while makes room at once."""
    bench = Bench(spec("a", load_s=10), spec("b", load_s=10), linger_share=0.05)
    at = 0.0
    waited = []
    for number in range(20):
        model = "ab"[number % 2]
        bench.post(ask(number, model), at=at)
        moment = bench.scheduler.wake_at()
        waited.append(moment is not None and moment - at <= 0.5)
        for second in range(3):  # the other model goes, this one comes
            bench.post(Tick(), at=at + 1 + second)
            for name in "ab":
                if bench.scheduler.state(name) is State.STOPPING:
                    bench.post(Exited(name), Freed(name))
        bench.post(BecameReady(model), at=at + 10)
        bench.post(Released(model), at=at + 11)
        at += 11
    assert waited[1]
    assert not waited[-1]


# -- memory that is not free yet, and memory of others


def test_room_counts_once_the_driver_shows_it() -> None:
    """An engine whose process is gone keeps its memory in the books until the driver agrees."""
    bench = Bench(spec("a"), spec("b"))
    bench.ready("a")
    bench.post(ask(1, "b"))
    assert bench.post(Exited("a")) == []
    assert bench.scheduler.ledger.used_mb == 1000
    assert bench.post(Freed("a")) == ["start b"]


def test_model_waits_for_its_own_memory() -> None:
    """A model that is wanted again is not started beside what lingers of itself."""
    bench = Bench(spec("a", 400))
    bench.ready("a")
    assert bench.post(Exited("a", "crashed")) == []
    assert bench.post(ask(1, "a")) == []
    assert bench.post(Freed("a")) == ["start a"]


def test_foreign_use_takes_room() -> None:
    """What another program holds beyond what is kept free is no room for models."""
    device = Device("g0", 1000, 1200)
    bench = Bench()
    event = configured(spec("a", 600), spec("b", 300))
    bench.post(type(event)(event.specs, Rules(limit_mb=1000), (device,), 1000, 10))
    bench.post(Observed({"g0": 200}))
    bench.ready("a", "b")  # 200 MB are kept free anyway
    bench.post(Observed({"g0": 500}), UnloadRequested("a"), Exited("a"), Freed("a"))
    assert bench.post(ask(1, "a")) == ["stop b"]


def test_who_waits_for_memory_of_others_is_told() -> None:
    """A request that finds no room beside another program waits a moment, then is told who has the memory."""
    bench = Bench(spec("a", 800), gpus_mb=(1000,))
    bench.post(Observed({"g0": 500}))
    assert bench.post(ask(1, "a"), at=5) == []
    assert bench.scheduler.wake_at() == 5 + FOREIGN_PATIENCE_S
    assert bench.post(Tick(), at=5 + FOREIGN_PATIENCE_S) == ["reject 1 unavailable"]
    assert "500 MB" in bench.effects[0].error.message  # type: ignore[union-attr]


def test_memory_that_others_give_back_is_used() -> None:
    """When the other program ends in time the model starts."""
    bench = Bench(spec("a", 800), gpus_mb=(1000,))
    bench.post(Observed({"g0": 500}))
    bench.post(ask(1, "a"))
    assert bench.post(Observed({})) == ["start a g0"]


# -- what a model really holds


def test_measured_footprint_replaces_the_guess() -> None:
    """A model that holds less than was thought leaves room, now and at its next start."""
    bench = Bench(spec("a", 900), spec("b", 500))
    bench.ready("a")
    assert bench.post(Measured("a", {HOST: 400})) == []
    assert bench.post(ask(1, "b")) == ["start b"]
    bench.post(UnloadRequested("a"), Exited("a"), Freed("a"))
    bench.post(BecameReady("b"))
    assert bench.post(ask(2, "a")) == ["start a"]
    assert bench.scheduler.ledger.held_mb("a") == 400


def test_measuring_nothing_changes_nothing() -> None:
    """A driver that tells nothing of a model does not make it weightless."""
    bench = Bench(spec("a", 900))
    bench.ready("a")
    bench.post(Measured("a", {HOST: 0}))
    assert bench.scheduler.ledger.held_mb("a") == 900


def test_model_that_turns_out_larger_than_its_place_starts_there_again() -> None:
    """A model that held more than models may hold at all, and crashed, is given all there is, not kept out for ever."""
    bench = Bench(spec("a", 700, spread=(2,)), gpus_mb=(400, 400))
    bench.post(ask(1, "a"), ask(2, "a"))
    assert bench.post(BecameReady("a")) == ["grant 1 a"]
    bench.post(Measured("a", {"g0": 500, "g1": 500}))
    assert bench.post(Exited("a", "crashed"), Freed("a")) == ["start a g0 g1"]


def test_model_that_fits_nowhere_any_more_is_refused() -> None:
    """Who waits for a model whose GPU was taken out of the profile is told so."""
    bench = Bench(spec("a", 300, devices=("g1",)), gpus_mb=(400, 400))
    bench.post(ask(1, "a"), ask(2, "a"))
    bench.post(BecameReady("a"))
    assert bench.post(configured(spec("a", 300, devices=("g1",)), gpus_mb=(400,))) == []
    assert bench.post(Exited("a", "crashed"), Freed("a")) == ["reject 2 model_not_found"]


def test_out_of_memory_keeps_to_as_many_cards() -> None:
    """What ran out on two cards is not tried on one."""
    bench = Bench(spec("a", 1500, spread=(1, 2)), gpus_mb=(1000, 1000))
    assert bench.post(ask(1, "a")) == ["start a g0 g1"]
    assert bench.post(Exited("a", "oom", out_of_memory=True), Freed("a")) == ["start a g0 g1"]


def test_out_of_memory_beside_a_pinned_model() -> None:
    """It is tried again with all that the pinned one leaves; nobody is refused for it."""
    bench = Bench(spec("p", 100, pinned=True), spec("a", 300))
    bench.ready("p")
    bench.post(ask(1, "a"))
    assert bench.post(Exited("a", "oom", out_of_memory=True), Freed("a")) == ["start a"]
    assert bench.scheduler.ledger.held_mb("a") == 900
    assert bench.post(BecameReady("a")) == ["grant 1 a"]
    assert bench.scheduler.ledger.held_mb("a") == 360  # nobody measured it: a fifth more than was not enough


def test_out_of_memory_while_it_serves() -> None:
    """A model that grew beyond its place, and crashed, has the device for itself next, and is measured again."""
    bench = Bench(spec("a", 300))
    bench.ready("a")
    bench.post(Measured("a", {HOST: 400}))
    assert bench.post(Exited("a", "oom", out_of_memory=True), Freed("a"), ask(1, "a")) == ["start a"]
    assert bench.scheduler.ledger.held_mb("a") == 1000
    assert bench.post(Measured("a", {HOST: 400}, 600), BecameReady("a")) == ["grant 1 a"]
    assert bench.scheduler.ledger.held_mb("a") == 600


def test_sleeper_that_was_measured_larger_wakes_with_that() -> None:
    """Waking reserves what the model was seen to hold, not what it was given at its start."""
    bench = Bench(spec("a", 400, sleep=(LIGHT,), idle_unload_s=10, load_s=20), sleep_mb=1000)
    bench.ready("a")
    bench.post(Measured("a", {HOST: 600}))
    bench.post(Tick(), at=10)
    assert bench.post(FellAsleep("a"), ask(1, "a")) == ["wake a"]
    assert bench.scheduler.ledger.held_mb("a") == 600


def test_sleeper_larger_than_its_place_starts_anew() -> None:
    """A model that held more than there is for models, and sleeps, is not woken where it does not fit."""
    bench = Bench(spec("a", 400, sleep=(LIGHT,), idle_unload_s=10, load_s=20), sleep_mb=1000)
    bench.ready("a")
    bench.post(Measured("a", {HOST: 1200}))
    bench.post(Tick(), at=10)
    bench.post(FellAsleep("a"))
    assert bench.post(ask(1, "a")) == ["stop a"]
    assert bench.post(Exited("a"), Freed("a")) == ["start a"]


def test_patience_for_memory_of_others_begins_with_the_request() -> None:
    """A request waits its ten seconds, whatever was blocked long before it."""
    bench = Bench(spec("a", 800), gpus_mb=(1000,))
    bench.post(Observed({"g0": 500}), ask(1, "a"))
    bench.post(Cancelled(1), at=1)
    assert bench.post(ask(2, "a"), at=1000) == []
    assert bench.post(Tick(), at=1009) == []
    assert bench.post(Tick(), at=1010) == ["reject 2 unavailable"]


def test_models_that_are_gone_from_the_registry_are_forgotten() -> None:
    """A removed model that is stopped leaves nothing behind, and late words about it are no trouble."""
    bench = Bench(spec("a", 400), spec("b", 400))
    bench.ready("a")
    assert bench.post(configured(spec("b", 400))) == ["stop a"]
    bench.post(Exited("a"), Freed("a"), configured(spec("b", 400)))
    assert bench.post(Released("a"), BecameReady("a"), Tick()) == []
    assert bench.scheduler.candidates(["a"]) == []


def test_unknown_size_over_several_cards() -> None:
    """A model that asks for two cards gets two to itself while nobody knows its size, and none where there is one."""
    bench = Bench(spec("a", None, spread=(2,)), gpus_mb=(400, 300))
    assert bench.post(ask(1, "a")) == ["start a g0 g1"]
    assert Bench(spec("a", None, spread=(2,)), gpus_mb=(400,)).post(ask(1, "a")) == ["reject 1 model_not_found"]


def test_unknown_size_beside_other_programs() -> None:
    """A model of unknown size gets what others leave of a card; it need not be all."""
    bench = Bench(spec("a", None), gpus_mb=(1000,))
    bench.post(Observed({"g0": 300}))
    assert bench.post(ask(1, "a")) == ["start a g0"]
    assert bench.scheduler.ledger.held_mb("a") == 700


def test_a_measure_counts_before_the_model_is_ready() -> None:
    """What a model was seen to hold right after its load counts before the next load is planned."""
    bench = Bench(spec("a", 400), spec("b", 500))
    assert bench.post(ask(1, "a"), ask(2, "b")) == ["start a"]
    assert bench.post(Measured("a", {HOST: 900}), BecameReady("a")) == ["grant 1 a"]
    assert bench.post(Released("a")) == ["stop a"]


def test_out_of_memory_is_tried_again_alone() -> None:
    """A model that runs out of memory is started again on a device of its own, at once, and nobody is refused."""
    bench = Bench(spec("a", 300), spec("b", 300))
    bench.ready("b")
    bench.post(ask(1, "a"))
    assert bench.post(Exited("a", "out of memory", out_of_memory=True)) == ["stop b"]
    assert bench.post(Freed("a"), Exited("b"), Freed("b")) == ["start a"]
    assert bench.scheduler.ledger.held_mb("a") == 1000
    assert bench.post(BecameReady("a"), Measured("a", {HOST: 600})) == ["grant 1 a"]
    assert bench.scheduler.ledger.held_mb("a") == 600


def test_out_of_memory_waits_for_more_than_that() -> None:
    """A model that ran out because others had just taken memory waits for it to be given back."""
    bench = Bench(spec("a", 600), gpus_mb=(1000,))
    bench.post(ask(1, "a"))
    bench.post(Observed({"g0": 700}))
    assert bench.post(Exited("a", "oom", out_of_memory=True), Freed("a")) == []
    assert bench.post(Observed({})) == ["start a g0"]


def test_out_of_memory_on_unlike_cards() -> None:
    """What ran out on two unlike cards together is tried again on them, with no more than each of them holds."""
    bench = Bench(spec("a", None, spread=(2,)), gpus_mb=(100, 200))
    assert bench.post(ask(1, "a")) == ["start a g0 g1"]
    assert bench.post(Exited("a", "oom", out_of_memory=True), Freed("a")) == ["start a g0 g1"]


def test_out_of_memory_and_then_a_smaller_budget() -> None:
    """What ran out with more than the budget is by now is tried with all of the budget, and waits for no more."""
    bench = Bench(spec("a", 300))
    bench.post(ask(1, "a"), Exited("a", "oom", out_of_memory=True))
    bench.post(configured(spec("a", None), budget_mb=200))
    assert bench.post(Freed("a")) == ["start a"]


def test_out_of_memory_alone_is_a_failure() -> None:
    """What runs out of memory on a device of its own has failed, with back-off and the reason."""
    bench = Bench(spec("a", 300))
    bench.post(ask(1, "a"))
    assert bench.post(Exited("a", "oom", out_of_memory=True), Freed("a")) == ["start a"]
    assert bench.post(Exited("a", "oom again", out_of_memory=True)) == ["reject 1 model_start_failed"]


# -- sleep


def test_model_that_can_sleep_makes_room_by_sleeping() -> None:
    """A model that sleeps keeps a little of the device, and is woken when it is wanted again."""
    bench = Bench(spec("a", 600, sleep=(LIGHT, DEEP), load_s=20), spec("b", 600), sleep_mb=1000)
    bench.ready("a")
    assert bench.post(ask(1, "b")) == ["sleep a 1"]
    assert bench.post(FellAsleep("a")) == ["start b"]
    assert bench.scheduler.ledger.held_mb("a") == 50
    assert bench.post(BecameReady("b"), Released("b")) == ["grant 1 b"]
    assert bench.post(ask(2, "a")) == ["stop b"]
    assert bench.post(Exited("b"), Freed("b")) == ["wake a"]
    assert bench.scheduler.ledger.held_mb("a") == 600
    assert bench.post(BecameReady("a", load_s=2)) == ["grant 2 a"]
    assert next(row.load_s for row in bench.scheduler.status(0) if row.name == "a") == 20


def test_sleep_is_chosen_by_the_hosts_memory() -> None:
    """The quicker sleep takes more host RAM: where that is short it is the deeper one, and else a stop."""
    for sleep_mb, effect in ((1000, "sleep a 1"), (100, "sleep a 2"), (5, "stop a")):
        bench = Bench(spec("a", sleep=(LIGHT, DEEP), load_s=20), spec("b", 600), sleep_mb=sleep_mb)
        bench.ready("a")
        assert bench.post(ask(1, "b")) == [effect]
        bench.post(FellAsleep("a") if effect != "stop a" else Tick())


def test_sleep_that_costs_more_than_a_start_is_no_use() -> None:
    """A model that starts faster than it wakes is stopped."""
    bench = Bench(spec("a", sleep=(DEEP,), load_s=2), spec("b"), sleep_mb=1000)
    bench.ready("a")
    assert bench.post(ask(1, "b")) == ["stop a"]


def test_sleepers_go_when_their_rest_is_needed() -> None:
    """Where even the residue of a sleeping model is in the way it is stopped."""
    bench = Bench(spec("a", 600, sleep=(LIGHT,), load_s=20), spec("b", 600), spec("all", 1000), sleep_mb=1000)
    bench.ready("a")
    bench.post(ask(1, "b"))
    bench.post(FellAsleep("a"))
    bench.post(BecameReady("b"), Released("b"))
    assert sorted(bench.post(ask(2, "all"))) == ["stop a", "stop b"]
    assert bench.post(Exited("a"), Freed("a"), Exited("b"), Freed("b")) == ["start all"]


def test_idle_model_sleeps_and_later_stops() -> None:
    """Idle for long enough a model falls asleep; after several times as long it is stopped."""
    bench = Bench(spec("a", sleep=(LIGHT,), idle_unload_s=10, load_s=20), sleep_mb=1000)
    bench.ready("a")
    assert bench.scheduler.wake_at() == 10
    assert bench.post(Tick(), at=10) == ["sleep a 1"]
    assert bench.post(FellAsleep("a"), Tick(), at=11) == []
    assert bench.post(Tick(), at=10 * SLEEP_ROUNDS) == ["stop a"]


def test_nonsense_after_waking_means_a_new_start_and_no_more_sleep() -> None:
    """An engine that answers nonsense after waking is started anew at once, and is stopped instead from then on."""
    bench = Bench(spec("a", 600, sleep=(LIGHT,), load_s=20), spec("b", 600), sleep_mb=1000)
    bench.ready("a")
    bench.post(ask(1, "b"))
    bench.post(FellAsleep("a"))
    bench.post(BecameReady("b"), Released("b"), ask(2, "a"), Exited("b"), Freed("b"))
    assert bench.scheduler.state("a") is State.STARTING
    assert bench.post(Exited("a", "nonsense"), Freed("a")) == ["start a"]
    assert bench.post(BecameReady("a"), Released("a")) == ["grant 2 a"]
    assert bench.post(ask(3, "b")) == ["stop a"]


def test_waking_that_fails_when_nobody_waits_for_it_any_more() -> None:
    """It was to be stopped, and ended by itself: it is a crash, and the model does not sleep again."""
    bench = Bench(spec("a", 600, sleep=(LIGHT,), load_s=20), spec("b", 600), sleep_mb=1000)
    bench.ready("a")
    bench.post(ask(1, "b"), FellAsleep("a"), BecameReady("b"), Released("b"), ask(2, "a"), Exited("b"), Freed("b"))
    assert bench.post(ask(3, "b"), Cancelled(2)) == ["stop a"]
    assert bench.post(Exited("a", "nonsense", by_itself=True), Freed("a")) == ["start b"]
    assert next(row for row in bench.scheduler.status(0) if row.name == "a").failures == 1
    assert bench.post(BecameReady("b"), Released("b"), ask(4, "a")) == ["grant 3 b", "stop b"]
    assert bench.post(Exited("b"), Freed("b"), BecameReady("a"), Released("a")) == ["start a", "grant 4 a"]
    assert bench.post(ask(5, "b")) == ["stop a"]


def test_request_that_comes_while_its_model_falls_asleep() -> None:
    """It waits until the model sleeps, and wakes it."""
    bench = Bench(spec("a", sleep=(LIGHT,), idle_unload_s=10, load_s=20), sleep_mb=1000)
    bench.ready("a")
    bench.post(Tick(), at=10)
    assert bench.post(ask(1, "a")) == []
    assert bench.post(FellAsleep("a")) == ["wake a"]
    assert bench.post(BecameReady("a", load_s=3)) == ["grant 1 a"]


def test_sleeping_model_can_be_unloaded() -> None:
    """Unload ends a sleeping engine, one that falls asleep, and one that wakes."""
    for events in ([], [FellAsleep("a")], [FellAsleep("a"), ask(1, "a"), Cancelled(1)]):
        bench = Bench(spec("a", sleep=(LIGHT,), idle_unload_s=10, load_s=20), sleep_mb=1000)
        bench.ready("a")
        bench.post(Tick(), at=10)
        bench.post(*events)
        assert bench.post(UnloadRequested("a")) == ["stop a"]
        assert bench.post(FellAsleep("a"), Exited("a"), Freed("a")) == []
        assert bench.scheduler.ledger.used_mb == 0


def test_sleeper_that_fits_no_longer_is_stopped() -> None:
    """A sleeping model that could not be woken where it lies, since the budget was lowered, is started anew."""
    one = spec("a", None, sleep=(LIGHT,), idle_unload_s=10, load_s=20)
    bench = Bench(one, sleep_mb=1000)
    bench.ready("a")
    bench.post(Tick(), FellAsleep("a"), at=10)
    assert bench.post(configured(one, budget_mb=500, sleep_mb=1000)) == ["stop a"]
    assert bench.post(ask(1, "a"), Exited("a"), Freed("a")) == ["start a"]


# -- engines of an earlier run


def test_adopted_engine_is_ready_at_once() -> None:
    """An engine that lives on from an earlier run answers at once, and its memory is in the books."""
    bench = Bench(spec("a", 400), gpus_mb=(1000,))
    assert bench.post(Adopted("a", (Share("g0", 400, 1000),))) == []
    assert bench.scheduler.ledger.held_mb("a") == 400
    assert bench.post(ask(1, "a")) == ["grant 1 a"]
    assert bench.devices("a") == ("g0",)


# -- groups


def group(startup: str = "serial") -> Group:
    return Group("photo", ("a", "b", "c"), startup)  # type: ignore[arg-type]


def test_group_follows_one_after_the_other() -> None:
    """When one model of a group is in use the others follow, in their order, one at a time."""
    bench = Bench(spec("a", 300), spec("b", 300), spec("c", 300), groups=(group(),), gpus_mb=(1000, 1000))
    assert bench.post(ask(1, "a")) == ["start a g0"]
    assert bench.post(BecameReady("a")) == ["grant 1 a", "start b g0"]
    assert bench.post(BecameReady("b")) == ["start c g0"]


def test_group_starts_side_by_side_where_it_may() -> None:
    """With startup parallel each GPU loads one of them."""
    bench = Bench(spec("a", 300), spec("b", 300), spec("c", 300), groups=(group("parallel"),), gpus_mb=(1000, 1000))
    bench.post(ask(1, "a"))
    assert bench.post(BecameReady("a")) == ["grant 1 a", "start b g0", "start c g1"]


def test_group_never_delays_a_waiter() -> None:
    """A model that only follows makes way for one that somebody waits for, also while it loads."""
    bench = Bench(spec("a", 300), spec("b", 700), spec("c", 300), spec("other", 600), groups=(group(),))
    bench.post(ask(1, "a"))
    assert bench.post(BecameReady("a")) == ["grant 1 a", "start b"]
    assert bench.post(ask(2, "other")) == ["stop b"]
    assert bench.post(Exited("b"), Freed("b")) == ["start other"]


def test_group_takes_the_room_of_what_is_stale_only() -> None:
    """What was used a moment ago is not evicted for a model that nobody asked for."""
    bench = Bench(spec("a", 300), spec("b", 300), spec("other", 600), groups=(group(),))
    bench.ready("other")
    bench.post(ask(1, "a"))
    assert bench.post(BecameReady("a")) == ["grant 1 a"]
    assert bench.post(Tick(), at=STALE_S) == ["stop other"]
    assert bench.post(Exited("other"), Freed("other")) == ["start b"]


def test_model_of_a_group_that_was_unloaded_by_hand_stays_away() -> None:
    """Unload means it, until somebody asks for the model again."""
    bench = Bench(spec("a", 300), spec("b", 300), groups=(group(),))
    bench.post(ask(1, "a"))
    bench.post(BecameReady("a"), BecameReady("b"))
    assert bench.post(UnloadRequested("b"), Exited("b"), Freed("b"), Tick()) == ["stop b"]
    assert bench.post(ask(2, "b")) == ["start b"]


def test_group_ages_as_one() -> None:
    """A use of one model keeps the others from being unloaded; unused, all go and none comes back."""
    specs = tuple(spec(name, 300, idle_unload_s=10) for name in "abc")
    bench = Bench(*specs, groups=(group(),))
    bench.post(ask(1, "a"))
    bench.post(BecameReady("a"), BecameReady("b"), BecameReady("c"))
    bench.post(Released("a"), at=8)
    assert bench.post(Tick(), at=12) == []
    assert sorted(bench.post(Tick(), at=18)) == ["stop a", "stop b", "stop c"]
    assert bench.post(*(event(name) for name in "abc" for event in (Exited, Freed))) == []


# -- adaptive roles


def test_who_waits_for_a_swap_takes_what_became_good_enough() -> None:
    """A waiter of a role whose best model is not there takes another one that has become ready meanwhile."""
    best = spec("best", role_priority={"r": 90})
    near = spec("near", role_priority={"r": 80})
    bench = Bench(best, near, spec("busy"), rules=Rules(limit_mb=1000, tolerance=15))
    bench.ready("busy")
    bench.post(ask(1, "busy"), ask_role(2, "best", "near"), ask(3, "near"), ask(4, "near"))
    bench.post(Released("busy"), Exited("busy"), Freed("busy"))
    assert bench.post(BecameReady("near")) == ["grant 2 near"]
    assert bench.post(Released("near")) == ["grant 3 near"]


# -- deadlines


@pytest.mark.parametrize("moment", [19.9, 20.0])
def test_the_scheduler_says_when_time_alone_changes_something(moment: float) -> None:
    """The overtaking bound is kept to the moment: a tick at ``wake_at`` clears the way, one before does not."""
    bench = Bench(spec("a", max_parallel=2), spec("b"), max_overtake_s=20)
    bench.ready("a")
    bench.post(ask(1, "a"), at=10)
    bench.post(ask(2, "b"))
    assert bench.scheduler.wake_at() == 30
    bench.post(Tick(), at=10 + moment)
    assert bench.post(ask(3, "a")) == (["grant 3 a"] if moment < 20 else [])


def test_a_model_that_took_long_to_load_serves_for_a_while() -> None:
    """A quarter of its load time it serves newer requests too, though somebody is overdue; then it drains."""
    bench = Bench(spec("a", load_s=40), spec("b", load_s=40), max_overtake_s=20)
    bench.post(ask(1, "b"))
    bench.post(ask(2, "a"), at=1)
    assert bench.post(BecameReady("b"), at=40) == ["grant 1 b"]  # the waiter for a has been overdue for 19 s
    assert bench.post(ask(3, "b"), Released("b"), at=45) == ["grant 3 b"]
    assert bench.scheduler.wake_at() == 50
    assert bench.post(ask(4, "b"), at=50) == []
    assert bench.post(Released("b"), at=51) == ["stop b"]


def test_it_stays_for_a_client_that_comes_back_in_that_while() -> None:
    """Idle for a moment in its first while it does not go at once, even for an overdue request."""
    bench = Bench(spec("a", load_s=40), spec("b", load_s=40), max_overtake_s=20, linger_share=0.01)
    bench.post(ask(1, "b"))
    bench.post(ask(2, "a"), at=1)
    bench.post(BecameReady("b"), at=40)
    assert bench.post(Released("b"), at=42) == []
    assert bench.post(ask(3, "b"), at=42.3) == ["grant 3 b"]
    assert bench.post(Released("b"), at=43) == []
    assert bench.post(Tick(), at=43.4) == ["stop b"]


def test_nobody_is_passed_for_longer_than_the_bound_by_one_load_after_another() -> None:
    """Who was passed for ``max_overtake_s`` since the first that passed is not passed by a fresh model either."""
    bench = Bench(spec("a", load_s=30), spec("b", load_s=100), spec("old", load_s=1), max_overtake_s=20)
    bench.ready("old")
    bench.post(ask(1, "old"), at=100)
    bench.post(ask(2, "b"), at=101)  # older than the one for a
    bench.post(ask(3, "a"), at=102)
    bench.post(ask(4, "old"), Released("old"), at=103)  # passes both, for the first time
    bench.post(Tick(), at=121)
    assert bench.post(Released("old"), Exited("old"), Freed("old"), at=122) == ["stop old", "start b"]
    assert bench.post(BecameReady("b"), ask(5, "b"), at=123) == ["grant 2 b"]
    assert bench.post(Released("b"), at=124) == ["stop b"]
