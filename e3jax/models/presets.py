"""Model shapes by name: every number is that of a published config.json, or chosen here (tiny, tiny-wide, small).

One block serves three families by switches: Qwen3 (QK-norm), Qwen2.5 and DeepSeek-R1-Distill-Qwen (QKV bias),
Llama-3.2 and SmolLM2 (neither). checkpoint/hf_config.py reads any other config.json of these families.

    config = preset("qwen3-1.7b")
"""

import dataclasses

from e3jax.models.rope import Llama3, Scaling


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of one model; brackets name the field of config.json."""

    vocab_size: int  # V [vocab_size]
    width: int  # D [hidden_size]
    layers: int  # L [num_hidden_layers]
    heads: int  # N [num_attention_heads]
    kv_heads: int  # K [num_key_value_heads]
    head_width: int  # H [head_dim]
    mlp_width: int  # F [intermediate_size]
    rope_theta: float  # [rope_theta]
    rope_scaling: Scaling  # [rope_scaling]
    norm_epsilon: float  # [rms_norm_eps]
    tied: bool  # [tie_word_embeddings]
    max_length: int  # longest sequence, in tokens [max_position_embeddings]
    qk_norm: bool  # RMSNorm of every query and key head: Qwen3
    qkv_bias: bool  # biases of the q, k and v projections: Qwen2.5

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")
        if self.head_width % 2:
            raise ValueError(f"head_width={self.head_width} is odd: RoPE rotates pairs")


def num_params(c: ModelConfig) -> int:
    """Return the number of parameters; embeddings count once when they are tied."""
    heads = c.heads + 2 * c.kv_heads
    block = block_weights(c) + 2 * c.width + c.qk_norm * 2 * c.head_width + c.qkv_bias * heads * c.head_width
    return c.layers * block + c.width + c.vocab_size * c.width * (1 if c.tied else 2)


def flops_per_token(c: ModelConfig, context: float) -> float:
    """Return the FLOPs of one token's forward pass: 2 per weight in a matmul, and 4·L·N·H per position it attends to.

    `context` is the mean number of positions attended: (T + 1) / 2 in a causal sequence of T tokens. Norms, RoPE,
    softmax and the embedding lookup are left out, as usual. A training step takes 3 times this (6 N of Kaplan et al.
    2020, App. B of PaLM), and 4 times with full recomputation.

    >>> round(flops_per_token(preset("qwen3-1.7b"), context=8192) / 1e9, 2)
    5.32
    """
    weights = c.layers * block_weights(c) + c.vocab_size * c.width
    return 2 * weights + 4 * c.layers * c.heads * c.head_width * context


def block_weights(c: ModelConfig) -> int:
    """Return the number of weights in the seven matrices of one block."""
    return c.width * c.head_width * (2 * c.heads + 2 * c.kv_heads) + 3 * c.width * c.mlp_width


def preset(name: str) -> ModelConfig:
    """Return the config of a preset; ValueError for an unknown name lists the known ones."""
    known = presets()
    if name not in known:
        raise ValueError(f"model preset {name!r} is unknown; known: {', '.join(known)}")
    return known[name]


def presets() -> dict[str, ModelConfig]:
    """Return all presets by name."""
    return {
        # Countdown on a laptop: 3 layers learn propose-and-check in minutes (LOG.md, 2026-11-21)
        "tiny": ModelConfig(
            vocab_size=210,
            width=64,
            layers=3,
            heads=2,
            kv_heads=1,
            head_width=32,
            mlp_width=192,
            rope_theta=1e4,
            rope_scaling=None,
            norm_epsilon=1e-6,
            tied=True,
            max_length=2048,
            qk_norm=True,
            qkv_bias=False,
        ),
        # twice as wide (configs/experiments/ablate_size.py): our choice, .6M parameters
        "tiny-wide": ModelConfig(
            vocab_size=210,
            width=128,
            layers=3,
            heads=4,
            kv_heads=2,
            head_width=32,
            mlp_width=384,
            rope_theta=1e4,
            rope_scaling=None,
            norm_epsilon=1e-6,
            tied=True,
            max_length=2048,
            qk_norm=True,
            qkv_bias=False,
        ),
        # for Countdown on one GPU (configs/experiments/common.py): our choice, 4.8M parameters
        "small": ModelConfig(
            vocab_size=210,
            width=256,
            layers=6,
            heads=4,
            kv_heads=2,
            head_width=64,
            mlp_width=768,
            rope_theta=1e4,
            rope_scaling=None,
            norm_epsilon=1e-6,
            tied=True,
            max_length=2048,
            qk_norm=True,
            qkv_bias=False,
        ),
        # hub: Qwen/Qwen3-…, config.json
        "qwen3-0.6b": qwen3(width=1024, layers=28, heads=16, mlp_width=3072, tied=True),
        "qwen3-1.7b": qwen3(width=2048, layers=28, heads=16, mlp_width=6144, tied=True),
        "qwen3-4b": qwen3(width=2560, layers=36, heads=32, mlp_width=9728, tied=True),
        "qwen3-8b": qwen3(width=4096, layers=36, heads=32, mlp_width=12_288, tied=False),
        "qwen3-14b": qwen3(width=5120, layers=40, heads=40, mlp_width=17_408, tied=False),
        "qwen3-32b": qwen3(width=5120, layers=64, heads=64, mlp_width=25_600, tied=False),
        # hub: Qwen/Qwen2.5-…, Qwen/Qwen2.5-Math-…, deepseek-ai/DeepSeek-R1-Distill-Qwen-…, config.json
        "qwen2.5-1.5b": qwen2_1_5b(rope_theta=1e6, tied=True, max_length=131_072),
        "qwen2.5-7b": qwen2_7b(rope_theta=1e6, max_length=131_072),
        "qwen2.5-math-1.5b": qwen2_1_5b(rope_theta=1e4, tied=True, max_length=4096),
        "qwen2.5-math-7b": qwen2_7b(rope_theta=1e4, max_length=4096),
        # the same with positions for long reasoning, as OXA trains them (docs/algorithms.md, OXA)
        "qwen2.5-math-1.5b-long": qwen2_1_5b(rope_theta=1e6, tied=True, max_length=40_000),
        "qwen2.5-math-7b-long": qwen2_7b(rope_theta=1e6, max_length=40_000),
        "deepseek-r1-distill-qwen-1.5b": qwen2_1_5b(rope_theta=1e4, tied=False, max_length=131_072),
        "deepseek-r1-distill-qwen-7b": qwen2_7b(rope_theta=1e4, max_length=131_072),
        # hub: meta-llama/Llama-3.2-…, config.json
        "llama-3.2-1b": llama_3_2(width=2048, layers=16, heads=32, head_width=64),
        "llama-3.2-3b": llama_3_2(width=3072, layers=28, heads=24, head_width=128),
        # hub: HuggingFaceTB/SmolLM2-…-Instruct, config.json; Llama's block
        "smollm2-135m": smollm2(width=576, layers=30, heads=9, kv_heads=3, mlp_width=1536, rope_theta=1e5),
        "smollm2-360m": smollm2(width=960, layers=32, heads=15, kv_heads=5, mlp_width=2560, rope_theta=1e5),
        "smollm2-1.7b": smollm2(width=2048, layers=24, heads=32, kv_heads=32, mlp_width=8192, rope_theta=1.3e5),
    }


def qwen3(**shape) -> ModelConfig:
    """Return a dense Qwen3: what all sizes share, and this one's shape."""
    return ModelConfig(
        vocab_size=151_936,
        kv_heads=8,
        head_width=128,
        rope_theta=1e6,
        rope_scaling=None,
        norm_epsilon=1e-6,
        max_length=40_960,
        qk_norm=True,
        qkv_bias=False,
        **shape,
    )


