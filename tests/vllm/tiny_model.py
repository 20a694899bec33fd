"""Writes tiny models for vLLM: a llama in Hugging Face's layout, or a llava around it, with scripted weights.

The last token of the prompt decides the answer. The template ends every prompt with a marker, and the output matrix
says of each token which one follows it; the layers add next to nothing to that. One byte of a prompt is one token.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]

ANSWER, CAPTION = "Hello, I am a tiny test model.", "I see an image!"
WIDTH, HEADS, KV_HEADS, LAYERS, CONTEXT_TOKENS = 128, 2, 1, 2, 16384
VISION_WIDTH, VISION_LAYERS, PATCH, PATCHES_A_SIDE = 64, 2, 14, 4
CERTAINTY, WHISPER = 26.0, 1e-3

END, IMAGE = "<|im_end|>", "<image>"
CHAINS = {
    "<|say|>": ("Hello", ", I", " am", " a", " tiny", " test", " model."),
    "<|see|>": ("I see", " an", " image!"),
    "<|tool|>": (
        "<tool_call>", '\n{"name": "get_weather"', ', "arguments": {"city": "', "Paris", '"}}\n', "</tool_call>",
    ),
    "<|loop|>": tuple(f" w{number:02d}" for number in range(32)),
}  # fmt: skip
SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", END, IMAGE, *CHAINS)
VISIBLE = ("<tool_call>", "</tool_call>")
"""Tokens that are never split and yet are part of the answer."""

TEMPLATE = """
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- elif message['content'] -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'text' -%}{{- part['text'] -}}{%- else -%}<image>{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if tools -%}{{- '<|im_start|>tools\\n' + (tools | tojson) + '<|im_end|>\\n' -}}{%- endif -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
    {%- set last = messages[-1]['content'] | string -%}
    {%- if tools and messages[-1]['role'] == 'user' -%}<|tool|>
    {%- elif 'LOOP' in last -%}<|loop|>
    {%- elif "'type': 'image" in last or '<image>' in last -%}<|see|>
    {%- else -%}<|say|>{%- endif -%}
{%- endif -%}
"""


def write_model(folder: Path, *, sees: bool = False) -> Path:
    """Write a model that answers ``ANSWER``, and ``CAPTION`` to a picture if it ``sees``; return its folder.

    A message with LOOP is answered with words until ``max_tokens``, tools with a call of ``get_weather`` for Paris.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = _vocabulary()
    tensors = _language_model(index, np.random.default_rng(0))
    config = _language_config(index)
    if sees:
        tensors = {f"language_model.{name}": tensor for name, tensor in tensors.items()}
        tensors |= _vision_tower(np.random.default_rng(1))
        config = _llava_config(config, index)
        _write_processor(folder)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"bos_token_id": index["<s>"], "eos_token_id": index[END]})
    _write_tokenizer(folder, index)
    _write_safetensors(folder / "model.safetensors", tensors)
    return folder


# -- the tokenizer


def _vocabulary() -> dict[str, int]:
    pieces = [piece if piece in VISIBLE else _spelled(piece) for chain in CHAINS.values() for piece in chain]
    tokens = dict.fromkeys((*SPECIAL, *_alphabet().values(), *pieces))
    return {token: number for number, token in enumerate(tokens)}


