"""The two KV groups of a Whisper decoder: what it said, which grows, and what it hears, which does not. No JAX."""

from triptych.models.kv import DTYPE_BYTES, KVGroup
from triptych.models.speech.config import WhisperConfig


def whisper_kv_groups(config: WhisperConfig, dtype: str) -> tuple[KVGroup, KVGroup]:
    """Self-attention over the text, then cross-attention over the encoder's states of one window.

    Both caches are kept in `dtype` ("float32", "bfloat16" or "float16"). Every sequence of the cross group has exactly
    `length` entries, written once, before the first token.
    """
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"KV dtype {dtype!r} is unknown; known: {', '.join(DTYPE_BYTES)}")
    layers = tuple(range(config.decoder_layers))
    heads, head_dim = config.num_kv_heads, config.head_dim
    return (
        KVGroup("self", "full", layers, heads, head_dim, dtype),
        KVGroup("cross", "cross", layers, heads, head_dim, dtype, length=config.audio_positions),
    )