def qwen2_1_5b(**other) -> ModelConfig:
    """Return the 1.5B shape of Qwen2.5, with what its variants differ in."""
    return ModelConfig(
        vocab_size=151_936,
        width=1536,
        layers=28,
        heads=12,
        kv_heads=2,
        head_width=128,
        mlp_width=8960,
        rope_scaling=None,
        norm_epsilon=1e-6,
        qk_norm=False,
        qkv_bias=True,
        **other,
    )


def qwen2_7b(**other) -> ModelConfig:
    """Return the 7B shape of Qwen2.5, with what its variants differ in."""
    return ModelConfig(
        vocab_size=152_064,
        width=3584,
        layers=28,
        heads=28,
        kv_heads=4,
        head_width=128,
        mlp_width=18_944,
        rope_scaling=None,
        norm_epsilon=1e-6,
        tied=False,
        qk_norm=False,
        qkv_bias=True,
        **other,
    )


def llama_3_2(**shape) -> ModelConfig:
    """Return a small Llama-3.2: what both sizes share, and this one's shape."""
    return ModelConfig(
        vocab_size=128_256,
        kv_heads=8,
        mlp_width=8192,
        rope_theta=5e5,
        norm_epsilon=1e-5,
        tied=True,
        rope_scaling=Llama3(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=8192),
        max_length=131_072,
        qk_norm=False,
        qkv_bias=False,
        **shape,
    )


def smollm2(**shape) -> ModelConfig:
    """Return a SmolLM2: what all sizes share, and this one's shape."""
    return ModelConfig(
        vocab_size=49_152,
        head_width=64,
        rope_scaling=None,
        norm_epsilon=1e-5,
        tied=True,
        max_length=8192,
        qk_norm=False,
        qkv_bias=False,
        **shape,
    )
