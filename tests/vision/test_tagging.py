"""Tags from a vocabulary: what a model says becomes one where there is no doubt, and is discarded and counted else."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.settings import shipped
from rolecall.vision.answers import Answer
from rolecall.vision.tagging import joined, listed, read_one, read_structured, response_format
from rolecall.vision.task import UNKNOWN
from rolecall.vision.tasks import load_tasks

TAGS = load_tasks(shipped("tasks"))["tags"]
WHOLE = {"lighting": "dim", "clarity": "sharp", "setting": "outdoor", "weather": ["foggy", "day"], "density": "empty"}
ALL = ("dim", "sharp", "outdoor", "foggy", "day", "empty")


def one(dimension: str, text: str) -> tuple[tuple[str, ...], list[tuple[str, str]]]:
    """The values of an answer to one question, and what was discarded, with the reason."""
    values, dropped, _ = read_one(TAGS, dimension, text)
    assert all(each.dimension == dimension for each in dropped)
    return values, [(each.text, each.reason) for each in dropped]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(WHOLE),
        json.dumps({"tags": WHOLE}),
        json.dumps([WHOLE]),
        f"```json\n{json.dumps(WHOLE, indent=2)}\n```",
        f"<think>Foggy.</think>Here: {json.dumps(WHOLE)} I hope this helps!",
        json.dumps({name.upper(): value for name, value in WHOLE.items()}),
        json.dumps({**WHOLE, "lighting": ["Dim."], "weather": "Foggy, day"}),
        "lighting: dim\nclarity: sharp\nsetting: outdoor\nweather: foggy, day\ndensity: empty",
        "* **Lighting**: Dim\n* **Clarity**: Sharp.\n- **Setting**: outdoor\n- Weather: fog and day\nDensity: empty",
        "dim, sharp, outdoor, foggy, day, empty",
        '["dim", "sharp", "outdoors", "mist", "daylight", "deserted"]',
        "Dim\nSharp\nOutdoor\nFoggy\nDay\nEmpty",
    ],
)
def test_one_answer_in_any_form(text: str) -> None:
    """JSON, with what may stand around it, lines and lists give the same tags, and nothing is discarded."""
    answer = read_structured(TAGS, text)
    assert answer == Answer(answer.value, ALL)
    assert answer.value == {name: value if isinstance(value, list) else [value] for name, value in WHOLE.items()}


@pytest.mark.parametrize("text", ["", "<think>", "```json\n```", "I cannot see any image.", "{}", "[]", "42", "null"])
def test_rubbish_gives_no_tags(text: str) -> None:
    """Nothing, a thought alone, a refusal and JSON without content give no tag, and a reason."""
    answer = read_structured(TAGS, text)
    assert (answer.value, answer.tags, answer.missing) == (None, (), tuple(TAGS.dimensions))
    assert answer.problem is not None


def test_what_is_not_in_the_vocabulary_is_discarded_and_counted() -> None:
    """Other words, other dimensions and what is no word go, each with its reason; the rest stays."""
    said = {**WHOLE, "lighting": "golden", "clarity": 7, "weather": ["foggy", "windy", "Foggy"], "mood": "calm"}
    answer = read_structured(TAGS, json.dumps(said))
    assert answer.tags == ("outdoor", "foggy", "empty")
    assert answer.missing == ("lighting", "clarity")
    assert [(each.dimension, each.text, each.reason) for each in answer.discarded] == [
        ("lighting", "golden", "not in the vocabulary"),
        ("clarity", "7", "no word"),
        ("weather", "windy", "not in the vocabulary"),
        ("", "mood: calm", "there is no such dimension"),
    ]
    assert answer.problem is None


@pytest.mark.parametrize(
    ("text", "tags", "dropped"),
    [
        ("dark, sharp, bustling, outdoor", ("dark", "sharp", "outdoor"), ["bustling"]),
        ('["dark", "bustling", 7, "unknown", ""]', ("dark",), ["bustling", "7"]),
        ('{"tags": ["dark", "sharp", "bustling"]}', ("dark", "sharp"), ["bustling"]),
        ('{"result": {"tags": ["dark", "sharp"]}}', ("dark", "sharp"), []),
        ('{"tags": ["dark", "odd"], "comment": "nice"}', ("dark",), ["odd"]),
        ('{"tags": "dark, sharp"}', ("dark", "sharp"), []),
        ('[{"lighting": "dark"}, {"clarity": "sharp"}]', ("dark", "sharp"), []),
        ("- dark\n* sharp\n3. odd", ("dark", "sharp"), ["odd"]),
        (
            "The picture is dark and blurry, taken outdoors.",
            ("blurry",),
            ["The picture is dark", "taken outdoors."],
        ),
    ],
)
def test_what_no_dimension_of_a_list_knows_is_counted(text: str, tags: tuple[str, ...], dropped: list[str]) -> None:
    """Where words stand in a mere list, those that are of no dimension are told with their reason like all others."""
    answer = read_structured(TAGS, text)
    assert answer.tags == tags
    assert [each.text for each in answer.discarded] == dropped
    assert {each.reason for each in answer.discarded} <= {"not in the vocabulary"}


def test_a_list_under_the_name_of_a_dimension_is_of_that() -> None:
    """Only under another name it is a list of all tags."""
    answer = read_structured(TAGS, '{"lighting": ["dark", "sharp"]}')
    assert answer.tags == ("dark",)
    assert [(each.dimension, each.text) for each in answer.discarded] == [("lighting", "sharp")]


def test_a_dimension_that_is_left_out_is_missing() -> None:
    """It is no word that was discarded, and it is told all the same."""
    answer = read_structured(TAGS, '{"lighting": "dark"}')
    assert answer.tags == ("dark",)
    assert answer.missing == ("clarity", "setting", "weather", "density")


@pytest.mark.parametrize(
    ("dimension", "text", "values", "dropped"),
    [
        ("lighting", "dark", ("dark",), []),
        ("lighting", "Dark.", ("dark",), []),
        ("lighting", "**Dark**", ("dark",), []),
        ("lighting", '"dark"', ("dark",), []),
        ("lighting", "`dark`\n", ("dark",), []),
        ("lighting", "Lighting: dark", ("dark",), []),
        ("lighting", "Answer: dark", ("dark",), []),
        ("lighting", '{"lighting": "dark"}', ("dark",), []),
        ("lighting", '{"answer": "dark"}', ("dark",), []),
        ("lighting", '["dark"]', ("dark",), []),
        ("lighting", "LOW-LIGHT", ("dim",), []),
        ("lighting", "The lighting is dim.", ("dim",), []),
        ("lighting", "very bright", ("bright",), []),
        ("clarity", "The picture is not blurry, it is sharp.", ("sharp",), []),
        ("clarity", "It isn't very sharp, it is out of focus.", ("blurry",), []),
        ("clarity", "not sharp", (), [("not sharp", "not in the vocabulary")]),
        ("lighting", "dark or dim", (), [("dark or dim", "not in the vocabulary")]),
        ("lighting", "Either dark or dim, I think.", (), [("Either dark or dim, I think.", "not in the vocabulary")]),
        ("lighting", "dark, bright", ("dark",), [("bright", "more than 1")]),
        ("lighting", "darkish", (), [("darkish", "not in the vocabulary")]),
        ("lighting", "unknown", (), [("unknown", "this dimension always has a value")]),
        ("lighting", "", (), []),
        ("weather", "unknown", (), []),
        ("weather", "N/A", (), []),
        ("weather", '["unknown"]', (), []),
        ("weather", "null", (), []),
        ("weather", "Sunny and daytime", ("sunny", "day"), []),
        ("weather", "sunny, sunny, sun", ("sunny",), []),
        ("weather", "sunny, day, cloudy", ("sunny", "day"), [("cloudy", "more than 2")]),
        ("weather", "cloudy/rainy", ("cloudy", "rainy"), []),
        ("setting", "It was taken outdoors.", ("outdoor",), []),
        ("setting", "Non-indoor, outdoor", ("outdoor",), [("Non-indoor", "not in the vocabulary")]),
        ("setting", "<think>indoor?</think>outdoor", ("outdoor",), []),
        ("setting", "Outdoor<|im_end|>", ("outdoor",), []),
        ("density", "true", (), [("true", "not in the vocabulary")]),
    ],
)
def test_an_answer_to_one_question(
    dimension: str, text: str, values: tuple[str, ...], dropped: list[tuple[str, str]]
) -> None:
    """Case, marks, synonyms and sentences are seen through; negations and undecided answers give nothing."""
    assert one(dimension, text) == (values, dropped)


def test_only_optional_dimensions_may_have_no_answer() -> None:
    """Indoors there is no weather: that is an answer, and nothing is missing."""
    reads = {name: read_one(TAGS, name, text) for name, text in {"weather": UNKNOWN, "lighting": UNKNOWN}.items()}
    answer = joined(TAGS, reads)
    assert "weather" not in answer.missing
    assert "lighting" in answer.missing


words = st.sampled_from([*TAGS.tags, UNKNOWN, "Golden hour", "not sharp", "", "outdoors"]) | st.text(max_size=20)


@given(
    st.dictionaries(st.sampled_from([*TAGS.dimensions, "mood"]), words | st.lists(words, max_size=5) | st.integers())
)
def test_tags_are_always_of_the_vocabulary(said: dict[str, Any]) -> None:
    """Whatever comes, each tag is of the vocabulary and of the dimension it stands in, once, and not one too many."""
    answer = read_structured(TAGS, json.dumps(said))
    assert set(answer.tags) <= set(TAGS.tags)
    assert len(set(answer.tags)) == len(answer.tags)
    value = answer.value if isinstance(answer.value, dict) else {}
    for name, values in value.items():
        assert set(values) <= set(TAGS.dimensions[name].values)
        assert 0 < len(values) <= TAGS.dimensions[name].at_most
    assert not set(answer.missing) & value.keys()


@given(st.text(), st.sampled_from(list(TAGS.dimensions)))
def test_no_text_breaks_the_reading(text: str, dimension: str) -> None:
    """Any text gives tags of the vocabulary or none."""
    values, _, counts = read_one(TAGS, dimension, text)
    assert set(values) <= set(TAGS.dimensions[dimension].values)
    assert counts or not values
    assert set(read_structured(TAGS, text).tags) <= set(TAGS.tags)


def test_the_schema_is_what_is_read() -> None:
    """What the schema lets through is read without loss, and what is not in the vocabulary it does not let through."""
    wanted = response_format(TAGS)
    assert (wanted["type"], wanted["json_schema"]["strict"]) == ("json_schema", True)
    schema = wanted["json_schema"]["schema"]
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(WHOLE, schema)
    jsonschema.validate({**WHOLE, "weather": [UNKNOWN]}, schema)
    for wrong in (
        {**WHOLE, "lighting": "golden"},
        {**WHOLE, "mood": "x"},
        {**WHOLE, "weather": []},
        {"lighting": "dim"},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_the_prompt_lists_every_word() -> None:
    """Each dimension has a line with its question and its words, optional ones with a word for not knowing."""
    lines = listed(TAGS).splitlines()
    assert lines[0] == "- lighting: How is the light in the picture? (one of: dark, dim, bright, normal)"
    assert lines[3].endswith("(one to 2 of: sunny, cloudy, rainy, foggy, snowy, night, day, unknown)")
    assert len(lines) == 5
