"""``rolecall run`` and the commands for one task, against a running rolecall with fake engines."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import duckdb
import pytest
from typer.testing import Result

from cli.invoke import answer, call, environment, in_terminal, on_a_full_disk
from harness import CONFIGS, DEADLINE_S, Rolecall, eventually, fake_entry
from rolecall.vision.sidecar import write_sidecar
from unused_ports import unused_port
from vision.pictures import folder, photograph

TASK = """
version = "3"
title = "{id}"
role = "{role}"
user = '''ECHO {says}'''
parser = "{parser}"
"""
"""A task that the fake engine answers with the words of the question."""
TAGS = """
version = "1"
title = "tags"
role = "caption"
user = '''ECHO {"light": "Bright.", "place": "the moon"}
{dimensions}'''
parser = "tags"
[dimensions.light]
question = "?"
values = ["dark", "bright"]
[dimensions.place]
question = "?"
values = ["indoor", "outdoor"]
"""
SLOW = ("--head-delay-s", "0.3")


def own_tasks(config_dir: Path) -> None:
    """Write tasks for the fake engine: two texts, words, tags, and one that takes a while."""
    tasks = config_dir / "tasks"
    tasks.mkdir()
    for id_, role, says, parser in (
        ("sentence", "caption", "A {adjective} boat.", "text"),
        ("story", "caption", "Once upon a time.", "text"),
        ("words", "keywords", "boat, sea, sky", "keywords"),
        ("slowly", "slow", "A snail.", "text"),
        ("broken", "broken", "Nothing.", "text"),
        ("blind", "blind", "Nothing.", "text"),
        ("nobody", "nobody", "Nothing.", "text"),
    ):
        text = TASK.format(id=id_, role=role, says=says, parser=parser)
        (tasks / f"{id_}.toml").write_text(text + ("[variables]\nadjective = 'red'\n" if id_ == "sentence" else ""))
    (tasks / "sorted.toml").write_text(TAGS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run one rolecall for all tests of this module."""
    sees = {"capabilities": ["text", "vision"], "backend_config": {}}
    entries = [
        fake_entry("seer", "--mmproj", "x", role_priority={"caption": 90, "keywords": 90}, **sees),
        fake_entry("snail", "--mmproj", "x", *SLOW, role_priority={"slow": 1}, max_parallel=2, **sees),
        fake_entry("smoke", "--fail-start", "it is on fire", role_priority={"broken": 1}, **sees),
        fake_entry("reader", role_priority={"blind": 1}),
    ]
    running = Rolecall(tmp_path_factory.mktemp("vision"), entries)
    own_tasks(running.config_dir)
    with running:
        yield running


@pytest.fixture
def here(server: Rolecall) -> tuple[str, ...]:
    """Return the options that point to the server and its tasks."""
    return ("--url", server.base_url, "--config-dir", str(server.config_dir))


