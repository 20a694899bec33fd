"""The order of pictures and tasks, from what the server says of its models."""

from __future__ import annotations

import pytest

from rolecall.vision.plan import MAX_JOBS, Chosen, Order, Plan, Room, plan

TASKS = [("caption", "caption"), ("keywords", "keywords"), ("tags", "vision_general")]
A, B = Chosen("a", 9000, 4), Chosen("b", 8000, 2)
GPU = Room(14_000, (14_000,), 100)


def made(chosen: dict[str, Chosen], room: Room | None = GPU, **wish: object) -> Plan:
    """Plan the three tasks."""
    return plan(TASKS, chosen, room, **wish)  # type: ignore[arg-type] # wishes of each test


def stages(plan: Plan) -> list[tuple[str, ...]]:
    """Return the tasks of each stage."""
    return [stage.tasks for stage in plan.stages]


def test_one_task_needs_no_choice() -> None:
    """There is one stage, with as many pictures at once as the model has places free."""
    only = plan(TASKS[:1], {"caption": Chosen("a", 9000, 4, taken=1)}, GPU, wish=Order.STAGE)
    assert (only.order, stages(only), only.stages[0].jobs) == (Order.PICTURE, [("caption",)], 3)


def test_one_model_for_all_is_asked_picture_by_picture() -> None:
    """The reason names the model."""
    result = made(dict.fromkeys(("caption", "keywords", "vision_general"), A))
    assert result.words == "picture by picture: a serves all 3 tasks"
    assert stages(result) == [("caption", "keywords", "tags")]
    assert (result.stages[0].models, result.stages[0].jobs) == (("a",), 4)


def test_models_that_do_not_fit_are_asked_stage_by_stage() -> None:
    """Tasks of one model are one stage, and the reason has the numbers."""
    result = made({"caption": A, "keywords": B, "vision_general": A})
    assert result.words == "stage by stage: a and b (9000 + 8000 MB) do not fit together into 14000 MB"
    assert stages(result) == [("caption", "tags"), ("keywords",)]
    assert [stage.jobs for stage in result.stages] == [4, 2]


def test_the_loaded_model_goes_first() -> None:
    """What is loaded already need not be loaded again."""
    loaded = Chosen("b", 8000, 2, loaded=True)
    assert stages(made({"caption": A, "keywords": loaded, "vision_general": A})) == [("keywords",), ("caption", "tags")]


@pytest.mark.parametrize(
    ("room", "fits"),
    [
        (Room(17_000, (17_000,), 2), True),
        (Room(17_000, (17_000,), 1), False),
        (Room(17_000, (), 2), True),
        (Room(16_999, (), 2), False),
        (Room(16_999, (17_000,), 2), False),
        (Room(20_000, (10_000, 10_000), 2), True),
        (Room(20_000, (12_000, 8_000), 2), True),
        (Room(16_000, (10_000, 10_000), 2), False),
        (Room(20_000, (5_000, 5_000, 10_000), 2), False),
        (None, False),
    ],
)
def test_whether_models_fit_together(room: Room | None, fits: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """All of the budget, each GPU and the number of models count; what is not known counts as not fitting."""
    result = made({"caption": A, "keywords": B, "vision_general": A}, room)
    assert (result.order is Order.PICTURE) == fits
    if fits:
        assert result.reason == "a and b fit into memory together"
        assert result.stages[0].jobs == 4


@pytest.mark.parametrize(
    ("chosen", "room", "reason"),
    [
        ({"caption": A}, GPU, "it is not known which models will serve"),
        ({"caption": A, "keywords": Chosen("c"), "vision_general": A}, GPU, "how much memory c will take"),
        ({"caption": A, "keywords": B, "vision_general": A}, None, "does not tell whether a and b fit"),
        (
            {"caption": A, "keywords": B, "vision_general": Chosen("c", 1)},
            Room(99_999, (), 2),
            "a, b and c are 3 models, and 2 may be loaded at once",
        ),
    ],
)
def test_the_reason_says_what_is_in_the_way(chosen: dict[str, Chosen], room: Room | None, reason: str) -> None:
    """Whatever keeps the models from being together is named."""
    result = made(chosen, room)
    assert result.order is Order.STAGE
    assert reason in result.reason


def test_roles_without_a_known_model_are_stages_of_their_own() -> None:
    """Each may be another model; one picture is asked about at a time."""
    result = made({"caption": A})
    assert stages(result) == [("caption",), ("keywords",), ("tags",)]
    assert [stage.jobs for stage in result.stages] == [4, 1, 1]


def test_a_wish_goes_before_what_is_best() -> None:
    """It is said what it costs; with one model each task is a stage, because that was asked for."""
    apart = {"caption": A, "keywords": B, "vision_general": A}
    result = made(apart, wish=Order.PICTURE)
    assert stages(result) == [("caption", "keywords", "tags")]
    assert result.reason.startswith("as asked, although a and b (9000")
    assert made(apart, wish=Order.STAGE).reason.startswith("as asked; a and b")
    together = made(dict.fromkeys(("caption", "keywords", "vision_general"), A), wish=Order.STAGE)
    assert stages(together) == [("caption",), ("keywords",), ("tags",)]


def test_jobs() -> None:
    """By default the free places, within limits; a number that was given counts."""
    alike = {"caption": Chosen("a", 1, 200)}
    assert plan(TASKS[:1], alike, GPU).stages[0].jobs == MAX_JOBS
    assert plan(TASKS[:1], {"caption": Chosen("a", 1, 2, taken=5)}, GPU).stages[0].jobs == 1
    assert plan(TASKS[:1], alike, GPU, jobs=99).stages[0].jobs == 99
