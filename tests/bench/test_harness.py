"""The harness itself: what is made of samples, and the two C programs on a command line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from bench.figures import all_reached, only_behaviour, verdicts
from bench.page import BEGIN, END, PAGE, generated, panels, replaced
from bench.programs import Mock, Programs, build
from bench.results import Results, Start, machine, quietest
from bench.running import Target
from bench.sampling import Bench, Sample
from bench.scenarios import NS32, ST32
from bench.tables import checks_table, markdown, tables
from c_compiler import NoCompiler
from unused_ports import unused_port


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    try:
        return build(tmp_path_factory.mktemp("programs"))
    except NoCompiler as error:
        pytest.skip(str(error))


def sample(cpu_s: float, *, others: float = 0.0, **load: float) -> Sample:
    """A thousand requests."""
    seen = {"sent": 1000, "elapsed": 1, "all_events": 0, "events": 0, "reads": 0}
    seen |= dict.fromkeys(("errors", "truncated", "bad_status", "no_done"), 0)
    return Sample({**seen, "rps": 1000, "lat_p50": 100, **load}, cpu_s, others, 50)


def results(**rounds: list[dict[str, Sample]]) -> Results:
    return Results(rounds=dict(rounds), machine=machine())


def test_ratios_are_those_of_one_round() -> None:
    """A machine that is slow in one round is slow for everybody in it: the ratio of each round counts."""
    found = results(ns32=[{"rolecall": sample(k * 0.4), "nginx": sample(k * 0.1)} for k in (1, 5, 2)])
    assert found.ratio("ns32", "rolecall", "nginx", "cpu_ms_per_request") == pytest.approx(4)


def test_added_is_the_difference_to_the_upstream() -> None:
    """What a target adds is its figure less the upstream's own in the same round."""
    rounds = [{"direct": sample(0, lat_p50=base), "nginx": sample(0, lat_p50=base + 30)} for base in (10, 80, 20)]
    assert results(up1=rounds).added("up1", "nginx", "lat_p50") == pytest.approx(30)


def test_the_quietest_rounds_are_kept_in_order() -> None:
    """Of more rounds than are wanted those stay in which others were least busy, each judged by its loudest sample."""
    rounds = [{"a": sample(1), "b": sample(1, others=loud)} for loud in (0.9, 0.1, 0.5, 0.2)]
    assert quietest(rounds, 2) == [rounds[1], rounds[3]]


def test_a_figure_is_reached_missed_or_not_known() -> None:
    """What was not measured is no failure, and is not called reached either."""
    found = results(
        ns32=[{"rolecall": sample(0.5), "nginx": sample(0.1)}], ns128=[{"rolecall": sample(0.7), "nginx": sample(0.1)}]
    )
    reached, missed, *rest = verdicts(found)
    assert (reached.passed, missed.passed) == (True, False)
    assert {verdict.passed for verdict in rest} == {None}
    assert not all_reached([reached, missed])
    assert all_reached([reached, *rest])


def test_a_quick_run_is_judged_by_its_behaviour_alone() -> None:
    """What half a second says of a figure is shown and not judged."""
    found = results(ns32=[{"rolecall": sample(0.7), "nginx": sample(0.1)}])
    found.checks["rolecall"] = {"gzip": (True, "200")}
    quick = only_behaviour(verdicts(found))
    assert quick[0].reached.startswith("7.0 ×")
    assert [verdict.passed for verdict in quick if verdict.passed is not None] == [True]
    found.checks["rolecall"] = {"gzip": (False, "500")}
    assert not all_reached(only_behaviour(verdicts(found)))


def test_memory_that_was_given_back_has_one_sign() -> None:
    """Less than before is a minus."""
    found = results()
    found.starts["rolecall"] = Start(0.5, 100, 57)
    assert "idle - 43 MB" in {verdict.reached for verdict in verdicts(found)}


def test_failed_checks_of_other_servers_do_not_count() -> None:
    """A figure of its own says whether rolecall behaves; how others do is shown alone."""
    found = Results(checks={"rolecall": {"gzip": (True, "200")}, "nginx": {"gzip": (False, "500")}})
    assert verdicts(found)[-1].passed
    found.checks["rolecall bare"] = {"gzip": (False, "none")}
    assert verdicts(found)[-1].reached == "1 of 2, not: gzip"
    assert "| gzip | 200 | ✗ 500 | ✗ none |" in markdown(checks_table(found))