def records(path: Path) -> list[dict[str, Any]]:
    """Return the records of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def ok(result: Result) -> Result:
    """Fail unless a command succeeded."""
    assert result.exit_code == 0, result.output
    return result


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start a command in a process of its own."""
    argv = [sys.executable, "-m", "rolecall", *map(str, arguments)]
    return subprocess.Popen(argv, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lines_of(path: Path) -> int:
    """Return how many whole lines a file has by now."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def names_in(folder: Path) -> list[str]:
    """Return the names of all files of a folder."""
    return sorted(path.name for path in folder.iterdir())


# --- what is asked and written ----------------------------------------------------------------------------------------


def test_each_picture_has_a_record_for_each_task(server: Rolecall, here: tuple[str, ...], tmp_path: Path) -> None:
    """File, task and version, what was said, who said it; variables are filled in; the log knows the task."""
    pictures, out = folder(tmp_path / "p", 3), tmp_path / "out.jsonl"
    ok(call("run", "sentence", "words", "sorted", pictures, "--out", out, "--set", "adjective=blue", *here))
    found = records(out)
    assert len(found) == 9
    assert {(Path(each["file"]).name, each["task"]) for each in found} == {
        (f"IMG_000{number}.jpg", task) for number in range(3) for task in ("sentence", "words", "sorted")
    }
    sentence = next(each for each in found if each["task"] == "sentence")
    assert (sentence["value"], sentence["tags"], sentence["version"]) == ("A blue boat.", [], "3")
    assert (sentence["variables"], sentence["model"]) == ({"adjective": "blue"}, "seer")
    assert (sentence["status"], sentence["error"]) == ("ok", None)
    assert sentence["completion_tokens"] == 3
    assert (sentence["width"], sentence["height"]) in {(160, 120), (120, 160)}
    words = next(each for each in found if each["task"] == "words")
    assert (words["value"], words["tags"]) == (["boat", "sea", "sky"], ["boat", "sea", "sky"])
    tags = next(each for each in found if each["task"] == "sorted")
    assert (tags["value"], tags["tags"], tags["discarded"]) == ({"light": ["bright"]}, ["bright"], 1)
    logged = [line for line in server.log_lines(9) if line["prompt_id"] == "sentence"]
    assert {(line["prompt_version"], line["images"]) for line in logged} == {("3", 1)}


def test_csv_and_duckdb_hold_the_same(here: tuple[str, ...], tmp_path: Path) -> None:
    """The same answers as a table and in a database, where tags are a list."""
    pictures = folder(tmp_path / "p", 2)
    for form in ("csv", "duckdb"):
        ok(call("run", "sentence", "words", pictures, "--out", tmp_path / f"out.{form}", *here))
    query = "SELECT task, value, tags FROM read_csv(?) ORDER BY file, task"
    table = duckdb.execute(query, [str(tmp_path / "out.csv")]).fetchall()
    assert table == [("sentence", "A red boat.", None), ("words", '["boat", "sea", "sky"]', "boat; sea; sky")] * 2
    with duckdb.connect(str(tmp_path / "out.duckdb")) as database:
        count = database.execute("SELECT count(*) FROM records WHERE list_contains(tags, 'sea')").fetchone()
    assert count == (2,)


def test_without_an_output_answers_are_printed(here: tuple[str, ...], tmp_path: Path) -> None:
    """A line for each answer for people, an object for programs; how it went is on stderr alone."""
    pictures = folder(tmp_path / "p", 2)
    result = ok(call("run", "sentence", "words", pictures, *here))
    assert sorted(result.stdout.splitlines()) == sorted(
        f"{pictures}/IMG_000{number}.jpg: {text}"
        for number in range(2)
        for text in ("sentence: A red boat.", "words: boat, sea, sky")
    )
    assert "rolecall: 4 answers in " in result.stderr
    printed = ok(call("run", "sentence", pictures, "--json", *here)).stdout.splitlines()
    assert [json.loads(line)["value"] for line in printed] == ["A red boat."] * 2


def test_json_with_an_output_is_a_summary(here: tuple[str, ...], tmp_path: Path) -> None:
    """The counts, the order and who answered."""
    pictures = folder(tmp_path / "p", 2)
    (pictures / "bad.jpg").write_bytes(b"")
    result = call("run", "sentence", pictures, "--out", tmp_path / "o.jsonl", "--json", *here)
    assert result.exit_code == 1
    summary = json.loads(result.stdout)
    assert (summary["pictures"], summary["ok"], summary["failed"], summary["stopped"]) == (3, 2, 1, False)
    assert summary["models"] == {"seer": 2}
    assert summary["order"] == "picture by picture"


def test_one_bad_file_is_reported_and_skipped(here: tuple[str, ...], tmp_path: Path) -> None:
    """Exit code 1, the reason on stderr and in the record, all others answered."""
    pictures, out = folder(tmp_path / "p", 2), tmp_path / "out.jsonl"
    whole = (pictures / "IMG_0000.jpg").read_bytes()
    (pictures / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (pictures / "drawing.png").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (pictures / "text.webp").write_text("hello")
    result = call("run", "sentence", pictures, "--out", out, *here)
    assert result.exit_code == 1
    found = {Path(each["file"]).name: each["error"] for each in records(out)}
    assert found.keys() == {"IMG_0000.jpg", "IMG_0001.jpg", "cut.jpg", "drawing.png", "text.webp"}
    assert found["IMG_0000.jpg"] is None
    assert "cut off" in found["cut.jpg"]
    assert "SVG" in found["drawing.png"]
    assert re.search(r"^rolecall: .*/text\.webp: sentence: it is not an image", result.stderr, re.MULTILINE)
    assert "2 answers in" in result.stderr
    assert "3 failed" in result.stderr


def test_formats(here: tuple[str, ...], tmp_path: Path) -> None:
    """JPEG, PNG, WebP, TIFF and GIF are read, whatever the case of the suffix."""
    for number, name in enumerate(("a.JPG", "b.png", "c.webp", "d.TIFF", "e.gif", "sub/f.jpeg")):
        photograph(tmp_path / "p" / name, number)
    result = ok(call("run", "sentence", tmp_path / "p", *here))
    assert len(result.stdout.splitlines()) == 6


# --- going on ---------------------------------------------------------------------------------------------------------


def test_resume_asks_only_for_what_is_missing(server: Rolecall, here: tuple[str, ...], tmp_path: Path) -> None:
    """New files, changed files, failures, other versions and variables are asked for; all else is not."""
    pictures, out = folder(tmp_path / "p", 4), tmp_path / "out.jsonl"
    (pictures / "bad.jpg").write_bytes(b"")
    assert call("run", "sentence", pictures, "--out", out, *here).exit_code == 1

    def again(*more: str | Path) -> list[str]:
        before = out.read_text()
        call("run", "sentence", pictures, "--out", out, "--resume", *more, *here)
        fresh = [json.loads(line) for line in out.read_text().splitlines() if line not in before]
        return sorted(Path(each["file"]).name for each in fresh)

    photograph(pictures / "new.jpg", 9)
    photograph(pictures / "IMG_0002.jpg", 99)
    photograph(pictures / "bad.jpg", 50)
    assert again() == ["IMG_0002.jpg", "bad.jpg", "new.jpg"]
    assert len(records(out)) == 6
    assert again() == []
    assert len(again("--set", "adjective=green")) == 6
    assert len(records(out)) == 12
    result = ok(call("run", "sentence", pictures, "--out", out, "--resume", *here))
    assert "0 answers in" in result.stderr
    assert "6 there already" in result.stderr


def test_an_answer_is_not_lost_for_a_file_that_cannot_be_read(here: tuple[str, ...], tmp_path: Path) -> None:
    """It is told as failed, and the answer to what it was stays until it can be read again."""
    pictures, out = folder(tmp_path / "p", 2), tmp_path / "out.jsonl"
    ok(call("run", "sentence", pictures, "--out", out, *here))
    before = records(out)
    whole = (pictures / "IMG_0000.jpg").read_bytes()
    (pictures / "IMG_0000.jpg").write_bytes(b"")
    result = call("run", "sentence", pictures, "--out", out, "--resume", *here)
    assert (result.exit_code, "it is empty" in result.stderr) == (1, True)
    assert records(out) == before
    (pictures / "IMG_0000.jpg").write_bytes(whole)
    assert "2 there already" in ok(call("run", "sentence", pictures, "--out", out, "--resume", *here)).stderr


def test_nobody_reads_the_answers(here: tuple[str, ...], tmp_path: Path) -> None:
    """As with `| head -1`: it ends without a traceback, and asks for no more."""
    pictures = folder(tmp_path / "p", 12)
    with start("run", "slowly", pictures, *here) as process:
        assert process.stdout is not None
        assert "A snail." in process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 1
    assert "Traceback" not in said
    assert "BrokenPipe" not in said


def test_an_output_that_is_there_needs_a_word(here: tuple[str, ...], tmp_path: Path) -> None:
    """Exit code 2 and a reason; nothing was asked and nothing changed."""
    pictures, out = folder(tmp_path / "p", 1), tmp_path / "out.jsonl"
    ok(call("run", "sentence", pictures, "--out", out, *here))
    before = out.read_bytes()
    result = call("run", "sentence", pictures, "--out", out, *here)
    assert result.exit_code == 2
    assert "is there already: --resume continues it" in result.stderr
    assert out.read_bytes() == before
    result = call("run", "sentence", pictures, "--resume", *here)
    assert result.exit_code == 2
    assert "name that file with --out" in result.stderr


def test_ctrl_c_keeps_what_is_done(server: Rolecall, here: tuple[str, ...], tmp_path: Path) -> None:
    """Exit code 130; whole records; the engine is asked no more; --resume does the rest and asks for nothing twice."""
    pictures, out = folder(tmp_path / "p", 12), tmp_path / "out.jsonl"
    with start("run", "slowly", pictures, "--out", out, *here) as process:
        eventually(lambda: lines_of(out) >= 3)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, said
    assert "stopped; the same command with --resume goes on" in said
    assert "Traceback" not in said
    done = records(out)
    assert 3 <= len(done) < 12
    eventually(lambda: server.row("snail")["in_flight"] == 0)
    ok(call("run", "slowly", pictures, "--out", out, "--resume", *here))
    assert records(out)[: len(done)] == done
    assert sorted(Path(each["file"]).name for each in records(out)) == names_in(pictures)


def test_kill_loses_at_most_what_was_in_work(here: tuple[str, ...], tmp_path: Path) -> None:
    """After kill -9, and a line that was torn, --resume completes the file: each picture once."""
    pictures, out = folder(tmp_path / "p", 12), tmp_path / "out.jsonl"
    with start("run", "slowly", pictures, "--out", out, *here) as process:
        eventually(lambda: lines_of(out) >= 3)
        process.kill()
        process.communicate()
    done = records(out)
    with out.open("ab") as file:
        file.write(out.read_bytes()[:100])
    ok(call("run", "slowly", pictures, "--out", out, "--resume", *here))
    assert records(out)[: len(done)] == done
    assert sorted(Path(each["file"]).name for each in records(out)) == names_in(pictures)


def test_a_full_disk_ends_the_run(here: tuple[str, ...], tmp_path: Path) -> None:
    """Exit code 1 with what to do; the output is whole, and is continued once there is room."""
    pictures, out = folder(tmp_path / "p", 12), tmp_path / "out.jsonl"
    ended = on_a_full_disk("run", "sentence", pictures, "--out", out, *here, room=2000)
    assert ended.returncode == 1
    assert "the disk is full" in ended.stderr
    assert "go on with --resume" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert 0 < len(records(out)) < 12
    ok(call("run", "sentence", pictures, "--out", out, "--resume", *here))
    assert len({each["file"] for each in records(out)}) == len(records(out)) == 12


# --- sidecars ---------------------------------------------------------------------------------------------------------


def test_sidecars_get_keywords_tags_and_the_first_text(here: tuple[str, ...], tmp_path: Path) -> None:
    """Merged with what is there; the record names the file; a broken sidecar stays, and is put right by a later run."""
    pictures, out = folder(tmp_path / "p", 2), tmp_path / "out.jsonl"
    write_sidecar(pictures / "IMG_0000.jpg", ["mine", "SEA"], "My words.")
    broken = pictures / "IMG_0001.jpg.xmp"
    broken.write_text("<x:xmpmeta")
    options: tuple[str | Path, ...] = ("--out", out, "--write-sidecar", "xmp", *here)
    result = call("run", "sentence", "story", "words", "sorted", pictures, *options)
    assert result.exit_code == 1
    assert "3 sidecars not written" in result.stderr
    text = (pictures / "IMG_0000.jpg.xmp").read_text()
    assert re.findall(r"<rdf:li>(.*?)<", text) == ["mine", "SEA", "boat", "sky", "bright"]
    assert "My words." in text
    assert "A red boat." not in text
    assert broken.read_text() == "<x:xmpmeta"
    story = next(each for each in records(out) if each["task"] == "story")
    assert (story["sidecar"], story["sidecar_error"]) == (None, None)
    broken.unlink()
    result = ok(call("run", "sentence", "story", "words", "sorted", pictures, "--resume", *options))
    assert "0 answers" not in result.stderr
    text = broken.read_text()
    assert re.findall(r"<rdf:li[^>]*>(.*?)<", text) == ["A red boat.", "boat", "sea", "sky", "bright"]
    assert len(records(out)) == 8
    assert [each["sidecar_error"] for each in records(out)] == [None] * 8


def test_a_description_is_replaced_on_request(here: tuple[str, ...], tmp_path: Path) -> None:
    """Otherwise what somebody wrote stays."""
    pictures = folder(tmp_path / "p", 1)
    sidecar = write_sidecar(pictures / "IMG_0000.jpg", [], "My words.").path
    ok(call("run", "story", pictures, "--write-sidecar", "xmp", "--replace-descriptions", *here))
    assert "Once upon a time." in sidecar.read_text()
    assert "My words." not in sidecar.read_text()


# --- plans and wrong usage --------------------------------------------------------------------------------------------


def test_dry_run_says_what_would_be_done(server: Rolecall, here: tuple[str, ...], tmp_path: Path) -> None:
    """Pictures, models, the order with its reason, what is there already; nothing is asked and nothing written."""
    pictures, out = folder(tmp_path / "p", 3), tmp_path / "out.jsonl"
    (pictures / "raw.cr2").touch()
    began = datetime.now(timezone.utc).isoformat()
    text = ok(call("run", "sentence", "words", pictures, "--out", out, "--dry-run", *here)).stdout
    assert not out.exists()
    assert "3 pictures; passed over: 1 .cr2" in text
    assert re.search(r"^words +3 +keywords +seer$", text, re.MULTILINE)
    assert "picture by picture: seer serves both tasks" in text
    assert "1. sentence, words: 4 pictures at a time" in text
    ok(call("run", "sentence", pictures / "IMG_0000.jpg", "--out", out, *here))
    with out.open("ab") as file:
        file.write(b'{"file":"/torn')
    before = out.read_bytes()
    facts = answer(
        "run", "sentence", "slowly", pictures, "--out", out, "--resume", "--stage-by-stage", "--dry-run", *here
    )
    assert (facts["order"], facts["earlier"], facts["pictures"]) == ("stage by stage", 1, 3)
    assert [(stage["tasks"], stage["jobs"]) for stage in facts["stages"]] == [(["sentence"], 4), (["slowly"], 2)]
    assert "fit into memory together" in facts["reason"]
    assert out.read_bytes() == before
    asked = eventually(lambda: [line for line in server.log_lines() if line["ts"] > began])
    assert [line["prompt_id"] for line in asked] == ["sentence"]


def test_stages_are_done_one_after_the_other(here: tuple[str, ...], tmp_path: Path) -> None:
    """Stage by stage all pictures of one task come before all of the next, picture by picture they do not."""
    pictures = folder(tmp_path / "p", 6)

    def order(option: str) -> list[str]:
        out = tmp_path / f"{option}.jsonl"
        ok(call("run", "sentence", "words", pictures, option, "--jobs", "1", "--out", out, *here))
        return [each["task"] for each in records(out)]

    assert order("--stage-by-stage") == ["sentence"] * 6 + ["words"] * 6
    assert order("--picture-by-picture") == ["sentence", "words"] * 6


def test_jobs_bound_what_is_asked_at_a_time(server: Rolecall, here: tuple[str, ...], tmp_path: Path) -> None:
    """By default the model's places; --jobs less or more."""
    pictures = folder(tmp_path / "p", 6)
    for options, at_once in (((), 2), (("--jobs", "1"), 1)):
        with start("run", "slowly", pictures, *options, *here) as process:
            eventually(lambda at_once=at_once: server.row("snail")["in_flight"] == at_once)  # type: ignore[misc]
            while process.poll() is None:
                row = server.row("snail")
                assert row["in_flight"] + row["waiting"] <= at_once
            process.communicate()
        assert process.returncode == 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["sentense", "."], "there is no task 'sentense'; did you mean 'sentence'?"),
        (["."], "the tasks come first, then the paths"),
        (["sentence"], "no path was given"),
        (["sentence", "nowhere"], "nowhere: there is no such file or folder"),
        (["sentence", "empty"], "no picture in empty: looked for files that end in avif, bmp, gif, "),
        (["sentence", "a.jpg", "--set", "colour=red"], "has no variable 'colour'; there is adjective"),
        (["sentence", "a.jpg", "--set", "red"], "--set takes NAME=TEXT"),
        (["sentence", "a.jpg", "--set", "adjective=\udcff"], "the variable 'adjective' is no text"),
        (["sentence", "a.jpg", "--language", "ja"], "the task sentence has no variable 'language'"),
        (["mono_interpretation", "a.jpg"], "needs the variable 'check'"),
        (["sentence", "a.jpg", "--out", "o.txt"], "ends in .jsonl, .csv or .duckdb"),
        (["sentence", "a.jpg", "--out", "o.txt", "--dry-run"], "ends in .jsonl, .csv or .duckdb"),
        (["sentence", "a.jpg", "--jobs", "0"], "greater than or equal to 1"),
    ],
)  # fmt: skip
def test_wrong_usage(
    words: Sequence[str], reason: str, here: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2 with the reason and a way out, and an empty stdout."""
    photograph(tmp_path / "a.jpg")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    result = call("run", *words, *here)
    assert (result.exit_code, result.stdout) == (2, "")
    assert reason in result.stderr


def test_capitals_make_no_other_task(here: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As everywhere else; but a folder whose name has capitals is that folder."""
    folder(tmp_path / "Words", 2)
    monkeypatch.chdir(tmp_path)
    assert len(ok(call("run", "SENTENCE", "Words", *here)).stdout.splitlines()) == 2
    assert len(ok(call("run", "Sentence", "WORDS", "Words", *here)).stdout.splitlines()) == 4


def test_a_broken_task_is_named(server: Rolecall, tmp_path: Path) -> None:
    """File and field are in the message where that task is asked for, as any of several; the others go on."""
    shutil.copytree(server.config_dir, tmp_path / "configs")
    (tmp_path / "configs/tasks/bad.toml").write_text("version = 1\n")
    photograph(tmp_path / "a.jpg")
    here = (tmp_path / "a.jpg", "--config-dir", tmp_path / "configs", "--url", server.base_url)
    assert call("run", "sentence", *here).exit_code == 0
    for words in (("bad",), ("Bad",), ("sentence", "bad"), ("sentence", "BAD")):
        result = call("run", *words, *here)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("rolecall: the task bad cannot be used: ")
        assert "bad.toml: title: is missing" in result.stderr


# --- servers that do not answer ---------------------------------------------------------------------------------------


def test_without_a_server_it_says_how_to_start_one(tmp_path: Path) -> None:
    """Exit code 1, and no output file."""
    pictures, out = folder(tmp_path / "p", 1), tmp_path / "o.jsonl"
    result = call("caption", pictures, "--out", out, "--url", "http://127.0.0.1:9", "--config-dir", CONFIGS)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no rolecall at http://127.0.0.1:9" in result.stderr
    assert "`rolecall serve` starts it" in result.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ("nobody", "No model plays the role 'nobody'"),
        ("blind", "reader: lacks vision"),
        ("sentence --model sentry", "The model 'sentry' does not exist. Did you mean 'seer'?"),
        ("sentence --model \udcff", "The model '?' does not exist."),
    ],
)
def test_what_no_picture_can_change_ends_the_run(task: str, reason: str, here: tuple[str, ...], tmp_path: Path) -> None:
    """The first refusal is the last one: no picture is counted as failed for it."""
    pictures, out = folder(tmp_path / "p", 6), tmp_path / "out.jsonl"
    name, *options = task.split()
    result = call("run", name, pictures, "--out", out, *options, *here)
    assert result.exit_code == 1
    assert reason in result.stderr
    assert "--resume" not in result.stderr
    assert not out.exists()


