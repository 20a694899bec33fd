"""Selection: the design's example, the order, the policy, the refusals, and what must hold for any registry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from builders import entry
from rolecall.core.selection import Bias, Candidate, Demand, Policy, RolePolicy, Rules, Selection, check_able, select
from rolecall.errors import ModelNotFound, ModelTooLarge, NoModelForRole, RolecallError, UnsupportedInput

LIMIT_MB = 10_000
ROLE = Demand(role="caption")


def candidate(
    name: str = "alpha",
    priority: float = 50,
    mb: int | None = 1000,
    quantization: str | None = "fp8",
    *,
    loaded: bool = False,
    swap: bool = False,
    coming: bool = False,
    unavailable: str | None = None,
    swap_s: float | None = None,
    **fields: Any,
) -> Candidate:
    found = entry(name, **{"role_priority": {"caption": priority}, "quantization": quantization, **fields})
    return Candidate(found, mb, unavailable, loaded, swap, coming, swap_s)


def rules(
    bias: Bias = "balanced",
    tolerance: float = 0,
    preferred: Sequence[str] = ("fp8", "q4_k_m"),
    policy: Policy = "adaptive",
) -> Rules:
    return Rules(LIMIT_MB, tuple(preferred), bias, tolerance, policy)


def names(selection: Selection) -> list[str]:
    return [ranked.name for ranked in selection.ranked]


# -- the example


def shipped() -> list[Candidate]:
    """Return three of the models of the shipped registry, none of them installed."""
    models: list[tuple[str, str, int, str, dict[str, int]]] = [
        (
            "qwen3-vl-8b-instruct_(FP8)",
            "vllm",
            10600,
            "fp8",
            {"caption": 85, "keywords": 80, "description": 90, "narration": 90, "vision_general": 85},
        ),
        (
            "qwen25vl_8.3b_(Q4_K_M)",
            "ollama",
            6400,
            "q4_k_m",
            {"caption": 80, "keywords": 75, "description": 85, "narration": 85, "vision_general": 80},
        ),
        (
            "florence-2-large_(SAFETENSORS)",
            "vllm",
            3500,
            "safetensors",
            {"keywords": 95, "caption": 75, "object_detection": 90},
        ),
    ]
    return [
        candidate(
            name, mb=mb, quantization=quant, backend=backend, role_priority=priorities, unavailable="not installed"
        )
        for name, backend, mb, quant, priorities in models
    ]


CONSTRAINED_16GB = Rules(14000, ("q4_k_m", "fp8", "awq", "q5_k_m", "q8_0"), "vram_efficient")


@pytest.mark.parametrize(
    ("exclude", "name", "priority", "mb"),
    [
        ([], "florence-2-large_(SAFETENSORS)", 95, 3500),
        (["florence-2-large_(SAFETENSORS)"], "qwen3-vl-8b-instruct_(FP8)", 80, 10600),
        (["florence-2-large_(SAFETENSORS)", "qwen3-vl-8b-instruct_(FP8)"], "qwen25vl_8.3b_(Q4_K_M)", 75, 6400),
    ],
)
def test_keywords_on_a_16_gb_card(exclude: list[str], name: str, priority: float, mb: int) -> None:
    """Keywords go to florence, without it to qwen3-vl: the priority of the role counts before everything else."""
    demand = Demand(role="keywords", exclude=frozenset(exclude), include_non_installed=True)
    best = select(demand, shipped(), CONSTRAINED_16GB).best()
    assert (best.name, best.priority("keywords"), best.footprint_mb) == (name, priority, mb)


def test_what_is_not_installed_is_not_chosen() -> None:
    """Without ``include_non_installed`` none of the three can serve, and the refusal says why."""
    with pytest.raises(NoModelForRole, match=r"florence-2-large_\(SAFETENSORS\): not installed; qwen25vl"):
        select(Demand(role="keywords"), shipped(), CONSTRAINED_16GB).best()


# -- the order


@pytest.mark.parametrize(
    ("bias", "order"),
    [
        ("vram_efficient", ["small", "loaded", "middle", "large", "unknown"]),
        ("quality", ["large", "middle", "loaded", "small", "unknown"]),
        ("balanced", ["loaded", "large", "middle", "small", "unknown"]),
    ],
)
def test_bias(bias: Bias, order: list[str]) -> None:
    """Between equals the bias decides: smaller first, larger first, or loaded first; an unknown size comes last."""
    equals = [
        candidate("small", mb=100),
        candidate("middle", mb=200),
        candidate("large", mb=300),
        candidate("loaded", mb=150, loaded=True),
        candidate("unknown", mb=None),
    ]
    assert names(select(ROLE, equals, rules(bias))) == order


def test_priority_then_quantization_then_name() -> None:
    """Priority comes before the quantization, the quantization before the name; an unknown quantization comes last."""
    field = [
        candidate("a", 50, quantization=None),
        candidate("b", 50, quantization="exotic"),
        candidate("c", 50, quantization="Q4-K-M"),
        candidate("d", 50, quantization="FP8"),
        candidate("e", 51, quantization="exotic"),
    ]
    assert names(select(ROLE, field, rules())) == ["e", "d", "c", "a", "b"]


def test_preferred_quantizations_may_be_spelled_freely() -> None:
    """Case and dashes of a quantization do not matter, neither in the entry nor in the profile."""
    field = [candidate("a", quantization="fp8"), candidate("b", quantization="q4_k_m")]
    assert names(select(ROLE, field, rules(preferred=["Q4-K-M"]))) == ["b", "a"]


# -- the policy


@pytest.mark.parametrize(
    ("tolerance", "priority", "swap", "chosen"),
    [
        (0, 80, True, "loaded"),
        (0, 79, True, "best"),
        (0, 80, False, "best"),
        (5, 75, True, "loaded"),
        (5, 74.9, True, "best"),
        (5, 75, False, "best"),
    ],
)
def test_loaded_model_spares_a_swap(tolerance: float, priority: float, chosen: str, *, swap: bool) -> None:
    """A loaded model within the tolerance is taken if the best would cost a swap, and only then."""
    field = [candidate("best", 80, swap=swap), candidate("loaded", priority, quantization=None, loaded=True)]
    selection = select(ROLE, field, rules(tolerance=tolerance))
    assert selection.best().name == chosen
    assert sorted(names(selection)) == ["best", "loaded"]
    spared = f"best 80 would need a swap; loaded at {priority:g} is loaded; tolerance {tolerance:g}"
    needed = f"highest priority that fits; it needs a swap, as nothing loaded is within {tolerance:g} of its 80"
    assert selection.reason == (spared if chosen == "loaded" else needed if swap else "highest priority that fits")


def test_best_of_the_loaded_spares_the_swap() -> None:
    """Of several loaded models within the tolerance the best one is taken."""
    field = [
        candidate("best", 80, swap=True),
        candidate("second", 79, loaded=True),
        candidate("third", 78, loaded=True),
    ]
    assert names(select(ROLE, field, rules(tolerance=5))) == ["second", "best", "third"]


def test_model_that_is_being_loaded_spares_a_second_swap() -> None:
    """Within the tolerance a model that is being loaded is taken before a swap, and a loaded one before that."""
    best, coming = candidate("best", 80, swap=True), candidate("coming", 79, coming=True)
    loaded = candidate("loaded", 78, loaded=True)
    selection = select(ROLE, [best, coming], rules(tolerance=5))
    assert names(selection) == ["coming", "best"]
    assert selection.reason == ("best 80 would need a swap; coming at 79 is being loaded; tolerance 5")
    assert names(select(ROLE, [best, coming, loaded], rules(tolerance=5))) == ["loaded", "best", "coming"]
    assert names(select(ROLE, [best, coming, loaded], rules(tolerance=1)))[0] == "coming"
    assert names(select(ROLE, [best, coming, loaded], rules(tolerance=0)))[0] == "best"


def test_balanced_bias_knows_what_is_being_loaded() -> None:
    """Between equals ``balanced`` takes the loaded one, then the one that is being loaded."""
    equals = [candidate("a"), candidate("b", coming=True), candidate("c", loaded=True)]
    assert names(select(ROLE, equals, rules())) == ["c", "b", "a"]


def test_strict_role_always_takes_the_best() -> None:
    """Under ``priority`` no tolerance and no loaded model keeps the best from being swapped in, not even in a tie."""
    field = [candidate("best", 80, swap=True), candidate("loaded", 80, quantization=None, loaded=True)]
    selection = select(ROLE, field, rules(tolerance=50, policy="priority"))
    why = "highest priority that fits; it needs a swap, and the role always takes the best"
    assert (names(selection), selection.reason) == (["best", "loaded"], why)


def test_each_role_has_its_own_policy() -> None:
    """A role's own policy goes before the general one; other roles keep that."""
    field = [
        candidate("best", swap=True, role_priority={"caption": 80, "keywords": 80}),
        candidate("loaded", loaded=True, role_priority={"caption": 70, "keywords": 70}),
    ]
    own = {"caption": RolePolicy("priority", 100), "keywords": RolePolicy(quality_tolerance=10)}
    general = Rules(LIMIT_MB, tolerance=10)
    chosen = [
        select(Demand(role), field, rule).best().name
        for rule in (general, replace(general, roles=own), Rules(LIMIT_MB, policy="priority", roles=own))
        for role in ("caption", "keywords")
    ]
    assert chosen == ["loaded", "loaded", "best", "loaded", "best", "loaded"]
    assert Rules(LIMIT_MB, policy="priority", tolerance=3).policy_for("caption") == RolePolicy("priority", 3)


