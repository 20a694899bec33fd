"""What the GPUs hold: whose memory it is, how much others have, when that of an engine that ended is free."""

from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import FakeProbe
from rolecall.core.profiles import GpuSnapshot
from rolecall.runtime.gpu import GpuReport
from rolecall.runtime.memory import MemoryWatch, Tenant, foreign_mb, grown_mb, held_mb, is_back, is_free

TOTAL_MB = 16_000
NO_GPUS = GpuReport((), "the driver fails", None)


def gpu(index: int, used_mb: int) -> GpuSnapshot:
    """Return the GPU ``g0``, ``g1`` … with so much used."""
    return GpuSnapshot(index, "card", f"g{index}", TOTAL_MB, TOTAL_MB - used_mb)


def report(*used_mb: int, **processes_mb: dict[int, int]) -> GpuReport:
    """Return GPUs that are used so much, and what the driver says of the processes on them."""
    return GpuReport(tuple(gpu(index, mb) for index, mb in enumerate(used_mb)), None, None, processes_mb)


def tenant(*pids: int, settled: bool = True, **reserved_mb: int) -> Tenant:
    """Return an engine with these processes, for which so much is reserved."""
    return Tenant(reserved_mb, frozenset(pids), is_settled=settled)


class TestHeld:
    def test_the_processes_of_an_engine_are_added_up(self) -> None:
        """What the driver lists for the engine's processes counts, on each of its devices; others' does not."""
        seen = report(9000, 7000, g0={1: 3000, 2: 2000, 9: 4000}, g1={2: 6000, 9: 1000})
        assert held_mb(seen, tenant(1, 2, g0=100, g1=100)) == {"g0": 5000, "g1": 6000}
        assert held_mb(seen, tenant(1, 2, g0=100)) == {"g0": 5000}

    @pytest.mark.parametrize(
        "seen",
        [
            report(9000),
            report(9000, g0={}),
            report(9000, g0={4711: 9000}),
            report(9000, 9000, g0={1: 9000}, g1={4711: 9000}),
            NO_GPUS,
        ],
    )
    def test_a_driver_that_does_not_tell(self, seen: GpuReport) -> None:
        """No list, an empty one, the host's pids, or a list for one device of two: nothing is known, which is not 0."""
        assert held_mb(seen, tenant(1, g0=100, g1=100)) is None

    def test_an_engine_without_devices_holds_nothing_that_is_known(self) -> None:
        """An engine in host RAM is nothing for the driver."""
        assert held_mb(report(9000, g0={1: 9000}), tenant(1)) is None


class TestGrown:
    def test_the_use_of_each_device_has_grown(self) -> None:
        """It is the difference, device by device, of those that are asked for."""
        assert grown_mb(report(300, 500, 0), report(5300, 4500, 9), ("g0", "g1")) == {"g0": 5000, "g1": 4000}

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            (report(300, 300), report(5300, 300)),
            (report(300, 300), report(5300, 200)),
            (report(300, 300), report(5300)),
            (report(300, 300), NO_GPUS),
        ],
    )
    def test_one_that_has_not_grown_makes_all_doubtful(self, before: GpuReport, after: GpuReport) -> None:
        """Where a device shows nothing of the engine the others' figures are not believed."""
        assert grown_mb(before, after, ("g0", "g1")) is None

    def test_of_no_device_nothing_is_known(self) -> None:
        """An engine that has no GPU has no growth."""
        assert grown_mb(report(300), report(900), ()) is None


