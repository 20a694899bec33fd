"""The architectures that llama.cpp knows, and how far their memory is known here (build 11434, `llama-arch.cpp`)."""

from __future__ import annotations

_NAMES = """
afmoe apertus arcee arctic arwkv7 baichuan bailingmoe bailingmoe2 bailingmoe3 bert bitnet bloom chameleon chatglm
clef codeshell cogvlm cohere2 cohere2moe command-r dbrx deci deepseek deepseek2 deepseek2-ocr deepseek32 deepseek4
dflash dots1 dots3note dream eagle3 ernie4_5 ernie4_5-moe eurobert exaone exaone-moe exaone4 falcon falcon-h1 gemma
gemma-embedding gemma2 gemma3 gemma3n gemma4 gemma4-assistant glm-dsa glm4 glm4moe glm5-next gpt-oss gpt2 gptj
gptneox granite granite_swa granitehybrid granitemoe graniteswitch grok grovemoe hrm_text hunyuan-dense hunyuan-moe
hunyuan_vl hy_v3 hy_v4 internlm2 jais jais2 jamba jina-bert-v2 jina-bert-v3 kimi-k3 kimi-linear laguna lfm2 lfm2moe
llada llada-moe llama llama-embed llama4 maincoder mamba mamba2 maple mellum mimo2 minicpm minicpm3 minimax-01
minimax-m2 minimax-m3 mistral3 mistral4 modern-bert mpt muse-glimmer nanbeige nemotron nemotron_h nemotron_h_moe
neo-bert nomic-bert nomic-bert-moe olmo olmo2 olmoe openelm orion paddleocr pangu-embedded phi2 phi3 phimoe plamo
plamo2 plamo3 plm pockettts qwen qwen2 qwen2moe qwen2vl qwen3 qwen35 qwen35moe qwen3moe qwen3next qwen3tts qwen3vl
qwen3vlmoe qwen4exp refact rnd1 rwkv6 rwkv6qwen2 rwkv7 seed_oss smallthinker smollm3 spark2_5 stablelm starcoder
starcoder2 step35 t5 t5encoder talkie wavtokenizer-dec xverse
"""
KNOWN = frozenset(_NAMES.split())

_OWN_CACHES = frozenset(
    {
        *("deepseek32", "deepseek4", "dots3note", "glm-dsa", "glm5-next", "hrm_text", "hy_v4", "kimi-k3", "minimax-m3"),
        *("graniteswitch", "qwen4exp"),
    }
)
"""Those with caches of their own kinds (`create_memory` in `llama-model.cpp`): indexes, compressed or looped ones."""
_ENCODED = frozenset({"t5", "t5encoder"})

NODES_PER_TOKEN = {
    **dict.fromkeys(("kimi-k3", "glm5-next"), 160),
    "hrm_text": 80,
    **dict.fromkeys(
        (
            *("qwen3next", "kimi-linear", "bailingmoe3", "qwen35", "qwen35moe", "clef", "qwen4exp", "deepseek4"),
            *("nanbeige", "minimax-01", "minimax-m3", "hy_v4"),
        ),
        40,
    ),
}
"""Where graphs have room for so many nodes a token, not for eight a tensor (`graph_max_nodes` in `llama-context`)."""


def caveat(name: str) -> str:
    """Return what of an architecture's memory is a guess; empty where all is known."""
    if name not in KNOWN:
        return f"the architecture {name[:40]!r} is not known here: counted as one with attention in every layer"
    if name in _OWN_CACHES:
        return f"{name} has a cache of its own kind: counted as if each layer cached its keys and values"
    if name in _ENCODED:
        return f"{name} has an encoder as well, whose part is not counted"
    return ""