def test_photographer_on_a_16_gb_card() -> None:
    """With a tolerance the one loaded model serves all three roles; strict roles swap for each image."""
    description = candidate(
        "desc-12b", mb=9000, loaded=True, role_priority={"caption": 85, "keywords": 80, "description": 95}
    )
    keywords = candidate("kw-best", mb=8000, swap=True, swap_s=14, role_priority={"keywords": 90})
    adaptive = Rules(14000, roles={"keywords": RolePolicy(quality_tolerance=15)})
    for rule, chosen in ((adaptive, "desc-12b"), (Rules(14000, policy="priority"), "kw-best")):
        assert [
            select(Demand(role), [description, keywords], rule).best().name
            for role in ("caption", "keywords", "description")
        ] == ["desc-12b", chosen, "desc-12b"]
    assert select(Demand("keywords"), [description, keywords], adaptive).reason == (
        "kw-best 90 would need a swap of 14 s; desc-12b at 80 is loaded; tolerance 15"
    )


def test_model_of_just_the_limit_fits() -> None:
    """A model may take all that the profile allows."""
    assert names(select(ROLE, [candidate(mb=LIMIT_MB)], rules())) == ["alpha"]


def test_priority_is_that_of_the_role() -> None:
    """A candidate has the priority of the role that is asked for, and none where a model was named."""
    assert (candidate(priority=85).priority("caption"), candidate(priority=85).priority(None)) == (85, 0)