class TestForeign:
    def test_what_is_told_of_our_processes_is_not_others(self) -> None:
        """What the driver lists for ours is taken off, be it more or less than was reserved."""
        seen = report(9000, 400, g0={1: 6000, 9: 2000})
        assert foreign_mb(seen, [tenant(1, g0=4000)], {}) == {"g0": 3000, "g1": 400}

    def test_without_lists_it_is_what_is_not_reserved(self) -> None:
        """Where the driver does not tell, settled engines hold what is reserved for them."""
        assert foreign_mb(report(9000), [tenant(1, g0=4000), tenant(2, g0=3000)], {}) == {"g0": 2000}
        assert foreign_mb(report(6000), [tenant(1, g0=4000), tenant(2, g0=3000)], {}) == {"g0": 0}

    def test_while_one_is_on_the_move_it_stays_as_it_was(self) -> None:
        """On the device of an engine that loads, sleeps or goes nobody knows whose memory it is; on others one does."""
        moving = tenant(1, settled=False, g0=4000)
        assert foreign_mb(report(3000, 800), [moving], {"g0": 250, "g1": 1}) == {"g0": 250, "g1": 800}
        assert foreign_mb(report(3000), [moving], {}) == {"g0": 0}

    def test_one_on_the_move_that_the_driver_tells_of_is_no_riddle(self) -> None:
        """What is listed for a loading engine is known, however little it is yet."""
        assert foreign_mb(report(3000, g0={1: 1000}), [tenant(1, settled=False, g0=9000)], {"g0": 5}) == {"g0": 2000}

    @given(
        st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 3000), st.booleans()), max_size=4),
        st.integers(0, 4000),
    )
    def test_it_is_never_negative_nor_more_than_is_used(
        self, engines: list[tuple[int, int, bool]], others_mb: int
    ) -> None:
        """Whatever is reserved and held, foreign use lies between nothing and all that is used."""
        used_mb = others_mb + sum(held for held, _, _ in engines)
        tenants = [tenant(number, g0=mb) for number, (_, mb, _) in enumerate(engines)]
        listed = {number: held for number, (held, _, is_listed) in enumerate(engines) if is_listed}
        found = foreign_mb(report(used_mb, g0=listed), tenants, {})
        assert 0 <= found["g0"] <= used_mb
        if all(held and is_listed for held, _, is_listed in engines):
            assert found["g0"] == others_mb


class TestFree:
    def test_it_is_free_when_only_the_others_hold_something(self) -> None:
        """What is used has to be what those that stay and strangers hold, with some tolerance."""
        gone, stays = tenant(1, g0=6000), tenant(2, g0=3000)
        assert not is_free(report(9300), gone, [stays], {"g0": 300})
        assert not is_free(report(3700), gone, [stays], {"g0": 300})
        assert is_free(report(3590), gone, [stays], {"g0": 300})
        assert is_free(report(3000), gone, [stays], {"g0": 300})

    def test_each_of_its_devices_counts_and_no_other(self) -> None:
        """An engine on two GPUs has given back its memory when both show it; a third one is not its business."""
        gone = tenant(1, g0=5000, g1=5000)
        assert not is_free(report(0, 5000, 0), gone, [], {})
        assert is_free(report(0, 0, 9000), gone, [], {})

    def test_what_the_driver_tells_of_those_that_stay_goes_first(self) -> None:
        """An engine that has grown beyond its reservation does not keep its neighbour's memory from being free."""
        seen = report(5000, g0={2: 5000})
        assert not is_free(report(5000), tenant(1, g0=6000), [tenant(2, g0=3000)], {})
        assert is_free(seen, tenant(1, g0=6000), [tenant(2, g0=3000)], {})

    def test_small_engines_are_not_lost_in_the_tolerance(self) -> None:
        """The tolerance is 200 MB at least, and 5 % of what was held."""
        assert is_free(report(199), tenant(1, g0=300), [], {})
        assert not is_free(report(300), tenant(1, g0=300), [], {})
        assert is_free(report(500), tenant(1, g0=10_000), [], {})
        assert not is_free(report(501), tenant(1, g0=10_000), [], {})

    def test_while_the_driver_fails_nobody_waits(self) -> None:
        """A driver that answers nothing shows nothing as taken."""
        assert is_free(NO_GPUS, tenant(1, g0=6000), [], {})


class TestBack:
    def test_the_devices_are_as_they_were(self) -> None:
        """No more may be used than before, but for noise; less is as good."""
        assert is_back(report(5000, 0), report(5000, 9000), ["g0"])
        assert is_back(report(5000), report(5200), ["g0"])
        assert is_back(report(5000), report(10), ["g0"])
        assert not is_back(report(5000), report(5201), ["g0"])
        assert not is_back(report(0, 0), report(0, 300), ["g0", "g1"])

    def test_what_was_not_seen_before_is_not_known(self) -> None:
        """A device that did not answer then cannot be compared."""
        assert not is_back(NO_GPUS, report(0), ["g0"])


