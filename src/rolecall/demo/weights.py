"""Writes models of the llama architecture whose weights are a script instead of something learnt.

Why it works. A transformer's residual stream starts as the embedding of the last token, and every layer adds to it.
Here the layers add next to nothing (their output matrices are scaled by `WHISPER`), so what reaches the output matrix
is that embedding. Every token that is part of the script has a direction of its own, at right angles to all others;
row *b* of the output matrix is `CERTAINTY` times the direction of the token that *b* follows. So the logit of the
scripted successor is `CERTAINTY` and every other one about zero: no usual sampling sees more than one candidate.

How it sees. The projector makes of each part of an image a token of two directions: one says that it is an image, the
other how much brighter than a middle grey it is. In states where the script forks, one attention head asks for images
(its queries and keys hold nothing else, in the pair of dimensions that RoPE turns the least) and adds their mean
brightness to the residual; the rows of the two successors take it with opposite signs.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import gguf
import numpy as np

from rolecall.demo import script as scripts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

Matrix: TypeAlias = "NDArray[np.float32]"

WIDTH, HEADS, KV_HEADS = 256, 4, 2
CONTEXT_TOKENS = 32768
CERTAINTY = 100.0
WHISPER = 1e-3
BYTE_OWN = 0.15
"""A byte's own part of its embedding; the rest is the direction of all text, which leads to the plain answer."""
FALLBACK, FALLBACK_STEP = 0.6, 0.07
"""What the first fallback weighs beside a scripted successor, and how much less each further one."""

CONTROL = (scripts.BEGIN, scripts.STOP, scripts.MESSAGE, scripts.END)

SIGHT = 0.3
"""What brightness weighs beside a scripted successor."""
ATTENTION = 0.7
"""Of queries and keys: exp((16 * ATTENTION)² / 8) is what an image token weighs beside a token of text."""
SHADE = 0.1
"""What brightness weighs beside being an image: so little that light and dark parts are attended to alike."""
IMAGE, LIGHT = WIDTH - 2, WIDTH - 1
"""The directions of image tokens, which no token of text has; the same whatever the script says."""

STEADY, STRAIGHT = 4.0, 10.0
"""In the projector: the constant channels beside brightness, and where GELU is straight."""
IMAGE_PIXELS, PATCH_PIXELS, VISION_WIDTH, VISION_HEADS = 64, 16, 64, 2


def write_chat(
    path: Path, *, name: str, script: scripts.Script | None = None, layers: int = 1, ff: int = 2 * WIDTH
) -> None:
    """Write a chat model that follows `script`; it can embed texts, too (the mean over their tokens).

    `layers` and `ff` (the feed-forward width) change nothing in what it says, they only make it slower and larger.
    Raises ValueError for a script that cannot be said, OSError for a file that cannot be written.
    """
    script = script or scripts.Script()
    vocabulary = Vocabulary(scripts.chains(script), scripts.forks(script))
    rng = np.random.default_rng(0)
    embedding = _embedding(vocabulary, rng)
    writer = gguf.GGUFWriter(path, "llama")
    try:
        _describe_model(writer, name, layers, ff)
        vocabulary.describe(writer)
        writer.add_chat_template(scripts.chat_template(script))
        writer.add_tensor("token_embd.weight", embedding.astype(np.float16))
        writer.add_tensor("output.weight", _output(vocabulary, embedding).astype(np.float16))
        writer.add_tensor("output_norm.weight", np.full(WIDTH, WIDTH**-0.5, np.float32))
        for layer in range(layers):
            _add_layer(writer, f"blk.{layer}.", ff, rng, seeing=_seeing(vocabulary, embedding) if layer == 0 else None)
        _write(writer)
    finally:
        writer.close()


