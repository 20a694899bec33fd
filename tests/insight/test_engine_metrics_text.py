"""Engines' own metrics on our page: each with its model, and nothing that could spoil the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from rolecall.insight.engine_metrics_text import MAX_SAMPLES, merged
from rolecall.insight.metrics_page import PageWriter, form_of

LLAMA = b"""# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed.
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 23
# HELP llamacpp:requests_processing Number of requests processing.
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 0
"""
OPENMETRICS = "application/openmetrics-text"
VLLM = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="qwen"} 2.0
# HELP vllm:time_to_first_token_seconds Histogram of time to first token in seconds.
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="qwen"} 3.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="qwen"} 4.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="qwen"} 4.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="qwen"} 0.7
# HELP vllm:time_to_first_token_seconds_created Histogram of time to first token in seconds.
# TYPE vllm:time_to_first_token_seconds_created gauge
vllm:time_to_first_token_seconds_created{engine="0",model_name="qwen"} 1.7e+09
# HELP vllm:request_success_total Count of successfully processed requests.
# TYPE vllm:request_success_total counter
vllm:request_success_total{engine="0",finished_reason="stop",model_name="qwen"} 9.0
# HELP process_resident_memory_bytes Resident memory size in bytes.
# TYPE process_resident_memory_bytes gauge
process_resident_memory_bytes 5.2e+09
"""


def values(metrics: list[Metric]) -> dict[tuple[str, ...], float]:
    """Return the samples as ``name, label=value …``."""
    return {
        (sample.name, *(f"{name}={text}" for name, text in sorted(sample.labels.items()))): sample.value
        for metric in metrics
        for sample in metric.samples
    }


def page(metrics: list[Metric], accept: str = "") -> str:
    return PageWriter().write(form_of(accept), (), metrics)[0].decode()


def test_two_engines_of_one_kind_share_their_metrics() -> None:
    """Names stay, each sample has its model, and help and type stand once; a metric without samples is none."""
    metrics, rejected = merged({"b": LLAMA, "a": LLAMA + b"# HELP x:y z\n# TYPE x:y gauge\n"})
    assert values(metrics) == {
        ("llamacpp:prompt_tokens_total", "model=a"): 23,
        ("llamacpp:prompt_tokens_total", "model=b"): 23,
        ("llamacpp:requests_processing", "model=a"): 0,
        ("llamacpp:requests_processing", "model=b"): 0,
    }
    assert rejected == {"a": 0, "b": 0}
    text = page(metrics)
    assert text.count("# TYPE llamacpp:prompt_tokens_total counter\n") == 1
    assert text.count("# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed.\n") == 1


def test_vllm_beside_llama_cpp() -> None:
    """Labels and histograms stay whole; what vLLM tells of its process, and times of creation, are left out."""
    metrics, rejected = merged({"big": VLLM, "small": LLAMA})
    found = values(metrics)
    assert found["vllm:num_requests_running", "engine=0", "model=big", "model_name=qwen"] == 2
    assert found["vllm:time_to_first_token_seconds_bucket", "engine=0", "le=+Inf", "model=big", "model_name=qwen"] == 4
    assert not any("created" in key[0] or key[0].startswith("process_") for key in found)
    assert rejected == {"big": 1, "small": 0}
    families = {family.name: family.type for family in parse(page(metrics))}
    assert families["vllm:time_to_first_token_seconds"] == "histogram"
    assert families["vllm:request_success"] == "counter"


@pytest.mark.parametrize("way", [None, "", ";escaping=dots", "; escaping=values"])
def test_names_keep_their_prefix(way: str | None) -> None:
    """Whatever form of the page is asked for, colons and underscores stay as they are."""
    accept = "" if way is None else f"{OPENMETRICS};version=1.0.0{way}"
    text = page(merged({"a": LLAMA})[0], accept)
    assert '\nllamacpp:prompt_tokens_total{model="a"} 23.0\n' in text


def test_two_engines_that_disagree() -> None:
    """The first by name is right about type and help; the other one's samples of that name are left out."""
    one = b"# HELP x:size Size of one.\n# TYPE x:size gauge\nx:size 1\n"
    two = b"# HELP x:size Another size.\n# TYPE x:size counter\nx:size 2\n# TYPE x:new gauge\nx:new 3\n"
    metrics, rejected = merged({"a": one, "b": two})
    assert values(metrics) == {("x:size", "model=a"): 1, ("x:new", "model=b"): 3}
    assert rejected == {"a": 0, "b": 1}
    assert "Another" not in page(metrics)


