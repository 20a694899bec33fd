"""What a model must be able to do for each endpoint."""

from __future__ import annotations

import pytest

from rolecall.core import endpoints
from rolecall.core.endpoints import needs_of
from rolecall.core.models import CAPABILITIES


@pytest.mark.parametrize(
    ("endpoint", "needs"),
    [
        ("/v1/chat/completions", {"text"}),
        ("/v1/completions", {"text"}),
        ("/v1/responses", {"text"}),
        ("/v1/messages", {"text"}),
        ("/v1/messages/count_tokens", {"text"}),
        ("/v1/embeddings", {"embedding"}),
        ("/v1/rerank", {"rerank"}),
        ("/v1/score", {"rerank"}),
        ("/v1/audio/transcriptions", {"audio"}),
        ("/v1/audio/translations", {"audio"}),
        ("/v1/audio/speech", {"audio"}),
        ("/tokenize", set()),
        ("/detokenize", set()),
        ("/somewhere/else", set()),
    ],
)
def test_what_each_endpoint_needs(endpoint: str, needs: set[str]) -> None:
    """An endpoint asks for one capability; any model can tokenize, and of other addresses nothing is known."""
    assert needs_of(endpoint) == needs


def test_needs_are_capabilities_of_the_registry() -> None:
    """Each need is a word that an entry can list."""
    named = [value for name, value in vars(endpoints).items() if name.isupper() and isinstance(value, str)]
    assert set().union(*map(needs_of, named)) <= set(CAPABILITIES)