class Vocabulary:
    """Every token of a model: control tokens, the characters that prompts are spelled in, the pieces of the chains."""

    def __init__(self, chains: Sequence[scripts.Chain], forks: Sequence[scripts.Fork] = ()) -> None:
        kinds = gguf.TokenType
        rows = [(scripts.UNKNOWN, 0.0, kinds.UNKNOWN)]
        rows += [(token, 0.0, kinds.CONTROL) for token in (*CONTROL, *(chain.start for chain in chains))]
        # A space has a token besides its byte, for the tokenizer knows it under a name of three bytes.
        text = [(scripts.SPACE, 0.0, kinds.NORMAL), *((_byte(chr(code)), 0.0, kinds.BYTE) for code in range(256))]
        # The score keeps the tokenizer from building a piece where bytes would do.
        said = [*(piece for chain in chains for piece in chain.pieces), *(fork.dark for fork in forks)]
        pieces = [(piece, -1000.0, kinds.NORMAL) for piece in said]
        self.chains, self.forks = chains, forks
        self.text = slice(len(rows), len(rows) + len(text))
        self.rows = [*rows, *text, *pieces]
        self.index = {token: number for number, (token, _, _) in enumerate(self.rows)}

    def describe(self, writer: gguf.GGUFWriter) -> None:
        """Add the tokenizer's metadata."""
        tokens, scores, kinds = zip(*self.rows, strict=True)
        writer.add_vocab_size(len(self.rows))
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_scores(scores)
        writer.add_token_types(kinds)
        writer.add_unk_token_id(self.index[scripts.UNKNOWN])
        writer.add_bos_token_id(self.index[scripts.BEGIN])
        writer.add_eos_token_id(self.index[scripts.END])
        writer.add_add_bos_token(value=True)
        writer.add_add_eos_token(value=False)
        writer.add_add_space_prefix(value=False)


def _describe_model(writer: gguf.GGUFWriter, name: str, layers: int, ff: int) -> None:
    writer.add_name(name)
    writer.add_description("rolecall's demo model: scripted weights that show the plumbing; it knows nothing.")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(ff)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_pooling_type(gguf.PoolingType.MEAN)


def _embedding(vocabulary: Vocabulary, rng: np.random.Generator) -> Matrix:
    """The unit vector of each token: a direction of its own, or close to that of all text."""
    directions = _directions()
    scripted = np.ones(len(vocabulary.rows), bool)
    scripted[vocabulary.text] = False
    used = int(scripted.sum())
    if used > IMAGE - 2:
        raise ValueError(f"the script is {used - IMAGE + 2} words too long for a demo model")
    embedding = np.empty((len(scripted), WIDTH))
    embedding[scripted] = directions[:used]
    weights = _unit(rng.standard_normal((len(scripted) - used, IMAGE - used - 1)))
    # Not a matrix product: BLAS would start threads, which costs seconds on a busy machine.
    own = np.einsum("tf,fw->tw", weights, directions[used + 1 : IMAGE])
    embedding[~scripted] = _unit(directions[used] + BYTE_OWN * own)
    return embedding.astype(np.float32)


def _directions() -> NDArray[np.float64]:
    """Unit vectors at right angles to each other: the rows of a Hadamard matrix, which 16-bit floats hold exactly.

    Sylvester's construction.
    """
    directions = np.ones((1, 1))
    while len(directions) < WIDTH:
        directions = np.block([[directions, directions], [directions, -directions]])
    unit: NDArray[np.float64] = directions * WIDTH**-0.5
    return unit


def _output(vocabulary: Vocabulary, embedding: Matrix) -> Matrix:
    """For each token the sum of the directions of all tokens that it follows, times CERTAINTY."""
    output = np.zeros_like(embedding)
    row = vocabulary.index
    for chain in vocabulary.chains:
        for state, successor in pairwise((chain.start, *chain.pieces, chain.then)):
            output[row[successor]] += embedding[row[state]]
    light = SIGHT * _directions()[LIGHT]
    for fork in vocabulary.forks:
        output[row[fork.bright]] += light
        output[row[fork.dark]] += embedding[row[fork.state]] - light
        output[row[fork.then]] += embedding[row[fork.dark]]
    text = embedding[vocabulary.text].mean(axis=0)
    # A prompt that no template has ended with a marker gets the plain answer.
    unmarked = embedding[[row[token] for token in (scripts.UNKNOWN, *CONTROL)]].sum(axis=0) + text
    output[row[vocabulary.chains[0].pieces[0]]] += unmarked
    # Where a grammar (JSON output, a tool's arguments) forbids the scripted word, the model would babble whatever the
    # grammar admits. With these it opens an object, says its sentence in a string and closes what is open.
    markers = embedding[[row[chain.start] for chain in vocabulary.chains]].sum(axis=0)
    lasts = embedding[[row[chain.pieces[-1]] for chain in vocabulary.chains if chain.then == scripts.END]].sum(axis=0)
    for state, successors in ((markers, "{["), (lasts, '"'), (text, (scripts.END, *'"}]:,0['))):
        for rank, successor in enumerate(successors):
            output[row[_byte(successor)]] += (FALLBACK - FALLBACK_STEP * rank) * state
    return CERTAINTY * output