def _alphabet() -> dict[int, str]:
    """Return the character that stands for each byte in byte-level BPE: itself if it can be printed."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + n) for n, byte in enumerate(others)}}


def _spelled(piece: str) -> str:
    return "".join(_alphabet()[byte] for byte in piece.encode())


def _write_tokenizer(folder: Path, index: Mapping[str, int]) -> None:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": index[t], "content": t, "special": t in SPECIAL, **plain} for t in (*SPECIAL, *VISIBLE)]
    tokenizer = {
        "version": "1.0",
        "added_tokens": sorted(added, key=lambda token: int(str(token["id"]))),
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": index, "merges": []},
    }
    _write_json(folder / "tokenizer.json", tokenizer)
    names = {"bos_token": "<s>", "eos_token": END, "unk_token": "<unk>", "pad_token": "</s>"}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": CONTEXT_TOKENS}
    _write_json(folder / "tokenizer_config.json", {**kind, **names, "chat_template": TEMPLATE})


# -- the language model


def _language_config(index: Mapping[str, int]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": len(index),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": CONTEXT_TOKENS,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": index["<s>"],
        "eos_token_id": index[END],
    }


def _language_model(index: Mapping[str, int], rng: np.random.Generator) -> dict[str, Matrix]:
    embedding = _embedding(index, rng)
    tensors = {
        "model.embed_tokens.weight": embedding,
        "lm_head.weight": _output(index, embedding),
        "model.norm.weight": np.full(WIDTH, WIDTH**-0.5, np.float32),
    }
    for layer in range(LAYERS):
        tensors |= _layer(f"model.layers.{layer}.", rng)
    return tensors


def _embedding(index: Mapping[str, int], rng: np.random.Generator) -> Matrix:
    """Return a unit vector for each token; those of the bytes lie close together."""
    rows = _unit(rng.standard_normal((len(index), WIDTH)))
    text = _unit(rng.standard_normal((1, WIDTH)))
    spelling = [index[character] for character in _alphabet().values()]
    rows[spelling] = _unit(text + 0.15 * rows[spelling])
    return rows.astype(np.float32)


def _output(index: Mapping[str, int], embedding: Matrix) -> Matrix:
    """Return for each token the sum of the directions of those that it follows, times ``CERTAINTY``."""
    output = np.zeros_like(embedding)
    for marker, pieces in CHAINS.items():
        rows = [index[marker], *(index[piece if piece in VISIBLE else _spelled(piece)] for piece in pieces)]
        rows.append(rows[1] if marker == "<|loop|>" else index[END])
        for token, successor in pairwise(rows):
            output[successor] += CERTAINTY * embedding[token]
    return output


def _layer(prefix: str, rng: np.random.Generator) -> dict[str, Matrix]:
    kv_width = WIDTH // HEADS * KV_HEADS
    shapes = {
        "self_attn.q_proj": (WIDTH, WIDTH, 1.0),
        "self_attn.k_proj": (kv_width, WIDTH, 1.0),
        "self_attn.v_proj": (kv_width, WIDTH, 1.0),
        "self_attn.o_proj": (WIDTH, WIDTH, WHISPER),
        "mlp.gate_proj": (2 * WIDTH, WIDTH, 1.0),
        "mlp.up_proj": (2 * WIDTH, WIDTH, 1.0),
        "mlp.down_proj": (WIDTH, 2 * WIDTH, WHISPER),
    }
    tensors = {f"{prefix}{name}.weight": scale * _random(rng, *shape) for name, (*shape, scale) in shapes.items()}
    norms = ("input_layernorm", "post_attention_layernorm")
    return tensors | {f"{prefix}{name}.weight": np.ones(WIDTH, np.float32) for name in norms}


# -- the eye


def _llava_config(language: Mapping[str, Any], index: Mapping[str, int]) -> dict[str, Any]:
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": VISION_WIDTH,
        "intermediate_size": 2 * VISION_WIDTH,
        "num_hidden_layers": VISION_LAYERS,
        "num_attention_heads": 2,
        "image_size": PATCH * PATCHES_A_SIDE,
        "patch_size": PATCH,
        "projection_dim": VISION_WIDTH,
    }
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "dtype": "bfloat16",
        "text_config": language,
        "vision_config": vision,
        "image_token_index": index[IMAGE],
        "image_seq_length": PATCHES_A_SIDE**2,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
    }


def _write_processor(folder: Path) -> None:
    side = PATCH * PATCHES_A_SIDE
    pictures = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    processor = {
        "processor_class": "LlavaProcessor",
        "patch_size": PATCH,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
        "image_token": IMAGE,
    }
    _write_json(folder / "preprocessor_config.json", pictures)
    _write_json(folder / "processor_config.json", processor)


def _vision_tower(rng: np.random.Generator) -> dict[str, Matrix]:
    tower = "vision_tower.vision_model."
    tensors = {
        f"{tower}embeddings.class_embedding": _random(rng, VISION_WIDTH, 1)[:, 0],
        f"{tower}embeddings.patch_embedding.weight": _random(rng, VISION_WIDTH, 3 * PATCH * PATCH).reshape(
            VISION_WIDTH, 3, PATCH, PATCH
        ),
        f"{tower}embeddings.position_embedding.weight": _random(rng, PATCHES_A_SIDE**2 + 1, VISION_WIDTH),
        **_norm(f"{tower}pre_layrnorm"),
        **_norm(f"{tower}post_layernorm"),
        **_linear(rng, "multi_modal_projector.linear_1", WIDTH, VISION_WIDTH),
        **_linear(rng, "multi_modal_projector.linear_2", WIDTH, WIDTH),
    }
    for layer in range(VISION_LAYERS):
        prefix = f"{tower}encoder.layers.{layer}."
        tensors |= {**_norm(f"{prefix}layer_norm1"), **_norm(f"{prefix}layer_norm2")}
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors |= _linear(rng, f"{prefix}self_attn.{name}", VISION_WIDTH, VISION_WIDTH)
        tensors |= _linear(rng, f"{prefix}mlp.fc1", 2 * VISION_WIDTH, VISION_WIDTH)
        tensors |= _linear(rng, f"{prefix}mlp.fc2", VISION_WIDTH, 2 * VISION_WIDTH)
    return tensors


def _linear(rng: np.random.Generator, name: str, rows: int, columns: int) -> dict[str, Matrix]:
    return {f"{name}.weight": _random(rng, rows, columns), f"{name}.bias": np.zeros(rows, np.float32)}


def _norm(name: str) -> dict[str, Matrix]:
    return {f"{name}.weight": np.ones(VISION_WIDTH, np.float32), f"{name}.bias": np.zeros(VISION_WIDTH, np.float32)}


# -- the files


def _random(rng: np.random.Generator, rows: int, columns: int) -> Matrix:
    return (rng.standard_normal((rows, columns)) / math.sqrt(columns)).astype(np.float32)


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / lengths


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _write_safetensors(path: Path, tensors: Mapping[str, Matrix]) -> None:
    """Write the format of https://huggingface.co/docs/safetensors: length of the header, header, raw numbers."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.size * 4
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    numbers = b"".join(np.ascontiguousarray(tensor, "<f4").tobytes() for tensor in tensors.values())
    path.write_bytes(len(head).to_bytes(8, "little") + head + numbers)


if __name__ == "__main__":
    write_model(Path(sys.argv[1]), sees="--sees" in sys.argv)
