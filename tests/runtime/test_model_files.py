"""What model files say of the memory they need: read quickly, believed with care, compared with a real engine."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import entry
from fakes import FakeBackend
from gguf_shapes import (
    F16,
    F32,
    Q4_K,
    Q8_0,
    deepseek2,
    falcon_h1,
    gpt_oss,
    granite_hybrid,
    header,
    lfm2,
    mamba,
    nemotron_h,
    phi3,
    qwen3next,
    rwkv7,
    text,
    transformer,
    value,
    write_gguf,
)
from rolecall.backends.base import Backend, Places
from rolecall.backends.llama_server import LlamaServer
from rolecall.core.footprint import MB, Estimate
from rolecall.core.models import ModelEntry
from rolecall.runtime.file_memory import MOST_REMEMBERED
from rolecall.runtime.gguf_facts import gguf_facts
from rolecall.runtime.gguf_header import read_gguf
from rolecall.runtime.model_files import ModelFiles
from rolecall.runtime.safetensors import safetensors_facts
from unused_ports import unused_port


def llama_server() -> LlamaServer:
    """Return the driver of llama.cpp; nothing is started."""
    return LlamaServer(Places(Path("/"), Path("/")), ("llama-server",))


def estimate_mb(asked: ModelEntry, backend: Backend, *, on_gpu: bool = True) -> Estimate | None:
    """Return what an entry needs; nothing was read before."""
    return ModelFiles().estimate_mb(asked, backend, on_gpu=on_gpu)


# -- reading GGUF


def test_a_header_is_read_without_its_vocabulary(tmp_path: Path) -> None:
    """Short arrays are kept, long ones are not; a tensor's bytes reach to the next one."""
    metadata = {
        "a.text": "héllo",
        "a.flags": [True, False],
        "a.half": 0.5,
        "a.many": [1] * 5000,
        "a.words": ["x", "yy"],
    }
    path = write_gguf(tmp_path / "m.gguf", metadata, [("one", (32, 3), Q8_0), ("two", (5,), F32)])
    found = read_gguf(path)
    assert found.metadata == {
        "a.text": "héllo",
        "a.flags": (True, False),
        "a.half": 0.5,
        "a.many": None,
        "a.words": None,
    }
    assert found.tensors == {"one": ((32, 3), 128), "two": ((5,), 32)}


def test_a_large_vocabulary_takes_milliseconds(tmp_path: Path) -> None:
    """150,000 tokens and as many merges: some 15 ms of CPU, and none for the weights."""
    words = [f"token {number}" for number in range(150_000)]
    metadata, tensors = transformer(words=300)
    metadata |= {"tokenizer.ggml.tokens": words, "tokenizer.ggml.merges": words}
    path = write_gguf(tmp_path / "m.gguf", metadata, [*tensors, ("large", (2**20, 2**14), F32)])
    start = time.process_time()
    read_gguf(path)
    assert time.process_time() - start < 0.3


@pytest.mark.parametrize("after", ["tokenizer.ggml.merges", "vendor.note", "general.file_type"])
def test_a_leap_over_a_vocabulary_misses_nothing(tmp_path: Path, after: str) -> None:
    """Whichever key follows a vocabulary, all entries and tensors are found."""
    words = [f"token {number}" for number in range(5000)]
    metadata, tensors = transformer(words=300)
    metadata["tokenizer.ggml.tokens"] = words
    at = list(metadata).index("tokenizer.ggml.tokens") + 1
    pairs = list(metadata.items())
    metadata = dict([*pairs[:at], (after, words if after.endswith("merges") else 7), *pairs[at:]])
    found = read_gguf(write_gguf(tmp_path / "m.gguf", metadata, tensors))
    assert found.metadata.keys() == metadata.keys()
    assert found.metadata["tokenizer.ggml.bos_token_id"] == 1
    assert len(found.tensors) == len(tensors)


def test_the_last_tensor_must_be_whole(tmp_path: Path) -> None:
    """A file that is cut within its last tensor is refused, if the tensor's type is known."""
    path = write_gguf(tmp_path / "m.gguf", {"a.b": 1}, [("one", (256, 8), Q4_K)])
    read_gguf(path)
    os.truncate(path, path.stat().st_size - 32)
    with pytest.raises(ValueError, match="cut short: it should go on"):
        read_gguf(path)


