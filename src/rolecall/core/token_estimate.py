"""How many tokens a prompt has, estimated from its `TextSize`, and learnt from what engines say they counted.

The estimate is a weighted sum. The weights are those that fit best what was seen of a model lately, held to a prior
where little was seen: Bayesian linear regression with forgetting, as in Bishop, *Pattern Recognition and Machine
Learning* (2006), 3.3, with the errors relative to the size and no weight below 0, so that more text never counts less.
There are two priors, and the data decide between them: tokens of a few letters, and one token a byte (ByT5, EvaByte,
rolecall's demo models). What is kept of all observations is one matrix of moments: some kilobytes a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from rolecall.core.image_tokens import ImageSpec, image_tokens
from rolecall.core.regression import Fit, Moments, Prior, Vector, dot, number, numbers
from rolecall.core.text_size import TextSize, measure, measure_message, measure_text, measure_tools

__all__ = ["TextSize", "TokenModel", "measure", "measure_message", "measure_text", "measure_tools", "tokens_of_image"]

VERSION = 1
LEAST_TOKENS = 20
"""Errors of smaller prompts are taken as if they had so many tokens."""
OUTLIER = 0.3
"""A prompt that differs by more than this share, and by more than `OUTLIER_ERRORS` usual errors, is not believed."""
OUTLIER_ERRORS = 6.0
BELIEVES_ALL = 8
"""Until so many observations none is an outlier."""
NEW_WORLD = 5
"""So many outliers in a row that agree with each other are no outliers: the tokenizer or the template has changed."""
WINDOW = 9
"""Images that are remembered."""
LEAST_SHARE = 100
"""So many bytes are more than one token can hold: an engine that counts fewer tokens did not count the whole prompt."""

_PRIORS: tuple[tuple[str, float, float, float], ...] = (
    # what, tokens of it in subwords, how far that may be off, tokens of it in bytes
    ("lower", 0.06, 0.06, 1.0),
    ("upper", 0.17, 0.17, 1.0),
    ("digits", 0.9, 0.9, 1.0),
    ("spaces", 0.02, 0.05, 1.0),
    ("layout", 0.1, 0.3, 1.0),
    ("marks", 0.1, 0.1, 1.0),
    ("two_bytes", 0.25, 0.25, 2.0),
    ("three_bytes", 0.75, 0.75, 3.0),
    ("four_bytes", 2.2, 2.2, 4.0),
    ("words", 0.62, 0.62, 0.0),
    ("long_words", 0.17, 0.2, 0.0),
    ("mark_runs", 0.75, 0.75, 0.0),
    ("chunks", 0.12, 0.2, 0.0),
    ("layout_runs", 1.2, 1.2, 0.0),
    ("wide_runs", 0.6, 0.6, 0.0),
    ("reasoning", 0.1, 0.15, 0.3),
    ("messages", 4.0, 4.0, 4.0),
    ("tools", 5.0, 20.0, 5.0),
    ("has_tools", 60.0, 100.0, 60.0),
    ("always", 4.0, 6.0, 4.0),
)
"""The weights of subwords are about those that fit four vocabularies best (docs/tokens.md)."""
_BYTES_DEVIATION = 0.15
"""How far the weights of bytes may be off: there a byte is a token, and only the template is to be learnt."""
_TOGETHER = 0.5
"""How far all weights of subwords may be off together, as a share."""


def _priors() -> tuple[Prior, Prior]:
    means = [mean for _, mean, _, _ in _PRIORS]
    as_bytes = [tokens for _, _, _, tokens in _PRIORS]
    template = {"reasoning", "messages", "tools", "has_tools", "always"}
    narrow = [deviation if name in template else _BYTES_DEVIATION for name, _, deviation, _ in _PRIORS]
    return Prior(means, [deviation for _, _, deviation, _ in _PRIORS], _TOGETHER), Prior(as_bytes, narrow)


_BOTH = _priors()
_COUNT = len(_PRIORS)
_FIELDS = [name for name, *_ in _PRIORS[:-2]]


class TokenModel:
    """What is known of one model's tokens; it starts with what most models have in common.

    ``observations`` counts all that it was learnt from, ``revision`` rises with every change.
    """

    def __init__(self) -> None:
        self.observations = 0
        self.revision = 0
        self._moments = Moments(_COUNT)
        self._fits = [Fit(list(prior.mean)) for prior in _BOTH]
        self._best = 0
        self._outliers: list[float] = []
        self._per_image: list[float] = []
        self._image_factors: list[float] = []

    @property
    def error(self) -> float:
        """The relative error of a prediction that is to be expected."""
        return self._fits[self._best].error

    @property
    def tokens_per_image(self) -> float | None:
        """The tokens of an image, learnt where no formula is known; rather a few too many. None before the first."""
        return _upper(self._per_image) if self._per_image else None

    @property
    def image_factor(self) -> float:
        """What the formula for images is to be multiplied by; 1 unless answers agree that it is wrong."""
        factor = median(self._image_factors) if len(self._image_factors) >= 3 else 1.0
        return factor if abs(factor - 1) > 0.03 else 1.0

    def predict(self, size: TextSize, *, image_tokens: float = 0.0) -> float:
        """Return the tokens of a whole prompt; ``image_tokens`` are those of its images by their formulas.

        Never negative, and never less for more text.
        """
        return self._predict_text(size) + image_tokens * self.image_factor

    def predict_part(self, size: TextSize) -> float:
        """Return what a part of a prompt adds to it: a message, a text, the tools."""
        return max(0.0, self._predict_text(size) - self._fits[self._best].weights[-1])

    def learn(self, size: TextSize, tokens: int, *, image_tokens: float = 0.0, unknown_images: int = 0) -> None:
        """Learn from a prompt that an engine has counted.

        ``image_tokens`` are those of the images with a formula, ``unknown_images`` the number of the others. A count
        that cannot be of this text, or is far from all that was seen, changes nothing.
        """
        if not size.text_bytes / LEAST_SHARE < tokens <= _most_possible(size, image_tokens, unknown_images):
            return
        if unknown_images:
            self._learn_unknown(size, tokens, image_tokens, unknown_images)
            return
        if image_tokens > 0.5 * tokens and self.observations >= BELIEVES_ALL:
            factor = max(0.0, tokens - self._predict_text(size)) / image_tokens
            self._image_factors = [*self._image_factors, factor][-WINDOW:]
            self.revision += 1
        rest = tokens - image_tokens * self.image_factor
        if rest > 0 and not self._is_outlier(size, rest, tokens):
            self._moments.add(_features(size), rest, max(tokens, LEAST_TOKENS))
            self.observations += 1
            self.revision += 1
            self._fit()

    def to_json(self) -> dict[str, Any]:
        """Return everything that was learnt as plain values."""
        return {
            "version": VERSION,
            "observations": self.observations,
            "best": self._best,
            "fits": [[fit.error, *fit.weights] for fit in self._fits],
            "moments": self._moments.to_json(),
            "per_image": self._per_image,
            "image_factors": self._image_factors,
        }

    @classmethod
    def from_json(cls, data: Any) -> TokenModel:
        """Return the model that `to_json` described; raises ``ValueError`` for anything else."""
        model = cls()
        try:
            if data["version"] != VERSION:
                raise ValueError(f"its version is {data['version']!r:.80}, known is {VERSION}")
            model.observations = int(number(data["observations"]))
            model._best = int(number(data["best"])) % 2
            model._fits = [_read_fit(row) for row in data["fits"]]
            model._moments = Moments.from_json(data["moments"], _COUNT)
            model._per_image = numbers(data["per_image"][-WINDOW:])
            model._image_factors = numbers(data["image_factors"][-WINDOW:])
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"{type(error).__name__}: {error!s:.200}") from None
        if len(model._fits) != len(_BOTH):
            raise ValueError(f"it has weights for {len(model._fits)} priors")
        return model

    def _predict_text(self, size: TextSize) -> float:
        return dot(_features(size), self._fits[self._best].weights)

    def _is_outlier(self, size: TextSize, rest: float, tokens: int) -> bool:
        """Whether a count is to be ignored; after some outliers that agree with each other, all is learnt anew."""
        expected = max(self._predict_text(size), 1.0)
        off = abs(rest - expected) / max(tokens, expected, LEAST_TOKENS)
        if self.observations < BELIEVES_ALL or off <= max(OUTLIER, OUTLIER_ERRORS * self.error):
            self._outliers = []
            return False
        self._outliers = [*self._outliers, rest / expected][-NEW_WORLD:]
        if len(self._outliers) < NEW_WORLD or max(self._outliers) > 1.25 * min(self._outliers):
            return True
        self._outliers, self._moments, self.observations = [], Moments(_COUNT), 0
        return False

    def _learn_unknown(self, size: TextSize, tokens: int, known: float, unknown: int) -> None:
        """Learn from what text and other images leave of a prompt; nothing of its text, which would hide in it."""
        each = (tokens - self._predict_text(size) - known * self.image_factor) / unknown
        if each > 0:
            self._per_image = [*self._per_image, each][-WINDOW:]
            self.revision += 1

    def _fit(self) -> None:
        """Find the best weights under each prior; the one that explains more is believed."""
        self._fits = [self._moments.fit(prior, fit) for prior, fit in zip(_BOTH, self._fits, strict=True)]
        self._best = min(range(len(_BOTH)), key=lambda index: self._fits[index].misfit)


def tokens_of_image(model: TokenModel, spec: ImageSpec | None, fixed: int | None, width: int, height: int) -> float:
    """Return the tokens of one image: as the registry says (``fixed``), by formula, as learnt, or a cautious guess."""
    if fixed is not None:
        return fixed
    if spec is None and model.tokens_per_image is not None:
        return model.tokens_per_image
    return image_tokens(spec, width, height)


def _read_fit(row: Any) -> Fit:
    error, *weights = numbers(row, 1 + _COUNT)
    return Fit(weights, error)


def _features(size: TextSize) -> Vector:
    return [*(float(getattr(size, name)) for name in _FIELDS), float(size.tools > 0), 1.0]


def _most_possible(size: TextSize, known: float, unknown: int) -> float:
    """More tokens than this no prompt of that size can have: with three a byte, and long texts of a template."""
    return 3 * (size.text_bytes + size.reasoning) + 5000 + 500 * size.messages + 4 * known + 20_000 * unknown


def _upper(values: Sequence[float]) -> float:
    return sorted(values)[-1 - len(values) // 4]
