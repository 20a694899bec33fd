"""What becomes known of a request on its way, for its line in the log."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.types import Scope

from rolecall.core.engine_errors import without_quotes
from rolecall.core.markers import Markers, Opening
from rolecall.core.sse import Answer
from rolecall.core.trace_context import TraceContext
from rolecall.core.transforms import RequestFacts
from rolecall.errors import RolecallError
from rolecall.gateway.header_text import header_text
from rolecall.gateway.recorder import RequestLine, timestamp
from rolecall.runtime.lease import Lease
from rolecall.runtime.markers import MarkersFile


class Account:
    """Gathers one request's line; ``answer`` is what its answer says of itself, ``lease`` the last one it was given.

    ``headers`` are those of the request, the last of each name. Prompts are kept only if asked for.
    """

    def __init__(
        self, scope: Scope, request_id: str, *, keeps_prompts: bool, markers: MarkersFile | None = None
    ) -> None:
        self.started_at = time.monotonic()
        self.answer = Answer(keeps_text=keeps_prompts)
        self.lease: Lease | None = None
        self.is_owed = False
        self.wanted_model: str | None = None
        self.trace: TraceContext | None = None
        self.headers: Mapping[bytes, bytes] = dict(scope["headers"])
        self.line = RequestLine.begun(
            timestamp(time.time()), request_id, scope["path"], _client(scope.get("client"), self.headers)
        )
        self._keeps_prompts = keeps_prompts
        self._markers_file = markers
        self._markers: Markers | None = None
        self.first_output_at: float | None = None

    def tokens(self, estimated_prompt: Callable[[Lease], float]) -> int:
        """Return the tokens of prompt and completion together: what the engine told, or else an estimate.

        An engine tells at the end, and a client can leave before.
        """
        prompt = self.answer.prompt_tokens
        if prompt is None:
            prompt = round(estimated_prompt(self.lease)) if self.is_owed and self.lease else 0
        return prompt + self.answer.tokens_written

    def note_trace(self, trace: TraceContext) -> None:
        """Take in which trace the request belongs to; its engine is told so."""
        self.trace, self.line.trace_id = trace, trace.trace_id

    def note_target(self, names: Sequence[str]) -> None:
        """Take in which models may serve it."""
        self.wanted_model = names[0] if len(names) == 1 else None

    def note_sent(self) -> None:
        """Take in that an engine has the request: from now on its prompt is owed."""
        self.is_owed = True

    def note_error(self, error: RolecallError, *, within_answer: bool) -> None:
        """Take in why it failed; ``within_answer`` says that the status is that of an answer that had begun."""
        self.line.error = error.summary(discreetly=not self._keeps_prompts)
        if not within_answer:
            self.line.status = error.status
            self.is_owed = False  # there was no answer

    def note_facts(self, facts: RequestFacts, body: Mapping[str, Any]) -> None:
        """Take in what was asked for."""
        line = self.line
        line.requested_model, line.stream = facts.model[:300], facts.stream
        line.messages, line.images = facts.messages, facts.images
        line.prompt_id = facts.prompt_id or header_text(self.headers, b"x-prompt-id")
        line.prompt_version = facts.prompt_version or header_text(self.headers, b"x-prompt-version")
        if line.prompt_id is not None and self._markers_file is not None:
            self._look_for(self._markers_file.markers)
        if self._keeps_prompts and (prompt := body.get("messages", body.get("prompt", body.get("input")))) is not None:
            line.prompt = prompt

    def _look_for(self, markers: Markers | None) -> None:
        if markers is not None:
            self._markers, self.answer.opening = markers, Opening(markers.chars)

    def note_lease(self, lease: Lease) -> None:
        """Take in who serves it, and how long it waited for that; the waits for a second engine are added."""
        line, self.lease = self.line, lease
        line.model, line.backend = lease.entry.name, lease.entry.backend
        line.queue_ms = round((line.queue_ms or 0) + lease.queue_ms, 3)
        line.load_ms = round((line.load_ms or 0) + lease.load_ms, 3)
        line.memory = lease.memory
        line.role_selector = lease.selection.reason if line.role else None

    def note_output(self) -> None:
        """Take in the moment at which the first content of a stream came."""
        if self.first_output_at is None and self.answer.has_output:
            self.first_output_at = time.monotonic()

    def close(self, profile: str, bytes_out: int) -> dict[str, Any]:
        """Return the line, now that the request is over."""
        line, answer, now = self.line, self.answer, time.monotonic()
        line.profile, line.bytes_out = profile, bytes_out
        if line.model is None and self.wanted_model is not None:
            line.wanted_model = self.wanted_model
        line.prompt_tokens, line.completion_tokens = answer.prompt_tokens, answer.completion_tokens
        line.reasoning_tokens, line.finish_reason = answer.reasoning_tokens, answer.finish_reason
        if answer.error and not line.error:
            line.error = f"upstream_error: {answer.error if self._keeps_prompts else without_quotes(answer.error)}"
        line.duration_ms = _ms(now - self.started_at)
        if self.first_output_at is not None:
            line.ttft_ms = _ms(self.first_output_at - self.started_at)
            writing_s = now - self.first_output_at
            if answer.completion_tokens and answer.completion_tokens > 1 and writing_s > 0:
                line.tokens_per_second = round((answer.completion_tokens - 1) / writing_s, 2)
        line.output_bytes = answer.seen[1] or None
        if self._markers is not None and answer.opening is not None:
            found = self._markers.found(answer.opening)
            if found is not None:
                line.markers = found
        if self._keeps_prompts:
            line.response = "".join(answer.text)
        return line.as_dict()


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _client(address: tuple[str, int] | None, headers: Mapping[bytes, bytes]) -> str:
    host = address[0] if address else "unknown"
    agent = header_text(headers, b"user-agent") or ""
    return f"{host} {agent[:100]}".strip()
