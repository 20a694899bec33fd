"""Tasks as data: what their files may say, what is wrong with one, and which of two is used."""

from __future__ import annotations

from pathlib import Path

import pytest

from rolecall.settings import load_settings, shipped
from rolecall.vision.task import Task, filled
from rolecall.vision.tasks import (
    SHIPPED_IDS,
    TaskError,
    TaskFolder,
    UnknownTask,
    WrongVariable,
    load_tasks,
    tasks_of,
    variables_of,
)

SHIPPED = load_tasks(shipped("tasks"))

SMALL = """
version = 1
title = "Small"
role = "caption"
user = "What is it?"
"""
TAGGING = """
version = "2"
title = "Mood"
role = "vision_general"
user = "Choose: {dimensions}"
parser = "tags"
[dimensions.mood]
question = "How does it feel?"
values = ["calm", "wild"]
"""


def write(folder: Path, text: str, name: str = "mine") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def problem(folder: Path, text: str) -> str:
    """What is said of a file that cannot be used."""
    path = write(folder, text)
    said = load_tasks(folder).problems[path]
    assert said.startswith(f"{path}: ")
    return said.removeprefix(f"{path}: ")


def test_the_shipped_tasks() -> None:
    """The tasks that were promised are there, with the vocabulary that was promised."""
    assert set(SHIPPED) == {"caption", "keywords", "description", "narration", "mono_interpretation", "ocr", "tags"}
    assert set(SHIPPED) == SHIPPED_IDS
    assert {name: each.values for name, each in SHIPPED["tags"].dimensions.items()} == {
        "lighting": ("dark", "dim", "bright", "normal"),
        "clarity": ("blurry", "sharp", "noisy"),
        "setting": ("indoor", "outdoor"),
        "weather": ("sunny", "cloudy", "rainy", "foggy", "snowy", "night", "day"),
        "density": ("empty", "sparse", "moderate", "crowded"),
    }


def test_the_shipped_tasks_begin_alike() -> None:
    """All have the same system message, so that an engine's cache of a picture serves the next task, too."""
    assert len({task.system for task in SHIPPED.values()}) == 1


def test_a_task_needs_no_code(tmp_path: Path) -> None:
    """A file in the user's folder is a task; its name is the id where it gives none, and a number is a version."""
    write(tmp_path, SMALL, "my-task")
    task = load_tasks(shipped("tasks"), tmp_path)["my-task"]
    assert (task.id, task.version, task.parser, task.role) == ("my-task", "1", "text", "caption")


def test_ones_own_takes_the_place_of_a_shipped_one(tmp_path: Path) -> None:
    """A task of the same id in a later folder is used instead; all others stay."""
    write(tmp_path / "tasks", SMALL, "caption")
    settings = load_settings({"config_dir": tmp_path, "state_dir": tmp_path}, {})
    tasks = tasks_of(settings)
    assert tasks["caption"].title == "Small"
    assert tasks["keywords"] == SHIPPED["keywords"]
    assert len(tasks) == len(SHIPPED)


def test_a_clone_reads_its_tasks_once() -> None:
    """Where the config folder is the one that is shipped, its tasks are all there are."""
    folder = shipped("tasks").parent
    assert tasks_of(load_settings({"config_dir": folder}, {})) == SHIPPED