def test_a_model_may_be_named(here: tuple[str, ...], tmp_path: Path) -> None:
    """Instead of the tasks' roles; also one that plays none of them."""
    pictures, out = folder(tmp_path / "p", 2), tmp_path / "out.jsonl"
    ok(call("run", "sentence", "words", pictures, "--model", "snail", "--out", out, *here))
    assert {each["model"] for each in records(out)} == {"snail"}


def test_a_model_that_never_starts_ends_the_run(here: tuple[str, ...], tmp_path: Path) -> None:
    """It is not tried once for each of a thousand pictures."""
    pictures = folder(tmp_path / "p", 30)
    result = call("run", "broken", pictures, "--out", tmp_path / "out.jsonl", *here)
    assert result.exit_code == 1
    assert "it is on fire" in result.stderr


def test_an_engine_that_is_killed_is_asked_again(tmp_path: Path) -> None:
    """The next one answers: no picture is lost."""
    entry = fake_entry(
        "mortal", "--mmproj", "x", "--crash-after-requests", "5", role_priority={"caption": 1},
        capabilities=["text", "vision"],
    )  # fmt: skip
    running = Rolecall(tmp_path / "rolecall", [entry])
    own_tasks(running.config_dir)
    pictures, out = folder(tmp_path / "p", 12), tmp_path / "out.jsonl"
    with running:
        options = ("--url", running.base_url, "--config-dir", str(running.config_dir), "--jobs", "1")
        ok(call("run", "sentence", pictures, "--out", out, *options))
    assert len(records(out)) == 12


