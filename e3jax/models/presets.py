"""Model shapes by name; every number is the published config.json's, or measured here (tiny).

config = preset("qwen3-1.7b")
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of one Qwen3 model (config.json's field in brackets)."""

    vocab_size: int  # V [vocab_size]
    width: int  # D [hidden_size]
    layers: int  # L [num_hidden_layers]
    heads: int  # N [num_attention_heads]
    kv_heads: int  # K [num_key_value_heads]
    head_width: int  # H [head_dim]
    mlp_width: int  # F [intermediate_size]
    rope_theta: float  # [rope_theta]
    norm_epsilon: float  # [rms_norm_eps]
    tied: bool  # [tie_word_embeddings]
    max_length: int  # longest sequence, in tokens [max_position_embeddings]

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")
        if self.head_width % 2:
            raise ValueError(f"head_width={self.head_width} is odd: RoPE rotates pairs")


def num_params(c: ModelConfig) -> int:
    """Parameters, embeddings counted once when tied."""
    attention = c.width * c.head_width * (2 * c.heads + 2 * c.kv_heads) + 2 * c.head_width
    block = attention + 3 * c.width * c.mlp_width + 2 * c.width
    return c.layers * block + c.width + c.vocab_size * c.width * (1 if c.tied else 2)


def preset(name: str) -> ModelConfig:
    """Config by name; an unknown name lists the known ones."""
    known = presets()
    if name not in known:
        raise ValueError(f"model preset {name!r} is unknown; known: {', '.join(known)}")
    return known[name]


def presets() -> dict[str, ModelConfig]:
    """All presets by name."""
    return {
        # Countdown on a laptop: 3 layers learn propose-and-check in minutes (LOG.md)
        "tiny": ModelConfig(
            vocab_size=210, width=64, layers=3, heads=2, kv_heads=1, head_width=32, mlp_width=192,
            rope_theta=1e4, norm_epsilon=1e-6, tied=True, max_length=2048,
        ),
        # hub: Qwen/Qwen3-0.6B and Qwen/Qwen3-1.7B, config.json
        "qwen3-0.6b": ModelConfig(
            vocab_size=151_936, width=1024, layers=28, heads=16, kv_heads=8, head_width=128, mlp_width=3072,
            rope_theta=1e6, norm_epsilon=1e-6, tied=True, max_length=40_960,
        ),
        "qwen3-1.7b": ModelConfig(
            vocab_size=151_936, width=2048, layers=28, heads=16, kv_heads=8, head_width=128, mlp_width=6144,
            rope_theta=1e6, norm_epsilon=1e-6, tied=True, max_length=40_960,
        ),
    }  # fmt: skip