def test_reason_for_a_name() -> None:
    """A model that was named is chosen because it was named; without any candidate there is no reason."""
    assert select(Demand(), [candidate()], rules()).reason == "named by the request"
    assert select(Demand(), [], rules()).reason == "no candidate"


# -- the refusals


def test_each_rejection_has_its_reason() -> None:
    """Every candidate that cannot serve is listed with the reason in words, by name."""
    demand = Demand(role="caption", needs=frozenset({"vision", "tools"}), exclude=frozenset({"alias of d"}))
    able = ["vision", "tools"]
    field = [
        candidate("f", mb=LIMIT_MB + 1, capabilities=able),
        candidate("e"),
        candidate("d", model_aliases=["alias of d"], capabilities=able),
        candidate("c", unavailable="not installed: /m.gguf does not exist", capabilities=able),
        candidate("b", role_priority={"keywords": 99}, capabilities=able),
        candidate("a", capabilities=able),
    ]
    selection = select(demand, field, rules())
    assert names(selection) == ["a"]
    assert [(rejected.name, rejected.why, rejected.reason) for rejected in selection.rejected] == [
        ("b", "other_role", "does not play the role 'caption'"),
        ("c", "unavailable", "not installed: /m.gguf does not exist"),
        ("d", "excluded", "excluded by the request"),
        ("e", "capability", "lacks tools, vision"),
        ("f", "too_large", "needs 10001 MB, 1 MB more than the 10000 MB it may use"),
    ]