def test_the_parts_of_a_split_model_are_one(tmp_path: Path) -> None:
    """The first part stands for all; one that is missing is no model."""
    metadata, tensors = transformer()
    whole = read_gguf(write_gguf(tmp_path / "whole.gguf", metadata, tensors))
    names = [f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for name, some, part in zip(names, (metadata, {}, {}), (tensors[:9], tensors[9:20], tensors[20:]), strict=True):
        write_gguf(tmp_path / name, some, part)
    split = read_gguf(tmp_path / names[0])
    assert dict(split.tensors) == dict(whole.tensors)
    assert gguf_facts(split) == gguf_facts(whole)
    (tmp_path / names[1]).unlink()
    with pytest.raises(FileNotFoundError):
        read_gguf(tmp_path / names[0])


def claim(tensors: int = 0, entries: int = 0, rest: bytes = b"") -> bytes:
    """Return the beginning of a GGUF that claims so many tensors and entries."""
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, entries) + rest


HUGE = struct.pack("<Q", 2**63)
HOSTILE = {
    "empty": b"",
    "no GGUF": b"PK\x03\x04" + bytes(100),
    "version 1": b"GGUF" + struct.pack("<I", 1) + bytes(100),
    "big-endian": b"GGUF" + struct.pack(">I", 3) + bytes(100),
    "ends at once": b"GGUF\x03",
    "many tensors": claim(tensors=2**63),
    "many entries": claim(entries=2**63),
    "many entries, none there": claim(entries=100_000),
    "long key": claim(entries=1, rest=HUGE),
    "long text": claim(entries=1, rest=text("k") + struct.pack("<I", 8) + HUGE),
    "long array": claim(entries=1, rest=text("k") + struct.pack("<II", 9, 12) + HUGE),
    "many texts": claim(entries=1, rest=text("k") + struct.pack("<II", 9, 8) + HUGE + bytes(1000)),
    "array of arrays": claim(entries=1, rest=text("k") + struct.pack("<IIQ", 9, 9, 1) + bytes(100)),
    "unknown type": claim(entries=1, rest=text("k") + struct.pack("<I", 99) + bytes(100)),
    "many dimensions": claim(tensors=1, rest=text("t") + struct.pack("<I", 2**31)),
    "no alignment": claim(entries=1, rest=text("general.alignment") + value(0)),
    "cut short": header(*transformer())[0],
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_header_is_refused(tmp_path: Path, content: bytes) -> None:
    """With a sentence that names the file, at once and in little memory."""
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"m\.gguf: it"):
        read_gguf(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """What is no file is refused unopened."""
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(ValueError, match="is no file"):
        read_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("llama.block_count", 2**31),
        ("llama.block_count", "many"),
        ("llama.attention.head_count", 0.5),
        ("llama.attention.head_count_kv", [-1.0, 2.0]),
        ("general.architecture", 7),
    ],
)
def test_metadata_that_makes_no_sense_is_refused(tmp_path: Path, key: str, content: object) -> None:
    """Before anything is multiplied or allocated."""
    metadata, tensors = transformer()
    path = write_gguf(tmp_path / "m.gguf", metadata | {key: content}, tensors)
    with pytest.raises(ValueError, match=r"."):
        gguf_facts(read_gguf(path))


@pytest.mark.parametrize(
    ("key", "content", "reason"),
    [
        ("attention.head_count_kv", 0, "attn_k.weight has 128"),
        ("attention.head_count_kv", 2**31, "attn_k.weight has 128"),
        ("attention.head_count", 0, r"head_count is 0, and there is attention \(blk\.0\.attn_q\.weight\)"),
        ("attention.key_length", 2**31, "attn_k.weight has 128"),
        ("block_count", 4096, "it claims 4096 layers, and has tensors of 4"),
        ("embedding_length", 2**31, "token_embd.weight has 256"),
        ("embedding_length", 0, "token_embd.weight has 256"),
    ],
)
def test_metadata_that_the_tensors_belie_is_refused(tmp_path: Path, key: str, content: int, reason: str) -> None:
    """No heads where there is attention, layers of which there is nothing, sizes from another world."""
    metadata, tensors = transformer()
    path = write_gguf(tmp_path / "m.gguf", metadata | {f"llama.{key}": content}, tensors)
    with pytest.raises(ValueError, match=reason):
        gguf_facts(read_gguf(path))


