"""Names of models that were found: ``qwen3-vl-8b-instruct_(Q4_K_M)``, made of what their files are called."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence

LONGEST = 120

_LABEL = re.compile(
    r"(?:^|[-_.])((?:UD-)?(?:I?Q\d(?:_K)?(?:_(?:XXS|XS|S|M|L|XL|NL|\d))*|TQ\d_\d|Q\d|BF16|F16|F32|FP16|FP32|FP8"
    r"|MXFP4(?:_MOE)?|NVFP4))(?=$|[-_.])",
    re.IGNORECASE,
)
_PART = re.compile(r"-(\d{5})-of-(\d{5})$", re.ASCII)
_BITS = re.compile(r"(?:UD-)?(?:I?Q|TQ|BF|FP|F|MXFP|NVFP)(\d{1,2})", re.ASCII | re.IGNORECASE)
_PROJECTOR = re.compile(r"(?:^|[-_.])mm-?proj(?:ector)?(?=$|[-_.])", re.IGNORECASE)
_MARK = re.compile(r"(?:^|[-_.])(?:mm-?proj(?:ector)?|projector|clip|vision)(?=$|[-_.])", re.IGNORECASE)
"""What is no part of the name of a projector's model, in a file that is known to be one."""
_PRECISIONS = ("F16", "BF16", "Q8_0", "F32")
"""Of projectors, the best first: F16 runs everywhere and loses nothing that counts, F32 takes twice the memory."""
_QUANTIZED = re.compile(
    r"(?:[-_.](?:fp8|awq|gptq|mxfp4|nvfp4|int[48]|w\da\d+|bnb|[48]bit|dynamic|static|block|marlin|quantized|marlin"
    r"|compressed|autoround|auto|round|128g|g128|sym))+$"
)
_SIZE = re.compile(r"(?<![a-z0-9.])(?:(\d{1,3})x)?(\d{1,4}(?:\.\d{1,3})?)([bm])(?![a-z0-9])")


def split_part(stem: str) -> tuple[str, int, int] | None:
    """Return the name, the number and the count of a part of a split GGUF; None for a whole one."""
    found = _PART.search(stem)
    return (stem[: found.start()], int(found[1]), int(found[2])) if found else None


def part_names(name: str) -> list[str]:
    """Return the names of all parts of a file that is the first (``x-00001-of-00003.gguf``), of any other its own."""
    stem, ending = name.rpartition(".")[::2]
    part = split_part(stem)
    if part is None or part[1] != 1:
        return [name]
    base, _, count = part
    return [f"{base}-{number:05}-of-{count:05}.{ending}" for number in range(1, max(count, 1) + 1)]


def split_label(stem: str) -> tuple[str, str | None]:
    """Return a file's name without the name of its quantization, and that in capitals; None where it has none."""
    found = None
    for found in _LABEL.finditer(stem):  # noqa: B007 - the last one counts
        pass
    if found is None:
        return stem, None
    return (stem[: found.start()] + stem[found.end() :]).strip("-_."), found[1].upper()


def label_bits(label: str) -> int:
    """Return the bits per weight that the name of a quantization states; 0 for a name that states none."""
    found = _BITS.match(label)
    return int(found[1]) if found else 0


def bare_name(text: str) -> str:
    """Return a name in lower case, of letters, digits and ``.-_+``, without what says only how it is packed.

    Letters with accents lose them; those that are none of the Latin ones go.
    """
    letters = (letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    plain = re.sub(r"[^a-z0-9.+_-]+", "-", "".join(letters).lower())
    plain = re.sub(r"[-_.]?(?:i1-)?gguf$", "", plain)
    return re.sub(r"-{2,}", "-", plain).strip("-_.")[:LONGEST]


def is_projector_name(stem: str) -> bool:
    """Whether a file is a vision projector by its name: ``mmproj-F16``, ``gemma-3-4b-it-mmproj``."""
    return _PROJECTOR.search(stem) is not None


def without_mark(stem: str) -> str:
    """Return a projector's name without the word that says what it is; ``vision`` may be its model's own."""
    return (_PROJECTOR if is_projector_name(stem) else _MARK).sub("", stem)


def projector_rank(precision: str | None) -> int:
    """Return the place of a projector's precision among those that its model may have, 0 for the best."""
    return _PRECISIONS.index(precision) if precision in _PRECISIONS else len(_PRECISIONS)


def is_named_after(one: str, other: str) -> bool:
    """Whether of two bare names one begins the other: ``gemma-3-4b-it`` and ``gemma-3-4b-it-qat``, in any order.

    ``qwen2-vl-2b`` and ``qwen2-vl-7b`` are two models.
    """
    shorter, longer = sorted((one, other), key=len)
    return longer == shorter or longer.startswith((f"{shorter}-", f"{shorter}.", f"{shorter}_"))


def unquantized_name(name: str) -> str:
    """Return a bare name without a quantization at its end: ``-fp8``, ``-gptq-int4``, ``-quantized.w4a16``."""
    return _QUANTIZED.sub("", name) or name


def full_name(bare: str, quantization: str | None, owner: str | None = None) -> str:
    """Return the name under which a model is known; ``owner`` is added to tell it from another one."""
    base = f"{bare}-{owner}" if owner else bare
    return f"{base}_({quantization.upper()})" if quantization else base


def size_b(name: str) -> float | None:
    """Return the billions of parameters that a name states: ``8x7b``, ``0.6B``, ``270m``; the first counts."""
    found = _SIZE.search(name.lower())
    if found is None:
        return None
    return int(found[1] or 1) * float(found[2]) / (1 if found[3] == "b" else 1000)


def names(bare: str, quantization: str | None, owners: Sequence[str]) -> Iterator[str]:
    """Yield the names that a model may have, the best first; the last of ``owners`` should be unique to it."""
    yield full_name(bare, quantization)
    for owner in owners:
        yield full_name(bare, quantization, bare_name(owner))


def free_name(bare: str, quantization: str | None, owners: Sequence[str], taken: Collection[str]) -> str:
    """Return the first of a model's names that is not taken; a number is added if all are."""
    candidates = list(names(bare, quantization, owners))
    for name in candidates:
        if name not in taken:
            return name
    number = 2
    while (name := full_name(bare, quantization, str(number))) in taken:
        number += 1
    return name