SEES = Demand(role="caption", needs=frozenset({"vision"}))
NAMED = Demand(needs=frozenset({"vision"}))
EMBEDS = Demand(needs=frozenset({"embedding"}))


@pytest.mark.parametrize(
    ("needs", "param"), [({"vision"}, "messages"), ({"embedding"}, "model"), ({"vision", "embedding"}, "model")]
)
@pytest.mark.parametrize("role", [None, "caption"])
def test_which_field_is_at_fault(role: str | None, needs: set[str], param: str) -> None:
    """Images are too much in the messages; where a model does something else altogether, another one must be named."""
    with pytest.raises(UnsupportedInput) as caught:
        select(Demand(role, frozenset(needs)), [candidate()], rules()).best()
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("demand", "field", "error", "message"),
    [
        (NAMED, [], ModelNotFound, "The model does not exist."),
        (
            NAMED,
            [candidate()],
            UnsupportedInput,
            "The model 'alpha' cannot serve this request: lacks vision. GET /v1/models lists what each model can do.",
        ),
        (
            EMBEDS,
            [candidate()],
            UnsupportedInput,
            (
                "The model 'alpha' cannot serve this request: lacks embedding. "
                "GET /v1/models lists what each model can do."
            ),
        ),
        (
            Demand(),
            [candidate(mb=LIMIT_MB + 500)],
            ModelTooLarge,
            "The model 'alpha' cannot serve this request: needs 10500 MB, 500 MB more than the 10000 MB it may use.",
        ),
        (
            Demand(),
            [candidate(unavailable="not installed")],
            ModelNotFound,
            "The model 'alpha' cannot serve this request: not installed.",
        ),
        (
            SEES,
            [],
            NoModelForRole,
            "No model of the role 'caption' can serve this request. No model plays it.",
        ),
        (
            SEES,
            [candidate(), candidate("beta", unavailable="not installed")],
            UnsupportedInput,
            "No model of the role 'caption' can serve this request. alpha: lacks vision; beta: not installed.",
        ),
        (
            SEES,
            [candidate(), candidate("beta", role_priority={"chat": 1})],
            UnsupportedInput,
            "No model of the role 'caption' can serve this request. alpha: lacks vision.",
        ),
        (
            SEES,
            [candidate(), candidate("beta", mb=LIMIT_MB + 1, capabilities=["vision"])],
            NoModelForRole,
            "No model of the role 'caption' can serve this request. alpha: lacks vision; beta: needs 10001 MB, 1 MB",
        ),
    ],
)
def test_refusals(demand: Demand, field: list[Candidate], error: type[RolecallError], message: str) -> None:
    """Nobody is refused without the reasons, and with the status that keeps clients from trying in vain."""
    with pytest.raises(RolecallError) as caught:
        select(demand, field, rules()).best()
    assert type(caught.value) is error
    assert caught.value.message.startswith(message)
    assert caught.value.status < 500


# -- any registry