def test_the_same_type_with_another_help() -> None:
    """Both are shown, with the first help."""
    text = "# HELP x:size {}\n# TYPE x:size gauge\nx:size 1\n"
    metrics, _ = merged({"a": text.format("One.").encode(), "b": text.format("Two.").encode()})
    assert len(values(metrics)) == 2
    assert "# HELP x:size One.\n" in page(metrics)
    assert "Two." not in page(metrics)


def test_a_label_of_the_engines_own_called_model() -> None:
    """It is kept under another name, as Prometheus does it; ours cannot be counterfeited."""
    metrics, _ = merged({"a": b'# TYPE x:n gauge\nx:n{model="b"} 1\n'})
    assert values(metrics) == {("x:n", "exported_model=b", "model=a"): 1}


@pytest.mark.parametrize(
    "text",
    [
        b"# TYPE rolecall_requests counter\nrolecall_requests_total 5\n",
        b"# TYPE python_info gauge\npython_info 5\n",
        b"rolecall_info 1\n",
        b"# TYPE rolecall_swaps histogram\nrolecall_swaps_bucket 1\n",
        b"# TYPE up gauge\nup 0\n",
        b"up 0\n",
        b"scrape_duration_seconds 1\n",
        b'ALERTS{alertname="RolecallDown",alertstate="firing"} 1\n',
        b"ALERTS_FOR_STATE 1\n",
    ],
)
def test_names_of_ours_are_not_taken(text: bytes) -> None:
    """No engine can add to what rolecall says of itself, or Prometheus of its targets and alerts."""
    metrics, rejected = merged({"a": text})
    assert values(metrics) == {}
    assert rejected["a"] >= 1


def test_names_that_only_begin_like_those_are_taken() -> None:
    """An engine may be up in its own words."""
    metrics, rejected = merged({"a": b"upstream 1\nx:up 1\nscrapes 1\n"})
    assert {key[0] for key in values(metrics)} == {"upstream", "x:up", "scrapes"}
    assert rejected == {"a": 0}


def test_what_another_metric_would_be_called_is_not_taken() -> None:
    """The buckets of one and a metric with the name of the buckets cannot both be there."""
    one = b'# TYPE x:t histogram\nx:t_bucket{le="+Inf"} 1\nx:t_count 1\nx:t_sum 1\n'
    two = b"# TYPE x:t_count gauge\nx:t_count 7\n"
    metrics, rejected = merged({"a": one, "b": two})
    assert {key[0] for key in values(metrics)} == {"x:t_bucket", "x:t_count", "x:t_sum"}
    assert rejected == {"a": 0, "b": 1}


def test_a_series_that_is_told_twice_stands_once() -> None:
    """Prometheus refuses a page with the same series twice."""
    metrics, rejected = merged({"a": b'# TYPE x:n gauge\nx:n{k="1"} 1\nx:n{k="1"} 2\n'})
    assert values(metrics) == {("x:n", "k=1", "model=a"): 1}
    assert rejected == {"a": 1}


def test_a_text_that_breaks_off_counts_up_to_there() -> None:
    """What came before is used; nothing after it is."""
    metrics, rejected = merged({"a": LLAMA + b"}{ nonsense\nx:later 1\n", "b": LLAMA})
    assert ("llamacpp:prompt_tokens_total", "model=a") in values(metrics)
    assert ("x:later", "model=a") not in values(metrics)
    assert rejected["a"] >= 1
    assert rejected["b"] == 0


def test_no_engine_can_fill_the_page() -> None:
    """So many samples are taken of an engine, and help and labels are cut."""
    long = "x" * 3000
    lines = [
        f"# HELP x:n {long}",
        "# TYPE x:n gauge",
        *(f'x:n{{k="{n}",l="{long}"}} 1' for n in range(MAX_SAMPLES + 5)),
    ]
    metrics, rejected = merged({"a": "\n".join(lines).encode()}, within_s=60)
    assert len(metrics[0].samples) == MAX_SAMPLES
    assert rejected == {"a": 5}
    assert len(page(metrics)) < MAX_SAMPLES * 400


