"""All that counts the tokens of prompts, put together."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from rolecall.core.history import HistoryPolicy
from rolecall.gateway.engine_context import EngineContexts
from rolecall.gateway.knowledge import ModelKnowledge
from rolecall.gateway.pictures import Pictures
from rolecall.gateway.prompt_costs import PromptCosts
from rolecall.gateway.shared_context import SharedContexts
from rolecall.gateway.token_count import EngineCounter
from rolecall.runtime.image_specs import ImageSpecs
from rolecall.runtime.token_memory import TokenMemory
from rolecall.settings import Settings


@dataclass(frozen=True, slots=True)
class Counting:
    """What requests ask about their length; ``policy`` is the history's of the settings."""

    policy: HistoryPolicy
    knowledge: ModelKnowledge
    costs: PromptCosts
    contexts: EngineContexts
    shared: SharedContexts

    @classmethod
    def of(cls, settings: Settings, memory: TokenMemory, pictures: Pictures, http: httpx.AsyncClient) -> Counting:
        """Return the parts, made for each other; ``http`` is the client for our own questions to engines."""
        knowledge, contexts = ModelKnowledge(memory, ImageSpecs()), EngineContexts(http)
        costs = PromptCosts(knowledge, pictures, EngineCounter(http))
        policy = HistoryPolicy.of_settings(settings.model_dump())
        return cls(policy, knowledge, costs, contexts, SharedContexts(contexts))