def test_no_folder_is_no_task(tmp_path: Path) -> None:
    """A folder that is not there has no tasks, which is no error."""
    assert dict(load_tasks(tmp_path / "nowhere")) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title = ", "is no TOML: "),
        (SMALL + "rolle = 1", "rolle: there is no such field; did you mean 'role'?"),
        (SMALL + "[image]\nmax_sied = 9", "image.max_sied: there is no such field; did you mean 'max_side'?"),
        (SMALL + "[image]\nmax_side = 9", "image.max_side: Input should be greater than or equal to 32"),
        (SMALL.replace('title = "Small"', ""), "title: is missing; a task needs it"),
        (SMALL.replace("What is it?", "In {langauge}?"), "user: {langauge} names no variable; [variables] declares"),
        (
            SMALL.replace("What is it?", "In {langauge}?") + '[variables]\nlanguage = "English"',
            "user: {langauge} names no variable; did you mean 'language'?",
        ),
        (SMALL + '[parameters]\nmodel = "x"', "parameters: holds 'model', which the task itself decides; take it out"),
        (SMALL + 'id = "No Name"', "id: String should match pattern"),
        (SMALL + 'parser = "tags"', "dimensions: are missing; a task that tags needs some"),
        (TAGGING.replace("{dimensions}", ""), "user: must hold {dimensions}, where the dimensions"),
        (TAGGING.replace('parser = "tags"', ""), "parser: must be 'tags', because there are dimensions"),
        (SMALL + "[validation]\nmin_chars = 9\nmax_chars = 8", "validation: min_chars is above max_chars"),
        (TAGGING.replace('"wild"', '"calm"'), "dimensions.mood.values: holds 'calm' more than once; take one of them"),
        (
            TAGGING.replace('"wild"', '"Wild"'),
            "dimensions.mood.values: holds 'Wild', to which no answer could be equal",
        ),
        (
            TAGGING.replace('"wild"', '"unknown"'),
            "dimensions.mood.values: holds 'unknown', which models may say anyway",
        ),
        (TAGGING.replace(', "wild"', ""), "dimensions.mood.values: Tuple should have at least 2 items"),
        (
            TAGGING + '[dimensions.mood.synonyms]\ncalm = "wild"',
            "dimensions.mood: synonyms: 'calm' is a value itself; take it out of one of the two",
        ),
        (
            TAGGING + '[dimensions.mood.synonyms]\nfierce = "wlid"',
            "dimensions.mood: synonyms: fierce = 'wlid' is none of the values; did you mean 'wild'?",
        ),
        (
            TAGGING + '[dimensions.scene]\nquestion = "?"\nvalues = ["wild", "tame"]',
            "dimensions.scene: 'wild' is in dimensions.mood too; a tag alone must tell what it is of",
        ),
        (TAGGING + "[dimensions.Scene]\nquestion = '?'\nvalues = ['a', 'b']", "dimensions: 'Scene' is no name"),
        (TAGGING.replace("values =", "valeus ="), "dimensions.mood.valeus: there is no such field; did you mean 'val"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, said: str) -> None:
    """An error names the file, the field, and what to do; a vocabulary that is ambiguous is one."""
    assert any(
        line.startswith(said) for line in problem(tmp_path, text).replace(f"{tmp_path}/mine.toml: ", "").split("\n")
    )


def test_every_problem_of_every_file_is_said(tmp_path: Path) -> None:
    """All that is to be mended is seen at once."""
    write(tmp_path, SMALL + "a = 1\nb = 2", "one")
    write(tmp_path, "", "two")
    lines = "\n".join(load_tasks(tmp_path).problems.values()).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["a", "b", "version", "title", "role", "user"]


def test_two_files_of_one_id_are_an_error(tmp_path: Path) -> None:
    """Within a folder nobody could say which of the two is meant."""
    write(tmp_path, 'id = "same"' + SMALL, "a")
    write(tmp_path, 'id = "same"' + SMALL, "b")
    tasks = load_tasks(tmp_path)
    assert list(tasks) == []
    with pytest.raises(TaskError, match=r"b\.toml: id: 'same' is the id of .*a\.toml too"):
        tasks.find("same")


def test_no_text_is_an_error(tmp_path: Path) -> None:
    """A file that is not UTF-8, and a folder called like a file, are named."""
    (tmp_path / "latin.toml").write_bytes(b'title = "\xe4"')
    (tmp_path / "folder.toml").mkdir()
    folder, latin = load_tasks(tmp_path).problems.values()
    assert "folder.toml: cannot be read: Is a directory" in folder
    assert "latin.toml: is no TOML" in latin