def test_a_server_that_is_restarted_is_waited_for(tmp_path: Path) -> None:
    """A run survives an update of rolecall: what got no answer is asked again."""
    entry = fake_entry("snail", "--mmproj", "x", *SLOW, role_priority={"slow": 1}, capabilities=["text", "vision"])
    arguments = ("--port", str(unused_port()))
    first = Rolecall(tmp_path / "rolecall", [entry], arguments=arguments)
    own_tasks(first.config_dir)
    pictures, out = folder(tmp_path / "p", 12), tmp_path / "out.jsonl"
    with first:
        process = start(
            "run",
            "slowly",
            pictures,
            "-j",
            "2",
            "--out",
            out,
            "--url",
            first.base_url,
            "--config-dir",
            first.config_dir,
        )
        eventually(lambda: lines_of(out) >= 2)
    with Rolecall(tmp_path / "rolecall", [entry], arguments=arguments):
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert len(records(out)) == 12


def test_a_server_with_keys(tmp_path: Path) -> None:
    """A key for inference will do, though it is not told what fits together; without one the reason is told at once."""
    sees = {"capabilities": ["text", "vision"]}
    entries = [
        fake_entry("seer", "--mmproj", "x", role_priority={"caption": 1}, **sees),
        fake_entry("other", "--mmproj", "x", role_priority={"keywords": 1}, **sees),
    ]
    running = Rolecall(tmp_path / "rolecall", entries, settings={"api_keys_file": "keys.json"})
    own_tasks(running.config_dir)
    config = ("--config-dir", running.config_dir)
    key = {"ROLECALL_API_KEY": answer("keys", "add", "photos", *config)["key"]}
    pictures, out = folder(tmp_path / "p", 2), tmp_path / "out.jsonl"
    with running:
        words = ("run", "sentence", "words", pictures, "--out", out, "--url", running.base_url, *config)
        refused = call(*words)
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert "ROLECALL_API_KEY is where the commands look for a key" in refused.stderr
        assert not out.exists()
        done = call(*words, env=key)
        assert {line["key"] for line in running.log_lines(4)} == {"photos"}
    assert done.exit_code == 0, done.output
    assert "stage by stage: the server does not tell whether seer and other fit into memory together" in done.stderr
    assert key["ROLECALL_API_KEY"] not in done.output
    assert len(records(out)) == 4


# --- how it is shown --------------------------------------------------------------------------------------------------


def test_a_terminal_has_a_bar(here: tuple[str, ...], tmp_path: Path) -> None:
    """With count, rate and what is left; a dumb terminal has plain lines."""
    pictures = folder(tmp_path / "p", 5)
    arguments = ("run", "slowly", pictures, "--out")
    fancy = "\n".join(in_terminal(*arguments, tmp_path / "a.jsonl", *here, columns=100, kind="xterm"))
    assert re.search(r"slowly.*5/5.*\d/s", fancy)
    plain = "\n".join(in_terminal(*arguments, tmp_path / "b.jsonl", *here, columns=100))
    assert "\x1b" not in plain
    assert re.search(r"^rolecall: 5 answers in \d+s", plain, re.MULTILINE)