QUANTIZATIONS = [None, "fp8", "FP8", "q4-k-m", "q4_k_m", "safetensors"]
priorities = st.sampled_from([0, 1, 49.5, 50, 51, 100])
all_rules = st.builds(
    rules,
    bias=st.sampled_from(get_args(Bias)),
    tolerance=st.sampled_from([0, 0.5, 1, 50, 100]),
    preferred=st.permutations(["fp8", "q4_k_m", "awq"]),
    policy=st.sampled_from(get_args(Policy)),
)


def built(number: int, values: tuple[Any, ...]) -> Candidate:
    priority, mb, quantization, state, capability, unavailable, plays = values
    return candidate(
        f"m{number}",
        priority,
        mb,
        quantization,
        loaded=state == "loaded",
        swap=state == "swap",
        coming=state == "coming",
        unavailable=unavailable,
        capabilities=[capability],
        role_priority={plays: priority},
    )


values = st.tuples(
    priorities,
    st.sampled_from([None, 1, 5000, LIMIT_MB, LIMIT_MB + 1]),
    st.sampled_from(QUANTIZATIONS),
    st.sampled_from(["loaded", "swap", "room", "coming"]),
    st.sampled_from(["vision", "vision", "text"]),
    st.sampled_from([None, None, None, "not installed"]),
    st.sampled_from(["caption", "caption", "caption", "chat"]),
)
fields = st.lists(values, max_size=6).map(lambda rows: [built(number, row) for number, row in enumerate(rows)])
demands = st.builds(
    Demand,
    role=st.just("caption"),
    needs=st.sampled_from([frozenset(), frozenset({"vision"})]),
    exclude=st.sampled_from([frozenset(), frozenset({"m0"})]),
    include_non_installed=st.booleans(),
)


@given(demand=demands, field=fields, rule=all_rules, data=st.data())
def test_order_of_the_registry_never_matters(
    demand: Demand, field: list[Candidate], rule: Rules, data: st.DataObject
) -> None:
    """The same candidates in another order give the same selection, down to the rejected ones."""
    assert select(demand, data.draw(st.permutations(field)), rule) == select(demand, field, rule)


@given(demand=demands, field=fields, rule=all_rules)
def test_everyone_is_ranked_or_rejected(demand: Demand, field: list[Candidate], rule: Rules) -> None:
    """Each candidate is either ranked or rejected with a reason, and only those that can serve are ranked."""
    selection = select(demand, field, rule)
    assert sorted([*names(selection), *(r.name for r in selection.rejected)]) == sorted(c.name for c in field)
    assert all(rejected.reason for rejected in selection.rejected)
    for ranked in selection.ranked:
        assert "caption" in ranked.entry.priorities
        assert demand.needs <= ranked.entry.all_capabilities
        assert ranked.name not in demand.exclude
        assert ranked.unavailable is None or demand.include_non_installed
        assert ranked.footprint_mb is None or ranked.footprint_mb <= LIMIT_MB


@given(demand=demands, field=fields, rule=all_rules)
def test_choice_is_within_the_tolerance_of_the_best(demand: Demand, field: list[Candidate], rule: Rules) -> None:
    """The choice is the best, or a loaded or coming one within the tolerance of a best that would cost a swap."""
    ranked = select(demand, field, rule).ranked
    assume(ranked)
    best = max(candidate.priority("caption") for candidate in ranked)
    chosen, rest = ranked[0], [candidate.priority("caption") for candidate in ranked[1:]]
    assert chosen.priority("caption") >= best - (rule.tolerance if rule.policy == "adaptive" else 0)
    assert chosen.priority("caption") == best or chosen.loaded or chosen.coming
    assert rest == sorted(rest, reverse=True)


@given(demand=demands, field=fields, rule=all_rules)
def test_unknown_quantizations_rank_last(demand: Demand, field: list[Candidate], rule: Rules) -> None:
    """Of equal priority no model of an unknown quantization comes before one of a preferred quantization."""
    ranked = select(demand, [replace(c, loaded=False, coming=False) for c in field], rule).ranked
    for better, worse in pairwise(ranked):
        if better.priority("caption") == worse.priority("caption"):
            unknown = [c.entry.quantization in {None, "safetensors"} for c in (better, worse)]
            assert unknown != [True, False]