def test_a_broken_file_takes_nothing_from_the_others(tmp_path: Path) -> None:
    """It is refused by its name, and by the id that it gives itself; a shipped task is not used in its place."""
    write(tmp_path, SMALL + "rolle = 1", "caption")
    write(tmp_path, SMALL + 'id = "mine"\nrolle = 1', "other")
    tasks = load_tasks(shipped("tasks"), tmp_path)
    assert set(tasks) == set(SHIPPED) - {"caption"}
    assert tasks.find("tags") == SHIPPED["tags"]
    for name, file in (("Caption", "caption"), ("mine", "other"), ("other", "other")):
        with pytest.raises(TaskError, match=rf"cannot be used: .*{file}\.toml: rolle: there is no such field"):
            tasks.find(name)


def test_files_are_read_again_when_they_change(tmp_path: Path) -> None:
    """A file that comes, changes or goes does so at once; between changes nothing is read."""
    tasks = TaskFolder(tmp_path / "tasks")
    assert dict(tasks()) == {}
    path = write(tmp_path / "tasks", SMALL)
    first = tasks()
    assert first["mine"].title == "Small"
    assert tasks() is first
    path.write_text(SMALL.replace("Small", "Large"), encoding="utf-8")
    assert tasks()["mine"].title == "Large"
    path.write_text("title = ", encoding="utf-8")
    assert list(tasks().problems) == [path]
    path.unlink()
    assert (dict(tasks()), tasks().problems) == ({}, {})


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("captoin", "there is no task 'captoin'; did you mean 'caption'?"),
        ("xyz", "there is no task 'xyz'; there are caption, description, keywords,"),
    ],
)
def test_an_unknown_task(asked: str, said: str) -> None:
    """What is near is proposed, else all there are."""
    with pytest.raises(UnknownTask) as caught:
        SHIPPED.find(asked)
    assert str(caught.value).startswith(said)


def test_ids_are_found_in_any_case() -> None:
    """A person's spelling of a task's id is taken."""
    assert SHIPPED.find(" Caption ") is SHIPPED["caption"]


def test_variables() -> None:
    """Defaults hold unless something is given; what is measured is left to the measuring."""
    assert variables_of(SHIPPED["caption"], {}) == {"language": "English"}
    assert variables_of(SHIPPED["caption"], {"language": "Deutsch"}) == {"language": "Deutsch"}
    assert variables_of(SHIPPED["narration"], {}) == {"language": "English"}
    assert variables_of(SHIPPED["narration"], {"colours": "red"})["colours"] == "red"


@pytest.mark.parametrize(
    ("task", "given", "said"),
    [
        ("caption", {"langauge": "x"}, "the task caption has no variable 'langauge'; did you mean 'language'?"),
        ("tags", {"language": "x"}, "the task tags has no variable 'language'; it has none"),
        ("mono_interpretation", {}, "the task mono_interpretation needs the variable 'check' (result of the check"),
        ("mono_interpretation", {"check": " "}, "the task mono_interpretation needs the variable 'check'"),
    ],
)
def test_wrong_variables(task: str, given: dict[str, str], said: str) -> None:
    """A variable that is not there, or one that is needed and was not given, is named."""
    with pytest.raises(WrongVariable) as caught:
        variables_of(SHIPPED[task], given)
    assert str(caught.value).startswith(said)


def test_what_is_filled_in_is_left_alone() -> None:
    """Braces in a value, as in JSON, name no variable; those in a prompt that is JSON do not either."""
    assert filled('{check} {"a": {}}', {"check": "{language}", "language": "x"}) == '{language} {"a": {}}'


def test_a_task_is_a_value() -> None:
    """A task does not change, and a variant of it is another one."""
    tags = SHIPPED["tags"]
    assert tags.model_copy(update={"mode": "questions"}).mode == "questions"
    assert tags.mode == "structured"
    with pytest.raises(ValueError, match="frozen"):
        tags.mode = "questions"
    assert isinstance(tags, Task)


def test_questions_need_no_list_of_dimensions(tmp_path: Path) -> None:
    """Where each dimension is asked for by itself, the prompt for all of them is not sent."""
    text = TAGGING.replace("{dimensions}", "").replace('parser = "tags"', 'parser = "tags"\nmode = "questions"')
    write(tmp_path, text)
    assert load_tasks(tmp_path)["mine"].mode == "questions"