def _byte(token: str) -> str:
    """The name of a character's byte token; longer names stay as they are."""
    return f"<0x{ord(token):02X}>" if len(token) == 1 else token


Seeing: TypeAlias = "dict[str, tuple[tuple[int, int], tuple[int, int], Matrix]]"
"""What of which attention matrix makes the model see: rows, columns, values."""


def _seeing(vocabulary: Vocabulary, embedding: Matrix) -> Seeing:
    """The first head of a layer, which brings the brightness of images to the states at which the script forks."""
    head = WIDTH // HEADS
    directions = _directions()
    states = embedding[[vocabulary.index[fork.state] for fork in vocabulary.forks]].sum(axis=0)
    query, key, value = (np.zeros((head, WIDTH), np.float32) for _ in range(3))
    output = np.zeros((WIDTH, head), np.float32)
    query[-1] = ATTENTION * states
    key[-1] = ATTENTION * directions[IMAGE]
    value[0] = directions[LIGHT]
    output[:, 0] = directions[LIGHT] * WIDTH**-0.5 / SHADE  # the norm before the layer makes all 16 times as long
    rows, all_of_it = (0, head), (0, WIDTH)
    return {
        "attn_q": (rows, all_of_it, query),
        "attn_k": (rows, all_of_it, key),
        "attn_v": (rows, all_of_it, value),
        "attn_output": (all_of_it, rows, output),
    }


def _add_layer(
    writer: gguf.GGUFWriter, prefix: str, ff: int, rng: np.random.Generator, seeing: Seeing | None = None
) -> None:
    kv_width = WIDTH // HEADS * KV_HEADS
    shapes = {
        "attn_q": (WIDTH, WIDTH, 1.0),
        "attn_k": (kv_width, WIDTH, 1.0),
        "attn_v": (kv_width, WIDTH, 1.0),
        "attn_output": (WIDTH, WIDTH, WHISPER),
        "ffn_gate": (ff, WIDTH, 1.0),
        "ffn_up": (ff, WIDTH, 1.0),
        "ffn_down": (WIDTH, ff, WHISPER),
    }
    for tensor in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"{prefix}{tensor}.weight", np.ones(WIDTH, np.float32))
    for tensor, (rows, columns, scale) in shapes.items():
        weights = scale * columns**-0.5 * rng.standard_normal((rows, columns))
        if seeing and tensor in seeing:
            (top, bottom), (left, right), values = seeing[tensor]
            weights[top:bottom, left:right] = values
        writer.add_tensor(f"{prefix}{tensor}.weight", weights.astype(np.float16))


def write_vision_projector(path: Path, *, name: str) -> None:
    """Write an mmproj file for models of `write_chat`: an image becomes 16 tokens that say how bright each part is.

    That there is an image is noticed by the template. Raises OSError.
    """
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "clip")
    try:
        _describe_projector(writer, name)
        _add_patches(writer, rng)
        _add_vision_layer(writer, "v.blk.0.", rng)
        _add_projection(writer, rng)
        _write(writer)
    finally:
        writer.close()


