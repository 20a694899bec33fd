"""Rules about models that were found: what holds, in which order, and what is wrong with a rules file."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rolecall.core.discovery import Found, Rules, judge, read_rules
from rolecall.core.models import DEFAULT_ROLE_PRIORITY
from rolecall.errors import ConfigurationError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHIPPED = read_rules(tomllib.loads((Path(__file__).parents[2] / "configs/discovery.toml").read_text(encoding="utf-8")))
CHAT = "{{ messages }} image {% for tool in tools %}"
THINKS = CHAT + "<think>"


def rules(*table: dict[str, Any], **more: Any) -> Rules:
    """Return rules, each with a name and a reason."""
    return read_rules(
        {"rules": [{"name": f"r{n}", "why": f"reason {n}", **row} for n, row in enumerate(table)], **more}
    )


def gguf(name: str = "m", architecture: str = "llama", **fields: Any) -> Found:
    """Return what a GGUF says."""
    return Found(name, "gguf", architecture, **fields)


def folder(kind: str, name: str = "m", **fields: Any) -> Found:
    """Return what a folder says, with its class."""
    return Found(name, "safetensors", kinds=(kind,), **fields)


@pytest.mark.parametrize(
    ("found", "capabilities", "roles"),
    [
        (gguf(template=CHAT), "text tools", "chat tools"),
        (gguf(), "text", ""),
        (gguf(template=THINKS), "text reasoning tools", "chat reasoning tools"),
        (gguf(template=CHAT, sees=True), "text vision tools", "chat tools caption keywords description"),
        (gguf(template=CHAT, hears=True), "text audio tools", "chat tools"),
        (gguf("bge-m3", "bert", pooling="cls"), "embedding", "embedding"),
        (gguf("x", "nomic-bert-moe"), "embedding", "embedding"),
        (gguf("Qwen3-Embedding-0.6B", "qwen3", pooling="last", template=CHAT), "embedding", "embedding"),
        (gguf(pooling="mean"), "embedding", "embedding"),
        (gguf(pooling="mean", template=CHAT), "text tools", "chat tools"),
        (gguf("bge-reranker-v2-m3", "bert", pooling="rank"), "rerank", "rerank"),
        (gguf("Devstral-Small-2", template=CHAT), "text tools", "chat code tools"),
        (folder("Qwen3ForCausalLM", template=THINKS), "text reasoning tools", "chat reasoning tools"),
        (folder("Qwen3VLForConditionalGeneration", template=CHAT, sees=True), "text vision tools", "chat caption"),
        (folder("BertModel", pooling="mean"), "embedding", "embedding"),
        (folder("XLMRobertaForSequenceClassification", "bge-reranker-v2-m3"), "rerank", "rerank"),
        (folder("SiglipModel", sees=True), "embedding", "embedding"),
        (folder("SomethingNew", template=CHAT), "text tools", "chat tools"),
        (folder("WhisperForConditionalGeneration", architecture="whisper"), "audio", "transcription"),
        (Found("x", "ollama", declares=("completion", "vision", "tools", "thinking"), sees=True),
         "text vision reasoning tools", "chat reasoning tools caption"),
        (Found("x", "ollama", declares=("embedding",)), "embedding", "embedding"),
        (Found("x", "ollama"), "text", "chat"),
    ],
)  # fmt: skip
def test_the_shipped_rules(found: Found, capabilities: str, roles: str) -> None:
    """What each kind of model can do, and which roles it is suggested for."""
    verdict = judge(found, SHIPPED)
    assert verdict.refused is None
    assert set(verdict.capabilities) == set(capabilities.split())
    assert set(verdict.priorities) >= set(roles.split())
    assert roles or not verdict.priorities
    assert "chat" in roles or "chat" not in verdict.priorities


@pytest.mark.parametrize(
    "found",
    [
        gguf(architecture="flux"),
        gguf(architecture="sdxl"),
        gguf(architecture="wavtokenizer-dec"),
        gguf("qwen3-8b-eagle3"),
        Found("t5", "safetensors", "t5", ("T5ForConditionalGeneration",)),
        folder("BertForTokenClassification"),
        folder("Qwen3ForCausalLM", quantization="mlx"),
        folder("Qwen3ForCausalLM", quantization="exl3"),
        folder("ViTModel"),
    ],
)
def test_what_no_engine_serves_is_refused(found: Found) -> None:
    """With a reason for people."""
    verdict = judge(found, SHIPPED)
    assert verdict.refused
    assert verdict.capabilities == ()


def test_suggestions_stay_below_what_a_person_says() -> None:
    """However large a model is: a role that is listed without a priority counts more."""
    largest = judge(gguf(template=THINKS, sees=True, parameters_b=1000, quantization="Q8_0"), SHIPPED)
    smallest = judge(gguf(template=THINKS, sees=True, parameters_b=0.1, quantization="IQ1_S"), SHIPPED)
    assert max(largest.priorities.values()) <= SHIPPED.highest_priority < DEFAULT_ROLE_PRIORITY
    assert min(smallest.priorities.values()) > 1
    assert largest.priorities["chat"] > smallest.priorities["chat"]


def test_larger_models_come_first() -> None:
    """A model of unknown size is as good as the smallest."""
    sizes = [None, 1, 4, 8, 14, 32]
    chat = [judge(gguf(template=CHAT, parameters_b=size), SHIPPED).priorities["chat"] for size in sizes]
    assert chat[0] == chat[1]
    assert sorted(set(chat)) == chat[1:]


CONDITIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"name": "^q"}, {"name": "x"}),
    ({"format": "gguf"}, {"format": "ollama"}),
    ({"format": ["gguf", "safetensors"]}, {"format": "ollama"}),
    ({"architecture": "qwen.*"}, {"architecture": "aqwen"}),
    ({"kind": "Causal"}, {"kinds": ("Other",)}),
    ({"pooling": ["last"]}, {"pooling": ""}),
    ({"quantization": "^q4"}, {"quantization": "F16"}),
    ({"template": True}, {"template": ""}),
    ({"template": "tool"}, {"template": "x"}),
    ({"sees": True}, {"sees": False}),
    ({"hears": False}, {"hears": True}),
    ({"declares": "tools"}, {"declares": ()}),
    ({"min_parameters_b": 8}, {"parameters_b": 7.9}),
    ({"min_parameters_b": 8}, {"parameters_b": None}),
    ({"max_parameters_b": 9}, {"parameters_b": 9}),
    ({"min_parameters_b": 7, "max_parameters_b": 9}, {"parameters_b": 20}),
]
ALL = Found("Qwen", "gguf", "qwen3", ("ForCausalLM",), "last", "tools", sees=True, declares=("tools",),
            quantization="Q4_K_M", parameters_b=8)  # fmt: skip


@pytest.mark.parametrize(("when", "other"), CONDITIONS)
def test_each_condition(when: dict[str, Any], other: dict[str, Any]) -> None:
    """It holds for one model, and not for another that differs in it alone."""
    made = rules({"capabilities": ["text"]}, {"when": when, "roles": {"a": 5}})
    assert judge(ALL, made).priorities == {"a": 5}
    assert judge(replace(ALL, **other), made).priorities == {}


def test_rules_build_on_those_before() -> None:
    """`does` and `lacks` ask what earlier rules gave, and a shift moves what there is by then, within the limits."""
    made = rules(
        {"capabilities": ["text"], "roles": {"early": 10}},
        {"when": {"does": ["text"], "lacks": ["vision"]}, "capabilities": ["tools"]},
        {"when": {"does": ["vision"]}, "roles": {"never": 1}},
        {"shift": -20},
        {"roles": {"late": 30}},
        {"shift": 20},
        highest_priority=35,
    )
    verdict = judge(ALL, made)
    assert verdict.capabilities == ("text", "tools")
    assert verdict.priorities == {"early": 10, "late": 35}
    assert [each.rule for each in verdict.applied] == ["r0", "r1", "r3", "r4", "r5"]
    assert [each.effect for each in verdict.applied] == [
        "can text; roles early 10", "can tools", "priorities -20", "roles late 30", "priorities +20"
    ]  # fmt: skip


def test_a_rule_without_effect_says_so() -> None:
    """It is listed, so that whoever wrote it sees that it held."""
    verdict = judge(ALL, rules({}, {"shift": 5}))
    assert [each.effect for each in verdict.applied] == ["nothing", "nothing"]
    assert "no rule" in str(verdict.refused)


def test_a_skip_ends_it() -> None:
    """The reason is the rule's, and no later rule counts."""
    verdict = judge(ALL, rules({"capabilities": ["text"]}, {"skip": True}, {"roles": {"a": 1}}))
    assert (verdict.refused, verdict.capabilities) == ("reason 1", ())
    assert verdict.applied[-1].effect == "left out"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "the whole: "),
        ({"rules": 5}, "rules: "),
        ({"rules": [5]}, "rule 1, the whole: "),
        ({"rules": [{"name": "x"}]}, "rule 1 'x', why: Field required"),
        ({"rules": [{"name": 7, "why": ""}]}, "rule 1, name: "),
        ({"rules": [{"name": "x", "why": "", "when": {"name": "("}}]}, "when.name: is no regular expression"),
        ({"rules": [{"name": "x", "why": "", "when": {"nmae": "q"}}]}, "when.nmae: "),
        ({"rules": [{"name": "x", "why": "", "capabilities": ["flying"]}]}, "'flying' is no capability"),
        ({"rules": [{"name": "x", "why": "", "roles": {"a": 101}}]}, "roles.a: "),
        ({"highest": 3}, "highest: "),
    ],
)
def test_a_wrong_rules_file_is_refused(data: Any, message: str) -> None:
    """With the rule and the field."""
    with pytest.raises(ConfigurationError) as caught:
        read_rules(data)
    assert message in str(caught.value)
