"""The endpoints that answer requests, and what a model must be able to do for each."""

from __future__ import annotations

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
COUNT_TOKENS = "/v1/messages/count_tokens"
RERANK = "/v1/rerank"
SCORE = "/v1/score"
TRANSCRIPTIONS = "/v1/audio/transcriptions"
TRANSLATIONS = "/v1/audio/translations"
SPEECH = "/v1/audio/speech"
TOKENIZE = "/tokenize"
DETOKENIZE = "/detokenize"

WRITING = (CHAT, COMPLETIONS, RESPONSES, MESSAGES, COUNT_TOKENS)
UPLOADS = frozenset({TRANSCRIPTIONS, TRANSLATIONS})
"""The endpoints that take files, as ``multipart/form-data``."""
HEARING = (TRANSCRIPTIONS, TRANSLATIONS, SPEECH)
RANKING = (RERANK, SCORE)

_NEEDS = {
    **dict.fromkeys(WRITING, frozenset({"text"})),
    **dict.fromkeys(HEARING, frozenset({"audio"})),
    **dict.fromkeys(RANKING, frozenset({"rerank"})),
    EMBEDDINGS: frozenset({"embedding"}),
}
PROMPT_FIELDS = {
    CHAT: "messages",
    MESSAGES: "messages",
    COUNT_TOKENS: "messages",
    RESPONSES: "input",
    EMBEDDINGS: "input",
    SPEECH: "input",
    COMPLETIONS: "prompt",
    RERANK: "documents",
}
"""The field of a body that holds what the model reads."""
_NOTHING: frozenset[str] = frozenset()


def needs_of(endpoint: str) -> frozenset[str]:
    """Return the capabilities that a model must have to answer there; none for what any model can do (tokenizing)."""
    return _NEEDS.get(endpoint, _NOTHING)