class TestWatch:
    async def test_it_remembers_and_says_what_changed(self) -> None:
        """A look is fresh; only a change of what others hold is one."""
        probe = FakeProbe(gpu(0, 3000))
        watch = MemoryWatch(probe)
        assert watch.watch(await watch.look(), [tenant(1, g0=2000)])
        assert watch.foreign == {"g0": 1000}
        assert not watch.watch(await watch.look(), [tenant(1, g0=2000)])
        probe.gpus = (gpu(0, 2500),)
        assert watch.watch(await watch.look(), [tenant(1, g0=2000)])
        assert watch.foreign == {"g0": 500}
        assert probe.asked == 3

    async def test_while_the_driver_fails_the_last_figures_stand(self) -> None:
        """Nothing seen is nothing learnt: others are not taken for gone."""
        probe = FakeProbe(gpu(0, 3000))
        watch = MemoryWatch(probe)
        watch.watch(await watch.look(), [])
        probe.gpus = ()
        assert not watch.watch(await watch.look(), [])
        assert watch.foreign == {"g0": 3000}

    async def test_a_driver_that_hangs_holds_up_nobody(self) -> None:
        """It counts as one that fails, and is asked again only once it has answered; then its figures count again."""
        probe = Hanging(gpu(0, 3000))
        watch = MemoryWatch(probe, limit_s=0.05)
        watch.watch(await watch.look(), [])
        probe.answers.clear()
        for _ in range(3):
            seen = await watch.look()
            assert seen.gpus == ()
            assert not watch.watch(seen, [])
        assert probe.asked == 2
        assert watch.foreign == {"g0": 3000}
        probe.answers.set()
        while not (await watch.look()).gpus:  # noqa: ASYNC110 - the thread that hung ends when it likes
            await asyncio.sleep(0.01)
        assert probe.asked == 3

    async def test_all_who_look_share_one_question(self) -> None:
        """While the driver is being asked nobody asks it again; the next look after the answer does."""
        probe = Hanging(gpu(0, 3000))
        probe.answers.clear()
        watch = MemoryWatch(probe, limit_s=10)
        looks = [asyncio.create_task(watch.look()) for _ in range(3)]
        while not probe.asked:  # noqa: ASYNC110 - another thread asks
            await asyncio.sleep(0.01)
        probe.answers.set()
        seen = await asyncio.gather(*looks)
        assert [each.gpus for each in seen] == [(gpu(0, 3000),)] * 3
        assert probe.asked == 1
        await watch.look()
        assert probe.asked == 2

    async def test_a_look_that_is_cancelled_takes_nothing_from_the_others(self) -> None:
        """Who gives up waiting does not take the question back."""
        probe = Hanging(gpu(0, 3000))
        probe.answers.clear()
        watch = MemoryWatch(probe, limit_s=10)
        given_up, stays = asyncio.create_task(watch.look()), asyncio.create_task(watch.look())
        while not probe.asked:  # noqa: ASYNC110 - another thread asks
            await asyncio.sleep(0.01)
        given_up.cancel()
        await asyncio.wait({given_up})
        probe.answers.set()
        assert (await stays).gpus == (gpu(0, 3000),)

    def test_a_driver_that_hangs_keeps_no_loop_from_ending(self) -> None:
        """The loop ends while the question is open, and the late answer disturbs nobody."""
        probe = Hanging(gpu(0, 3000))
        probe.answers.clear()
        before = set(threading.enumerate())
        assert asyncio.run(MemoryWatch(probe, limit_s=0.05).look()).gpus == ()
        (thread,) = set(threading.enumerate()) - before
        assert thread.daemon
        probe.answers.set()
        thread.join(10)
        assert not thread.is_alive()
        assert not probe.is_broken_off

    async def test_a_probe_that_raises_is_a_driver_that_says_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        """Whatever it raises is logged, and the next look asks again."""
        probe = Raising(gpu(0, 3000))
        watch = MemoryWatch(probe)
        assert (await watch.look()).gpus == ()
        assert "a bug of the driver" in caplog.text
        assert (await watch.look()).gpus == (gpu(0, 3000),)


class Raising(FakeProbe):
    """A driver that fails at the first question in a way that nobody thought of."""

    def report(self) -> GpuReport:
        """Raise, then return the cards."""
        seen = super().report()
        if self.asked == 1:
            raise OSError("a bug of the driver")
        return seen


class Hanging(FakeProbe):
    """A driver that answers while ``answers`` is set."""

    def __init__(self, *gpus: GpuSnapshot) -> None:
        super().__init__(*gpus)
        self.answers = threading.Event()
        self.answers.set()
        self.is_broken_off = False

    def report(self) -> GpuReport:
        """Return the cards, now or later."""
        seen = super().report()
        self.is_broken_off = not self.answers.wait(10)
        return seen