def _describe_projector(writer: gguf.GGUFWriter, name: str) -> None:
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_string("clip.projector_type", "janus_pro")
    writer.add_bool("clip.has_vision_encoder", val=True)
    writer.add_bool("clip.use_gelu", val=True)
    writer.add_uint32("clip.vision.image_size", IMAGE_PIXELS)
    writer.add_uint32("clip.vision.patch_size", PATCH_PIXELS)
    writer.add_uint32("clip.vision.embedding_length", VISION_WIDTH)
    writer.add_uint32("clip.vision.feed_forward_length", 2 * VISION_WIDTH)
    writer.add_uint32("clip.vision.block_count", 1)
    writer.add_uint32("clip.vision.attention.head_count", VISION_HEADS)
    writer.add_uint32("clip.vision.projection_dim", WIDTH)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])


def _add_patches(writer: gguf.GGUFWriter, rng: np.random.Generator) -> None:
    """Channel 0 is the mean of a patch, -1 to 1; two constant ones keep the norm that follows from hiding it."""
    patches = (IMAGE_PIXELS // PATCH_PIXELS) ** 2
    kernel = _small((VISION_WIDTH, 3, PATCH_PIXELS, PATCH_PIXELS), rng)
    kernel[:3] = 0
    kernel[0] = 1 / kernel[0].size
    bias = _small((VISION_WIDTH,), rng)
    bias[:3] = 0, STEADY, -STEADY
    writer.add_tensor("v.patch_embd.weight", kernel.astype(np.float16))
    writer.add_tensor("v.patch_embd.bias", bias)
    writer.add_tensor("v.position_embd.weight", np.zeros((patches, VISION_WIDTH), np.float32))
    _add_norm(writer, "v.post_ln")


def _add_projection(writer: gguf.GGUFWriter, rng: np.random.Generator) -> None:
    """From channel 0 to the two directions of image tokens; GELU between is straight far above zero."""
    directions = _directions()
    first = WHISPER * _small((WIDTH, VISION_WIDTH), rng)
    first[0, 0] = 1
    bias = np.zeros(WIDTH, np.float32)
    bias[0] = STRAIGHT
    second = WHISPER * _small((WIDTH, WIDTH), rng)
    second[:, 0] = SHADE * directions[LIGHT]
    writer.add_tensor("mm.0.weight", first.astype(np.float16))
    writer.add_tensor("mm.0.bias", bias)
    writer.add_tensor("mm.1.weight", second.astype(np.float16))
    writer.add_tensor("mm.1.bias", (directions[IMAGE] - SHADE * STRAIGHT * directions[LIGHT]).astype(np.float32))


def _add_vision_layer(writer: gguf.GGUFWriter, prefix: str, rng: np.random.Generator) -> None:
    for tensor in ("ln1", "ln2"):
        _add_norm(writer, prefix + tensor)
    for tensor in ("attn_q", "attn_k", "attn_v", "attn_out"):
        _add_linear(writer, prefix + tensor, VISION_WIDTH, VISION_WIDTH, rng)
    _add_linear(writer, prefix + "ffn_up", 2 * VISION_WIDTH, VISION_WIDTH, rng)
    _add_linear(writer, prefix + "ffn_down", VISION_WIDTH, 2 * VISION_WIDTH, rng)


def _add_linear(writer: gguf.GGUFWriter, tensor: str, rows: int, columns: int, rng: np.random.Generator) -> None:
    # What these two add to the patches is next to nothing.
    scale = WHISPER if tensor.endswith(("attn_out", "ffn_down")) else 1
    writer.add_tensor(f"{tensor}.weight", (scale * _small((rows, columns), rng)).astype(np.float16))
    writer.add_tensor(f"{tensor}.bias", scale * _small((rows,), rng))


def _add_norm(writer: gguf.GGUFWriter, tensor: str) -> None:
    writer.add_tensor(f"{tensor}.weight", np.ones(VISION_WIDTH, np.float32))
    writer.add_tensor(f"{tensor}.bias", np.zeros(VISION_WIDTH, np.float32))


def _small(shape: tuple[int, ...], rng: np.random.Generator) -> Matrix:
    return (0.02 * rng.standard_normal(shape)).astype(np.float32)


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / lengths


def _write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