@pytest.mark.parametrize(
    ("lines", "left_out"),
    [
        (('bucket{le="1"} 1', 'bucket{le="+Inf"} 2', "sum 3", "count 2"), 0),
        (('bucket{le="1"} 1', 'bucket{le="+Inf"} 2'), 0),
        (('bucket{a="b",le="+Inf"} 2', 'sum{a="b"} 3', 'count{a="b"} 2', 'bucket{le="+Inf"} 2'), 0),
        (('bucket{le="1"} 1',), 1),
        (("sum 3", "count 2"), 2),
        (('bucket{le="2"} 1', 'bucket{le="1"} 1', 'bucket{le="+Inf"} 2'), 3),
        (('bucket{le="1"} 3', 'bucket{le="+Inf"} 2'), 2),
        (('bucket{le="+Inf"} 2', "sum 3", "count 1"), 3),
        (('bucket{le="+Inf"} 2', "sum 3"), 2),
        (('bucket{le="-1"} 2', 'bucket{le="+Inf"} 2', "sum 3", "count 2"), 4),
        (('bucket{le="x"} 2', 'bucket{le="+Inf"} 2'), 2),
    ],
)
def test_a_histogram_is_whole_or_left_out(lines: tuple[str, ...], left_out: int) -> None:
    """Who reads OpenMetrics to the letter refuses the whole page for one that is not."""
    text = "\n".join(["# TYPE x:s histogram", *(f"x:s_{line}" for line in lines)]) + "\n"
    metrics, rejected = merged({"a": text.encode()})
    assert rejected == {"a": left_out}
    assert len(values(metrics)) == len(lines) - left_out
    list(parse_openmetrics(page(metrics, "application/openmetrics-text;version=1.0.0")))  # type: ignore[no-untyped-call]


def test_a_histogram_for_which_there_is_no_room_is_left_out() -> None:
    """A part of one is none."""
    many = [f'x:n{{k="{n}"}} 1' for n in range(MAX_SAMPLES - 1)]
    lines = ["# TYPE x:n gauge", *many, "# TYPE x:s histogram", 'x:s_bucket{le="1"} 1', 'x:s_bucket{le="+Inf"} 2']
    metrics, rejected = merged({"a": "\n".join(lines).encode() + b"\n"}, within_s=60)
    assert rejected == {"a": 2}
    assert [metric.name for metric in metrics] == ["x:n"]


@given(
    st.lists(st.one_of(st.binary(max_size=60), st.sampled_from(LLAMA.splitlines() + VLLM.splitlines())), max_size=12)
)
def test_whatever_an_engine_writes_the_page_stays_one(lines: list[bytes]) -> None:
    """Both forms of the page can be read, ours is on it, and no series is there twice."""
    metrics, _ = merged({"a": LLAMA, "b": b"\n".join(lines) + b"\n"})
    families = list(parse(page(metrics)))
    keys = [(s.name, frozenset(s.labels.items())) for family in families for s in family.samples]
    assert len(set(keys)) == len(keys)
    assert "python_info" in {key[0] for key in keys}
    assert ("llamacpp:requests_processing", frozenset({("model", "a")})) in keys
    strict = page(metrics, "application/openmetrics-text;version=1.0.0")
    list(parse_openmetrics(strict))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("text", "left_out"),
    [
        (b'a{b="' + b'\\"' * 1_000_000 + b'"} 1\n', 1),
        (b"a{" + b",".join(b'l%d="x"' % n for n in range(140_000)) + b"} 1\n", 1),
        (b"".join(b"# TYPE n%d gauge\nn%d 1\n" % (n, n) for n in range(60_000)), 55_000),
    ],
)
def test_what_no_engine_writes_is_not_even_read(text: bytes, left_out: int) -> None:
    """Lines that are too long and too many lines are counted and left out; another engine's page is whole."""
    metrics, rejected = merged({"a": text, "b": LLAMA}, within_s=60)
    assert rejected == {"a": left_out, "b": 0}
    assert ("llamacpp:prompt_tokens_total", "model=b") in values(metrics)


def test_what_is_not_read_in_time_is_left_out() -> None:
    """The page goes on without."""
    assert merged({"a": b"x:n 1\n# HELP x:m y\nx:m 1\n"}, within_s=0) == ([], {"a": 2})


def test_times_of_creation_are_not_missed() -> None:
    """They are left out on purpose, and are not counted."""
    text = b"# TYPE x:n_total counter\nx:n_total 1\n# TYPE x:n_created gauge\nx:n_created 1.7e9\n"
    assert merged({"a": text})[1] == {"a": 0}