@pytest.mark.parametrize(
    ("architecture", "caveat"),
    [
        ("llama", ""),
        ("frobnicate", "is not known here"),
        ("deepseek4", "a cache of its own kind"),
        ("t5", "an encoder"),
    ],
)
def test_what_is_a_guess_is_said(tmp_path: Path, architecture: str, caveat: str) -> None:
    """An architecture that came later counts as one with attention in every layer, and the estimate says so."""
    path = write_gguf(tmp_path / "m.gguf", *transformer(architecture))
    found = estimate_mb(entry(context_length=4096, backend_config={"model_path": str(path)}), llama_server())
    assert found is not None
    assert caveat in found.caveat
    assert bool(found.caveat) == bool(caveat)
    assert found.kv_cache_mb == 4096 * 4 * 2 * 128 * 2 / MB


VALID = header(*transformer(layers=2))[0]


@given(
    st.lists(st.tuples(st.integers(0, len(VALID) - 9), st.binary(min_size=1, max_size=8)), max_size=8),
    st.none() | st.integers(0, len(VALID)),
)
def test_no_damage_crashes_the_reader(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, bytes]], end: int | None
) -> None:
    """Any change of any bytes, and any cut, gives facts or a ValueError, and accordingly an estimate or none."""
    damaged = bytearray(VALID)
    for position, content in changes:
        damaged[position : position + len(content)] = content
    path = tmp_path_factory.mktemp("damaged") / "m.gguf"
    path.write_bytes(damaged[:end])
    os.truncate(path, path.stat().st_size + (2**22 if end is None else 0))
    found = estimate_mb(entry(backend_config={"model_path": str(path)}), llama_server())
    try:
        gguf_facts(read_gguf(path))
    except ValueError:
        assert found is None
    else:
        assert found is not None


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_reader(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """After a good beginning, too."""
    path = tmp_path_factory.mktemp("bytes") / "m.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + content)
    with pytest.raises(ValueError, match=r"m\.gguf"):
        read_gguf(path)


# -- from metadata to facts


def test_layers_differ_where_the_file_says_so(tmp_path: Path) -> None:
    """Heads per layer, sliding windows, and layers that keep no cache."""
    metadata, tensors = transformer("gemma3", layers=12, **{"attention.sliding_window": 512})
    metadata["gemma3.attention.head_count_kv"] = [2] * 11 + [0]
    metadata["gemma3.nextn_predict_layers"] = 2
    facts = gguf_facts(read_gguf(write_gguf(tmp_path / "m.gguf", metadata, tensors)))
    assert [layer.key_width for layer in facts.layers] == [128] * 10 + [0, 0]
    assert [index for index, layer in enumerate(facts.layers) if not layer.windowed] == [5, 11]
    assert (facts.window_tokens, facts.tied_bytes) == (512, 300 * 256 * 2)


@pytest.mark.parametrize(
    ("fields", "recurrent"),
    [
        ({"attention.recurrent_layers": [True, False, True, True]}, [0, 2, 3]),
        ({"attention.head_count_kv": [0, 2, 0, 2]}, [0, 2]),
        ({}, []),
    ],
)
def test_recurrent_layers_are_known(tmp_path: Path, fields: dict[str, object], recurrent: list[int]) -> None:
    """By a list, or because they cache no heads; what they keep is a state."""
    ssm = {"ssm.conv_kernel": 4, "ssm.inner_size": 512, "ssm.state_size": 16, "ssm.group_count": 1}
    metadata, tensors = transformer(**(ssm | fields))  # type: ignore[arg-type]
    facts = gguf_facts(read_gguf(write_gguf(tmp_path / "m.gguf", metadata, tensors)))
    state = 4 * (3 * (512 + 2 * 16) + 512 * 16)
    expected = [(state, 0) if index in recurrent else (0, 128) for index in range(4)]
    assert [(layer.state_bytes, layer.key_width) for layer in facts.layers] == expected


SSM = {"ssm.conv_kernel": 4, "ssm.inner_size": 512, "ssm.state_size": 16, "ssm.group_count": 1}


@pytest.mark.parametrize(
    ("architecture", "fields", "recurrent", "elements"),
    [
        ("qwen3next", SSM, [0, 1, 2], 3 * (512 + 2 * 16) + 512 * 16),
        ("qwen3next", SSM | {"full_attention_interval": 2}, [0, 2], 3 * (512 + 2 * 16) + 512 * 16),
        ("rwkv7", {"wkv.head_size": 64}, [0, 1, 2, 3], 256 * (2 + 64)),
        ("lfm2", {"shortconv.l_cache": 3, "attention.head_count_kv": [2, 0, 0, 2]}, [1, 2], 256 * 2),
        ("kimi-linear", {"kda.head_dim": 32, "attention.head_count_kv": [0, 2, 2, 2]}, [0], 4 * (3 * 3 * 32 + 32 * 32)),
        (
            "nemotron_h",
            SSM | {"attention.head_count_kv": [0] * 4, "feed_forward_length": [0, 512, 0, 512]},
            [0, 2],
            9824,
        ),
    ],
)
def test_states_differ_by_architecture(
    tmp_path: Path, architecture: str, fields: dict[str, object], recurrent: list[int], elements: int
) -> None:
    """Which layers keep one, and how many 32-bit elements it has: 4 layers, 4 heads, 256 elements wide."""
    metadata, tensors = transformer(architecture, **fields)  # type: ignore[arg-type]
    tensors = [tensor for tensor in tensors if "attn_k" not in tensor[0]]
    facts = gguf_facts(read_gguf(write_gguf(tmp_path / "m.gguf", metadata, tensors)))
    assert [layer.state_bytes for layer in facts.layers] == [
        4 * elements if index in recurrent else 0 for index in range(4)
    ]


@pytest.mark.parametrize(
    ("pattern", "windowed"), [([True, False, True, True], [0, 2, 3]), ([True], [0]), (2, [0, 2]), (None, [])]
)
def test_windows_are_known(tmp_path: Path, pattern: object, windowed: list[int]) -> None:
    """By a list, or by a period; without either llama has none."""
    fields = {"attention.sliding_window": 512} | ({"attention.sliding_window_pattern": pattern} if pattern else {})
    metadata, tensors = transformer(**fields)  # type: ignore[arg-type]
    facts = gguf_facts(read_gguf(write_gguf(tmp_path / "m.gguf", metadata, tensors)))
    assert [index for index, layer in enumerate(facts.layers) if layer.windowed] == windowed


def test_latent_attention_is_known(tmp_path: Path) -> None:
    """With both lengths of MLA only keys are cached."""
    fields = {"attention.key_length": 576, "attention.key_length_mla": 192, "attention.value_length_mla": 128}
    metadata, tensors = transformer("deepseek2", kv_heads=1, **fields)
    facts = gguf_facts(read_gguf(write_gguf(tmp_path / "m.gguf", metadata, tensors)))
    assert {(layer.key_width, layer.value_width) for layer in facts.layers} == {(576, 0)}


def test_encoders_keep_no_cache(tmp_path: Path) -> None:
    """A BERT has neither a KV cache nor logits."""
    metadata, tensors = transformer("bert")
    facts = gguf_facts(read_gguf(write_gguf(tmp_path / "m.gguf", metadata, tensors)))
    assert {layer.key_width for layer in facts.layers} == {0}
    assert (facts.vocabulary, facts.tied_bytes) == (0, 0)


# -- from an entry to an estimate


def estimated(path: Path, *extra_args: str, on_gpu: bool = True, **fields: Any) -> dict[str, int]:
    """Return the parts of an estimate for llama.cpp."""
    config = {"model_path": str(path), "extra_args": list(extra_args)}
    found = estimate_mb(entry(backend_config=config, **fields), llama_server(), on_gpu=on_gpu)
    assert found is not None
    return {"weights": found.weights_mb, "kv": found.kv_cache_mb, "compute": found.compute_mb, "mb": found.mb}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that caches 32 KB per token: 1024 tokens are 32 MB."""
    shape = transformer(layers=16, width=1024, heads=16, kv_heads=8, feed_forward=4096)
    return write_gguf(tmp_path_factory.mktemp("model") / "m.gguf", *shape)


@pytest.mark.parametrize(
    ("fields", "extra_args", "kv_mb"),
    [
        ({}, (), 1024),
        ({"context_length": 4096}, (), 128),
        ({"generation_defaults": {"ctx_size": 2048}}, (), 64),
        ({"context_length": 4096}, ("-c", "8192"), 256),
        ({"context_length": 4096}, ("--ctx_size", "8192"), 256),
        ({"context_length": 4096}, ("-c", "0"), 1024),
        ({"context_length": 4096}, ("-c", "8k"), 128),  # letters are vLLM's
        ({"context_length": 4096}, ("-c", "-8"), 1024),
        ({"context_length": 4096}, ("-ctk", "q8_0", "--cache-type-v", "q8_0"), 68),
        ({"context_length": 4096}, ("-ngl", "9"), 64),
        ({"context_length": 4096}, ("-ngl", "all"), 128),
        ({"context_length": 4096}, ("--no-kv-offload",), 0),
        ({"context_length": 256}, ("-np", "8"), 64),
        ({"context_length": 256}, ("-np", "8", "-kvu"), 8),
        ({"context_length": 256, "max_parallel": 8}, (), 8),
        ({"context_length": 256, "max_parallel": 8}, ("--no-kv-unified",), 64),
    ],
)
def test_the_arguments_of_an_entry_count(
    model: Path, fields: dict[str, Any], extra_args: tuple[str, ...], kv_mb: int
) -> None:
    """As the driver hands them to llama-server, whose last word they are."""
    assert estimated(model, *extra_args, **fields)["kv"] == kv_mb


def test_batches_and_flash_attention_count(model: Path) -> None:
    """Where they stand in the arguments or in the generation defaults."""
    plain = estimated(model, context_length=4096)["compute"]
    assert estimated(model, "-fa", "off", context_length=4096)["compute"] > 2 * plain
    assert estimated(model, "-ub", "1024", context_length=4096)["compute"] == pytest.approx(2 * plain, abs=1)
    for defaults in ({"ubatch_size": 128}, {"batch_size": 128}):
        small = estimated(model, context_length=4096, generation_defaults=defaults)["compute"]
        assert small == pytest.approx(plain / 4, abs=1)


def test_a_projector_is_added(tmp_path: Path, model: Path) -> None:
    """Its tensors and its activations; without GPUs as well."""
    fields = {"image_size": 448, "patch_size": 14, "embedding_length": 1024, "feed_forward_length": 4096}
    metadata = {"general.architecture": "clip", **{f"clip.vision.{key}": number for key, number in fields.items()}}
    projector = write_gguf(tmp_path / "mmproj.gguf", metadata, [("v.weight", (1024, 1024, 100), F16)])
    backend = FakeBackend(paths=(model, projector))
    found = estimate_mb(entry(context_length=4096), backend)
    assert found is not None
    assert found.projector_mb == 200 + 40
    hosted = estimate_mb(entry(backend_config={"extra_args": ["--no-mmproj-offload"]}), backend)
    assert hosted is not None
    assert hosted.projector_mb == 0


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was understood, and what was not, which is warned about once."""
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF\x03")
    files, backend = ModelFiles(), llama_server()
    asked = entry(backend_config={"model_path": str(path)})
    with caplog.at_level(logging.WARNING):
        assert [files.estimate_mb(asked, backend) for _ in range(3)] == [None] * 3
    assert caplog.text.count("cannot be computed") == 1
    write_gguf(path, *transformer())
    first = files.estimate_mb(asked, backend)
    assert first is not None
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert files.estimate_mb(asked, backend) == first


def test_only_so_much_is_remembered(tmp_path: Path) -> None:
    """What was read first goes first: it is read again, and what came last is not."""
    path = write_gguf(tmp_path / "m.gguf", *transformer())
    files, backend = ModelFiles(), FakeBackend(paths=(path,))
    asked = [entry(backend_config={"extra_args": ["--dtype", str(number)]}) for number in range(MOST_REMEMBERED + 1)]
    assert all(files.estimate_mb(one, backend) for one in asked)
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert files.estimate_mb(asked[-1], backend) is not None
    assert files.estimate_mb(asked[0], backend) is None


@pytest.mark.parametrize("name", ["absent.gguf", "absent", "model.bin", "no\0name"])
def test_files_that_tell_nothing_give_no_estimate(tmp_path: Path, name: str) -> None:
    """Not installed, or of a kind that is not known here."""
    (tmp_path / "model.bin").write_bytes(b"weights")
    assert estimate_mb(entry(), FakeBackend(paths=(tmp_path / name,))) is None
    assert estimate_mb(entry(), FakeBackend()) is None


# -- safetensors


CONFIG = {
    "hidden_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "intermediate_size": 4096,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}


def write_safetensors(path: Path, sizes: Mapping[str, int], dtype: str = "BF16") -> None:
    """Write a file of tensors of so many bytes, as a hole."""
    offset, tensors = 0, {}
    for name, size in sizes.items():
        tensors[name] = {"dtype": dtype, "shape": [size // 2], "data_offsets": [offset, offset + size]}
        offset += size
    start = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    path.write_bytes(struct.pack("<Q", len(start)) + start)
    os.truncate(path, path.stat().st_size + offset)


def write_folder(folder: Path, config: Mapping[str, Any] = CONFIG, dtype: str = "BF16") -> Path:
    """Write a model of two parts of 100 MB."""
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for number, name in enumerate(names):
        write_safetensors(folder / name, {f"w{number}": 100 * MB}, dtype)
    index = {"metadata": {"total_size": 200 * MB}, "weight_map": {"w0": names[0], "w1": names[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_folder_is_estimated_for_vllm(tmp_path: Path) -> None:
    """Weights from the headers, the cache from config.json: 32 KB per token."""
    folder = write_folder(tmp_path)
    backend = FakeBackend(name="vllm", takes_share=True, paths=(folder,), slots=1)
    found = estimate_mb(entry(backend="vllm"), backend)
    assert found is not None
    assert (found.weights_mb, found.kv_cache_mb, found.mb) == (200, 256, found.least_mb)
    arguments = ["--max-model-len", "4k", "--max-num-seqs=2", "--kv-cache-dtype", "fp8", "--enforce-eager"]
    small = estimate_mb(entry(backend="vllm", backend_config={"extra_args": arguments}), backend)
    assert small is not None
    assert small.kv_cache_mb == pytest.approx((4000 + 2048) / 64, abs=2)
    assert small.least_mb < small.mb < found.mb


def test_a_vision_model_is_described_inside(tmp_path: Path) -> None:
    """The language model's numbers are in ``text_config``; the outer ones count where it says nothing."""
    folder = write_folder(tmp_path, {"vocab_size": 5, "hidden_size": 7, "text_config": CONFIG, "sliding_window": 0})
    facts = safetensors_facts(folder)
    assert (facts.full_layers, facts.key_value_heads, facts.head_width, facts.vocabulary) == (16, 8, 64, 32000)


@pytest.mark.parametrize(
    ("extra", "full", "windowed", "states"),
    [
        ({"sliding_window": 1024}, 0, 16, 0),
        ({"sliding_window": 1024, "use_sliding_window": False}, 16, 0, 0),
        ({"sliding_window": None}, 16, 0, 0),
        ({"sliding_window": 1024, "sliding_window_pattern": 6}, 2, 14, 0),
        ({"sliding_window": 1024, "layer_types": ["sliding_attention", "full_attention"] * 8}, 8, 8, 0),
        ({"layer_types": ["linear_attention"] * 12 + ["full_attention"] * 4}, 4, 0, 12),
        ({"full_attention_interval": 4}, 4, 0, 12),
    ],
)
def test_layers_of_a_config_are_told_apart(
    tmp_path: Path, extra: dict[str, Any], full: int, windowed: int, states: int
) -> None:
    """By their list, by a period, or all alike."""
    linear = {"linear_num_value_heads": 4, "linear_value_head_dim": 8, "linear_key_head_dim": 8}
    facts = safetensors_facts(write_folder(tmp_path, CONFIG | linear | extra))
    assert (facts.full_layers, facts.windowed_layers, facts.state_bytes) == (full, windowed, states * 4 * 8 * 8 * 2)


def test_latent_attention_of_a_config(tmp_path: Path) -> None:
    """The rank and the rotary part are what is cached."""
    facts = safetensors_facts(write_folder(tmp_path, CONFIG | {"kv_lora_rank": 512, "qk_rope_head_dim": 64}))
    assert facts.latent_width == 576


def test_weights_of_32_bits_are_loaded_with_16(tmp_path: Path) -> None:
    """Unless the arguments ask for all of them."""
    folder = write_folder(tmp_path, dtype="F32")
    assert safetensors_facts(folder).weight_bytes == 100 * MB
    assert safetensors_facts(folder, "float32").weight_bytes == 200 * MB


def test_a_part_that_is_missing_counts_by_the_index(tmp_path: Path) -> None:
    """A gated or unfinished download: the index knows the total; if it does not, there is no estimate."""
    folder = write_folder(tmp_path)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert safetensors_facts(folder).weight_bytes == 200 * MB
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"metadata": {}}))
    with pytest.raises(ValueError, match="1 of its 2 parts are missing"):
        safetensors_facts(folder)


def test_a_folder_without_an_index(tmp_path: Path) -> None:
    """One file, and not the consolidated one beside it."""
    write_safetensors(tmp_path / "model.safetensors", {"w": 10 * MB})
    write_safetensors(tmp_path / "consolidated.safetensors", {"w": 10 * MB})
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert safetensors_facts(tmp_path).weight_bytes == 10 * MB


def test_weights_that_are_no_safetensors_count_by_their_size(tmp_path: Path) -> None:
    """Older models have pickled ones."""
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(3 * MB))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert safetensors_facts(tmp_path).weight_bytes == 3 * MB


@pytest.mark.parametrize(
    ("mamba_config", "elements"),
    [
        ({"mamba_num_heads": 8, "mamba_head_dim": 64, "ssm_state_size": 128}, 512 * 128),
        ({"mamba_d_inner": 2048, "mamba_d_state": 16}, 2048 * 16),
        ({"state_size": 16}, 4096 * 16),
    ],
)
def test_a_mamba_has_several_spellings(tmp_path: Path, mamba_config: dict[str, int], elements: int) -> None:
    """Nemotron's, Jamba's and Mamba's own; layers that are neither attention nor Mamba keep nothing."""
    kinds = {"layers_block_type": ["mamba"] * 10 + ["attention", "mlp"] * 3}
    facts = safetensors_facts(write_folder(tmp_path, CONFIG | kinds | mamba_config))
    assert (facts.full_layers, facts.state_bytes) == (3, 10 * elements * 2)


NONSENSE = {
    "no config": {"config.json": None},
    "a list": {"config.json": "[]"},
    "no JSON": {"config.json": "{"},
    "deep": {"config.json": "[" * 100_000},
    "layers": {"config.json": json.dumps(CONFIG | {"num_hidden_layers": 2**62})},
    "words": {"config.json": json.dumps(CONFIG | {"hidden_size": "wide"})},
    "negative": {"config.json": json.dumps(CONFIG | {"vocab_size": -1})},
    "index without files": {"model.safetensors.index.json": "{}"},
    "index of other folders": {"model.safetensors.index.json": '{"weight_map": {"w": "../../x.safetensors"}}'},
    "empty part": {"model-00001-of-00002.safetensors": ""},
    "long header": {"model-00001-of-00002.safetensors": "\xff" * 20},
    "no offsets": {"model-00001-of-00002.safetensors": "\x08" + "\0" * 7 + '{"w":{}}'},
    "offsets beyond the end": {
        "model-00001-of-00002.safetensors": "\x30" + "\0" * 7 + '{"w": {"dtype": "BF16", "data_offsets": [0, 8]}}'
    },
    "no weights": {"model.safetensors.index.json": None, "model-*": None},
}


@pytest.mark.parametrize("changes", NONSENSE.values(), ids=NONSENSE)
def test_a_folder_that_makes_no_sense_is_refused(tmp_path: Path, changes: dict[str, str | None]) -> None:
    """With a ValueError, and no estimate."""
    folder = write_folder(tmp_path)
    for name, content in changes.items():
        if content is None:
            for path in folder.glob(name):
                path.unlink()
        else:
            (folder / name).write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"."):
        safetensors_facts(folder)
    assert estimate_mb(entry(), FakeBackend(paths=(folder,))) is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*CONFIG, "text_config"]), inner),
        max_leaves=6,
    ),
    st.sampled_from([*CONFIG, "text_config", "layer_types", "sliding_window", "kv_lora_rank", "head_dim"]),
)
def test_no_config_crashes_the_reader(tmp_path_factory: pytest.TempPathFactory, content: object, key: str) -> None:
    """Any value of any field gives an estimate or none."""
    folder = tmp_path_factory.mktemp("config")
    write_safetensors(folder / "model.safetensors", {"w": 2 * MB})
    (folder / "config.json").write_text(json.dumps(CONFIG | {key: content}))
    found = estimate_mb(entry(), FakeBackend(paths=(folder,)))
    assert found is None or found.least_mb <= found.mb


