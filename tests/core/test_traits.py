"""What a chat template tells of the model that it belongs to."""

from __future__ import annotations

import pytest

from rolecall.core.traits import NOTHING_KNOWN, Traits, traits_of

PLAIN = "{% for m in messages %}{{ m.role }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
GPT_OSS = "<|channel|>analysis {% if messages[0].role == 'developer' %}..{% endif %}{% if add_generation_prompt %}"
R1 = "{% if add_generation_prompt %}{{'<｜Assistant｜><think>\\n'}}{% endif %}"
QWEN3 = (
    "{% if '</think>' in content %}{% endif %}{%- if add_generation_prompt %}<|im_start|>assistant\n"
    "{%- if enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
QWEN3_5 = QWEN3.replace("{%- endif %}{%- endif %}", "{%- else %}{{- '<think>\\n' }}{%- endif %}{%- endif %}")
DEEPSEEK_3_1 = (
    "{% if add_generation_prompt %}{{'<｜Assistant｜>'}}{% if not thinking %}{{'</think>'}}{% else %}{{'<think>'}}"
)


@pytest.mark.parametrize(
    ("template", "thinks", "starts_in_thought"),
    [
        (PLAIN, False, False),
        (R1, True, True),
        (QWEN3, True, False),
        (QWEN3_5, True, True),
        (DEEPSEEK_3_1, True, False),
        (GPT_OSS, True, False),
        ("[SYSTEM_PROMPT]..[THINK]", True, False),
        ("<think>", True, False),
        ("add_generation_prompt", False, False),
    ],
)
def test_a_template_tells_whether_the_model_thinks(template: str, thinks: bool, starts_in_thought: bool) -> None:  # noqa: FBT001 - parameters of the test
    """A mark of thoughts anywhere means that it may think; one that is left open before the answer, that it does."""
    traits = traits_of([template])
    assert (traits.thinks, traits.starts_in_thought) == (thinks, starts_in_thought)


@pytest.mark.parametrize(
    ("template", "knows"),
    [(PLAIN, False), (GPT_OSS, True), ('{% if role in ["system", "developer"] %}', True), ("the developer of", False)],
)
def test_a_template_tells_whether_it_knows_developers(template: str, knows: bool) -> None:  # noqa: FBT001 - parameters of the test
    """It compares roles with the word, in quotation marks of either kind."""
    assert traits_of([template]).knows_developer is knows


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("template", [PLAIN, GPT_OSS])
def test_the_word_of_the_entry_goes_first(template: str, said: bool) -> None:  # noqa: FBT001 - parameters of the test
    """What the registry says of the role is so, whatever stands in the template, and for any engine."""
    assert traits_of([template], developer_role=said).knows_developer is said
    assert traits_of([], developer_role=said, passes=True).knows_developer is said


def test_where_there_is_no_template() -> None:
    """Nothing is supposed, but for the words of OpenAI, which pass to a server that is spoken to in them."""
    assert traits_of([]) == NOTHING_KNOWN == Traits()
    assert traits_of([], passes=True).knows_developer
    assert traits_of([], reasons=True).thinks


def test_one_of_several_templates_is_enough() -> None:
    """A model with templates for several uses may be asked for any of them."""
    assert traits_of([PLAIN, R1, GPT_OSS]) == Traits(knows_developer=True, thinks=True, starts_in_thought=True)
