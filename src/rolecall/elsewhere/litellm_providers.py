"""Where LiteLLM sends a model by the prefix of its name, for those that speak OpenAI's API.

Addresses and variables are those of its `get_llm_provider_logic.py`, read in November 2026. What is not listed speaks
another API, which LiteLLM translates and rolecall does not.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Provider:
    """``base_url`` where the file names none, ``key`` is the variable of its key; ``backend`` is rolecall's."""

    base_url: str | None = None
    key: str | None = None
    backend: str = "openai"


_OWN = Provider()

PROVIDERS: dict[str, Provider] = {
    "openai": Provider("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "text-completion-openai": Provider("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "custom_openai": _OWN,
    "openai_like": _OWN,
    "aiohttp_openai": _OWN,
    "hosted_vllm": Provider(key="HOSTED_VLLM_API_KEY"),
    "lm_studio": Provider(key="LM_STUDIO_API_KEY"),
    "llamafile": Provider("http://127.0.0.1:8080/v1", "LLAMAFILE_API_KEY"),
    "litellm_proxy": Provider(key="LITELLM_PROXY_API_KEY"),
    "xinference": Provider("http://127.0.0.1:9997/v1", "XINFERENCE_API_KEY"),
    "infinity": _OWN,
    "ollama": Provider(backend="ollama"),
    "ollama_chat": Provider(backend="ollama"),
    "openrouter": Provider("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "groq": Provider("https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "mistral": Provider("https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    "deepseek": Provider("https://api.deepseek.com/beta", "DEEPSEEK_API_KEY"),
    "together_ai": Provider("https://api.together.xyz/v1", "TOGETHERAI_API_KEY"),
    "fireworks_ai": Provider("https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY"),
    "deepinfra": Provider("https://api.deepinfra.com/v1/openai", "DEEPINFRA_API_KEY"),
    "cerebras": Provider("https://api.cerebras.ai/v1", "CEREBRAS_API_KEY"),
    "nvidia_nim": Provider("https://integrate.api.nvidia.com/v1", "NVIDIA_NIM_API_KEY"),
    "sambanova": Provider("https://api.sambanova.ai/v1", "SAMBANOVA_API_KEY"),
    "perplexity": Provider("https://api.perplexity.ai", "PERPLEXITYAI_API_KEY"),
    "xai": Provider("https://api.x.ai/v1", "XAI_API_KEY"),
}

OTHER_APIS = frozenset(
    [
        "anthropic",
        "azure",
        "azure_ai",
        "bedrock",
        "vertex_ai",
        "vertex_ai_beta",
        "gemini",
        "cohere",
        "cohere_chat",
        "sagemaker",
        "sagemaker_chat",
        "huggingface",
        "replicate",
        "databricks",
        "watsonx",
        "watsonx_text",
        "palm",
        "ai21",
        "nlp_cloud",
        "petals",
        "predibase",
        "triton",
        "vllm",
        "baseten",
        "cloudflare",
        "voyage",
        "jina_ai",
        "snowflake",
        "github_copilot",
    ]
)
"""Prefixes whose API rolecall does not speak; ``vllm`` is a model inside of LiteLLM's own process."""


def provider_of(model: str, custom: str | None, *, has_base: bool) -> tuple[str, str, Provider | None]:
    """Return the provider's name, the model without its prefix, and what is known of the provider.

    ``custom`` is ``custom_llm_provider``; a model without a prefix is OpenAI's, or of the server that is named.
    """
    prefix, slash, rest = model.partition("/")
    if custom:
        return custom, rest if slash and prefix == custom else model, PROVIDERS.get(custom)
    if slash and prefix in PROVIDERS:
        return prefix, rest, PROVIDERS[prefix]
    if slash and (prefix in OTHER_APIS or not has_base):
        return prefix, rest, None
    if model.startswith(("claude", "gemini", "command-")) and not has_base:
        return {"cl": "anthropic", "ge": "gemini", "co": "cohere"}[model[:2]], model, None
    return "openai", model, PROVIDERS["openai"]