# -- against the engine itself


PRINTED = {
    "kv": re.compile(r"(?:llama_kv_cache|llama_memory_recurrent): size = +([\d.]+) MiB"),
    "compute": re.compile(r"compute buffer size = +([\d.]+) MiB"),
}


def printed_mb(path: Path, *arguments: str) -> dict[str, float]:
    """Return what llama.cpp prints of its buffers when it lays them out, before it loads anything (``--fit``)."""
    port = unused_port()
    command = [sys.executable, "-m", "rolecall.backends.embedded", "-t", "1", "-v", "-m", str(path), *arguments]
    found = {"kv": 0.0, "compute": 0.0}
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    assert process.stderr is not None
    try:
        for line in io.TextIOWrapper(process.stderr, "utf-8", "replace"):
            for part, pattern in PRINTED.items():
                if match := pattern.search(line):
                    found[part] += float(match[1])
            if "memory breakdown" in line:
                return found
    finally:
        process.kill()
        process.wait()
    raise AssertionError(f"the engine said nothing of its memory: {found}")


SHAPES = {
    "dense": transformer(layers=16, width=1024, heads=16, kv_heads=8, feed_forward=4096, words=4000),
    "windowed": transformer("gemma3", 12, 1024, 16, 8, 4096, 4000, **{"attention.sliding_window": 512}),
    "experts": transformer("qwen3moe", 8, 512, 8, 4, 2048, 4000, experts=16),
    "gpt-oss": gpt_oss(layers=4),
    "latent": deepseek2(layers=4),
    "recurrent": mamba(),
    "hybrid": granite_hybrid(layers=4),
    "both": falcon_h1(layers=2),
    "convolutions": lfm2(layers=4),
    "delta net": qwen3next(layers=4),
    "rwkv": rwkv7(layers=2),
    "fused": phi3(layers=2),
    "three kinds": nemotron_h(layers=6),
}
WITH_STATES = {"recurrent", "hybrid", "delta net", "three kinds"}
SERVED = {
    "unified": ("-c", "8192", "-np", "4", "-kvu"),
    "divided": ("-c", "8192", "-np", "4"),
    "quantized": ("-c", "16384", "-np", "2", "-kvu", "-ctk", "q8_0", "-ctv", "q4_0"),
    "plain attention": ("-c", "4096", "-np", "1", "-fa", "off", "-ub", "256"),
}


@pytest.mark.parametrize("served", SERVED)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_real_engine_takes_what_was_computed(tmp_path: Path, shape: str, served: str) -> None:
    """Its cache to the megabyte, its compute buffer within 5 % (with states: 15 %) or 2 MB, hardly ever less."""
    pytest.importorskip("xllamacpp", reason="the embedded engine is an extra: rolecall[llama]")
    path = write_gguf(tmp_path / "m.gguf", *SHAPES[shape])
    arguments = [
        word.replace("q4_0", "q8_0") if shape == "latent" else word for word in SERVED[served]
    ]  # one type only
    printed, computed = printed_mb(path, *arguments), estimated(path, *arguments, on_gpu=False)
    assert computed["kv"] == pytest.approx(printed["kv"], abs=1)
    most = 1.15 if shape in WITH_STATES else 1.05
    assert 0.97 * printed["compute"] - 1 < computed["compute"] < most * printed["compute"] + 2
    assert computed["weights"] == pytest.approx(path.stat().st_size / MB, abs=1)