def test_results_survive_on_disk() -> None:
    """What was kept is read back as it was."""
    found = results(ns32=[{"rolecall": sample(0.5)}])
    found.one_core = [{"nginx": sample(0.25)}]
    found.starts["nginx"] = Start(0.01, 14, 15)
    found.checks["nginx"] = {"gzip": (True, "200")}
    assert Results.from_json(found.to_json()) == found


def test_the_page_has_a_place_for_results() -> None:
    """What is written lies between two marks of docs/performance.md, and nothing else changes."""
    page = PAGE.read_text(encoding="utf-8")
    found = results(ns32=[{"rolecall": sample(0.5), "nginx": sample(0.1), "direct": sample(0)}])
    part = generated(found, verdicts(found))
    written = replaced(page, part)
    assert "| rolecall | 0.5000 | 1,000 |" in part
    assert written.partition(BEGIN)[0] == page.partition(BEGIN)[0]
    assert written.partition(END)[2] == page.partition(END)[2]
    assert replaced(written, part) == written


def test_the_picture_has_what_was_measured() -> None:
    """A bar for each server, none for the upstream, and the limit by what nginx needs in this run."""
    found = results(ns32=[{"rolecall": sample(0.5), "nginx": sample(0.1), "direct": sample(0)}])
    (panel,) = panels(found)
    assert [bar["name"] for bar in panel["bars"]] == ["rolecall", "nginx"]
    assert panel["limit"] == pytest.approx(0.6)


def test_a_sample_is_what_happened(programs: Programs, tmp_path: Path) -> None:
    """A load on the upstream itself: every request is answered, every chunk of a stream is there and timed."""
    with Mock(programs) as mock:
        bench = Bench(programs, mock, tmp_path)
        whole = bench.sample(Target("direct", mock.port), NS32, 0.05)
        streams = bench.sample(Target("direct", mock.port), ST32, 0)
        assert mock.seen().requests == whole.load["sent"] + streams.load["sent"]
    assert (whole.failures, streams.failures) == (0, 0)
    assert whole.load["requests"] == whole.load["sent"] - NS32.warm_up > 0
    assert streams.load["events"] == ST32.count * ST32.tokens
    assert 0 < streams.load["relay_p50"] < streams.load["ttft_p50"] * 100
    assert tables(results(ns32=[{"direct": whole}], st32=[{"direct": streams}]))


@pytest.mark.parametrize(
    "wrong",
    [
        *("-n 5x", "-n 0", "-n -1", "-n", "-n 99999999999999999999", "-d nan", "-d 0", "-d 1s", "-d inf", "-c 0 -n 1"),
        *("-n 1 -c 2y", "-n 1 -w x", "-n 1 -r 1.5", "-n 1 -w -2", ""),
    ],
)
def test_the_load_takes_numbers_as_they_are(programs: Programs, wrong: str) -> None:
    """Nothing is left out behind a number, and what is none is refused: nothing is measured that nobody asked for."""
    argv = [str(programs.load), "1", "/", *wrong.split()]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: load " in done.stderr


def test_a_load_that_nobody_answers_has_failed(programs: Programs) -> None:
    """Its figures are shown, and the exit code says that they are none."""
    argv = [str(programs.load), str(unused_port()), "/", "-n", "5"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    assert (done.returncode, json.loads(done.stdout)["errors"]) == (1, 5)
    assert "nothing was answered" in done.stderr


@pytest.mark.parametrize("program", ["mock", "load"])
def test_a_program_that_is_misused_says_how_it_is_used(programs: Programs, program: str) -> None:
    """Neither starts anything for a command line that makes no sense, and both have --help."""
    path = getattr(programs, program)
    for arguments, code in (["--help"], 0), ([], 2), (["abc"], 2), (["70000"], 2):
        done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=10, check=False)
        assert done.returncode == code
        assert f"usage: {program} " in (done.stdout if code == 0 else done.stderr)
