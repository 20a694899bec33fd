"""One answer on its way to the client: thoughts in the form that was chosen, errors in the form that it knows."""

from __future__ import annotations

from typing import Any

import orjson

from rolecall.core.endpoints import CHAT, RESPONSES
from rolecall.core.engine_errors import Asked, read_event
from rolecall.core.error_shapes import event_message
from rolecall.core.models import ModelEntry, ReasoningField, dashed, flag_value
from rolecall.core.reasoning import ReasoningStream, shape_answer
from rolecall.core.responses import ResponsesEvents


def reasoning_form(setting: ReasoningField, entry: ModelEntry, *, thinks: bool = False) -> ReasoningField:
    """Return how the thoughts of an entry's answers are to be given: as its own field says, else as the setting does.

    ``thinks`` says that its template knows thoughts. Of a model that does not think, everything passes as it is.
    """
    if entry.reasoning_field is not None:
        return entry.reasoning_field
    return setting if thinks or "reasoning" in entry.all_capabilities else "as_is"


def starts_in_thought(entry: ModelEntry, *, template_opens: bool) -> bool:
    """Return whether an answer's content begins within a thought: the template opens one, the engine leaves it there.

    llama.cpp tells thoughts by itself unless ``--reasoning-format none`` says otherwise, vLLM only with a
    ``--reasoning-parser``. Content of such an engine is answer, even if no thought came before it.
    """
    argv = [dashed(word) for word in entry.backend_config.extra_args]
    if entry.backend == "llama_cpp":
        return template_opens and flag_value(argv, "--reasoning-format") == "none"
    if entry.backend == "vllm":
        return template_opens and flag_value(argv, "--reasoning-parser") is None
    return template_opens


class AnswerShape:
    """Shapes one answer, whole or streamed; a ``core.sse.Rewriter``.

    ``starts_in_thought`` says that the model's template opens a thought which the engine leaves in the content,
    ``backend`` whose engine it is: of Responses llama.cpp's events lack fields.
    """

    def __init__(
        self,
        asked: Asked,
        form: ReasoningField = "as_is",
        *,
        starts_in_thought: bool = False,
        backend: str = "",
    ) -> None:
        self._asked = asked
        self._events = ResponsesEvents(asked.model) if asked.endpoint == RESPONSES and backend == "llama_cpp" else None
        self._form: ReasoningField = form if asked.endpoint == CHAT else "as_is"
        self._starts_in_thought = starts_in_thought
        self._thoughts = ReasoningStream(form, starts_in_thought=starts_in_thought) if self._form != "as_is" else None

    @property
    def changes_whole(self) -> bool:
        """Whether anything may change in a whole answer."""
        return self._form != "as_is"

    def rewrite(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return what the client gets in place of a message of the stream; the same object if that is what came."""
        if message.get("error") or message.get("type") == "error":
            return event_message(self._asked.endpoint, read_event(message, self._asked))
        if self._events is not None:
            return self._events.rewrite(message)
        return message if self._thoughts is None else self._thoughts.rewrite(message)

    def flush(self) -> dict[str, Any] | None:
        """Return what of a stream was held back, as a message; None if nothing was."""
        return None if self._thoughts is None else self._thoughts.flush()

    @property
    def is_steady(self) -> bool:
        """Whether the next message, if it is like the last one but for its text, is shaped like that, too."""
        return self._events is None and (self._thoughts is None or self._thoughts.is_steady)

    def whole(self, said: Any) -> Any:
        """Return a whole answer (parsed) for the client; the same object if it is to pass as it came."""
        if not self.changes_whole or not isinstance(said, dict):
            return said
        return shape_answer(said, self._form, starts_in_thought=self._starts_in_thought)

    def whole_bytes(self, body: bytes, said: Any) -> bytes:
        """Return a whole answer for the client, byte for byte as it came unless something in it changes."""
        shaped = self.whole(said)
        return body if shaped is said else orjson.dumps(shaped)