def worse_than(chosen: Candidate, bias: Bias, tolerance: float) -> st.SearchStrategy[Candidate]:
    """Return candidates that are worse than the choice.

    Either too bad for the tolerance, then whatever else they are; or not loaded, and behind the choice by the order
    that the design writes down: priority, quantization, bias, name.
    """
    same = replace(chosen, loaded=False, coming=False, costs_swap=False)
    mb = chosen.footprint_mb

    def renamed(base: Candidate, **fields: Any) -> Candidate:
        known = {name: getattr(base.entry, name) for name in ("role_priority", "quantization", "capabilities")}
        return replace(base, entry=entry("~behind", **known | fields))

    behind = [renamed(same)]
    priority = chosen.priority("caption")
    if priority > 0:
        behind.append(renamed(same, role_priority={"caption": priority - 0.25}, quantization="fp8"))
    if (chosen.entry.quantization or "").lower() in {"fp8", "q4-k-m", "q4_k_m"}:
        behind += [renamed(replace(same, footprint_mb=size), quantization="gptq") for size in (None, 0, 1, LIMIT_MB)]
    if mb is not None and bias != "balanced":
        sizes = [None, mb + 1] if bias == "vram_efficient" else [None, mb - 1]
        behind += [renamed(replace(same, footprint_mb=size)) for size in sizes]
    if priority - tolerance > 0:
        low = {"caption": (priority - tolerance) / 2}
        tempting = replace(same, loaded=True, footprint_mb=1)
        behind += [renamed(tempting, role_priority=low), renamed(tempting, role_priority=low, quantization="awq")]
    behind.append(renamed(replace(same, footprint_mb=LIMIT_MB + 1, loaded=True), role_priority={"caption": 100}))
    behind.append(renamed(same, role_priority={"chat": 100}))
    return st.sampled_from(behind)


@given(demand=demands, field=fields, rule=all_rules, data=st.data())
def test_a_worse_candidate_never_changes_the_answer(
    demand: Demand, field: list[Candidate], rule: Rules, data: st.DataObject
) -> None:
    """The choice stays the choice when a candidate joins that is worse than it, or cannot serve."""
    selection = select(demand, field, rule)
    assume(selection.ranked)
    chosen = selection.best()
    worse = data.draw(worse_than(chosen, rule.bias, rule.tolerance))
    assert select(demand, [*field, worse], rule).best() == chosen


@given(demand=demands, field=fields, rule=all_rules)
def test_whoever_is_not_chosen_is_not_needed(demand: Demand, field: list[Candidate], rule: Rules) -> None:
    """Taking away the last of the ranked, or all of the rejected, leaves the choice as it was."""
    selection = select(demand, field, rule)
    assume(len(selection.ranked) > 1)
    rejected = {r.name for r in selection.rejected}
    fewer = [c for c in field if c.name not in rejected | {selection.ranked[-1].name}]
    assert select(demand, fewer, rule).best() == selection.best()


def test_what_is_able_whatever_the_machine() -> None:
    """One entry that has it is enough, however large; where none has, the refusal is that of a request."""
    blind, seeing = entry("blind"), entry("seeing", capabilities=["text", "vision"], vram_estimate_mb=10**9)
    sight = frozenset({"vision"})
    check_able(Demand(needs=sight), [blind, seeing])
    with pytest.raises(UnsupportedInput, match="'blind' cannot serve this request: lacks vision"):
        check_able(Demand(needs=sight), [blind])
    for_role = entry("blind", role_priority={"caption": 1})
    with pytest.raises(UnsupportedInput, match="No model of the role 'caption'"):
        check_able(Demand(role="caption", needs=sight), [for_role])
