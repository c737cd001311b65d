"""Transcription in one process: the reference loop that a served pipeline must agree with, token by token.

Encoder and decoder are each one compiled program a window: log-mel and encoder; then cross-attention keys and values,
the prompt, and greedy decoding in a loop on the device, over dense caches. It shares the modules with the served programs
and nothing of their paging or batching.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from triptych.models.attend import KV, Attend
from triptych.models.speech.decoder import CrossAttend, WhisperDecoder, cross_kv
from triptych.models.speech.encoder import WhisperEncoder
from triptych.models.speech.load import LoadedWhisper
from triptych.models.speech.mel import log_mel
from triptych.models.speech.tokens import SpeechTokens, Task
from triptych.models.speech.windows import split_windows
from triptych.models.text.tokenizer import Tokenizer

__all__ = ["Transcriber", "decode_greedily", "dense_attend", "dense_cross_attend", "dense_extend", "encode"]


def encode(encoder: WhisperEncoder, samples: Float[Array, "samples"]) -> Float[Array, "positions hidden"]:
    """The encoder's states of one window of 16 kHz audio, padded with silence."""
    config = encoder.config
    return encoder(log_mel(samples, config.num_mels, config.frames)[None])[0]


def dense_attend(start: Int[Array, ""], scale: float) -> Attend:
    """`Attend` for one row whose cache is [max_position, kv_heads, head_dim]; the step's tokens stand at `start` on."""

    def attend(q: Array, k: Array, v: Array, kv: KV, window: int | None) -> tuple[Array, KV]:
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(cache, new.astype(cache.dtype), start, 0)
            for cache, new in zip(kv, (k, v), strict=True)
        )
        seen = jnp.arange(keys.shape[0])[None, :] <= start + jnp.arange(q.shape[0])[:, None]
        out = jax.nn.dot_product_attention(q[None], keys[None], values[None], mask=seen[None, None], scale=scale)
        return out[0], (keys, values)

    return attend


def dense_cross_attend(scale: float) -> CrossAttend:
    """`CrossAttend` for one row whose entries are [entries, kv_heads, head_dim]."""

    def attend(q: Array, kv: KV) -> Array:
        return jax.nn.dot_product_attention(q[None], kv[0][None], kv[1][None], scale=scale)[0]

    return attend


def dense_extend(
    decoder: WhisperDecoder, caches: tuple[KV, ...], heard: tuple[KV, ...], tokens: Int[Array, "tokens"], start: Array
) -> tuple[Float[Array, "tokens hidden"], tuple[KV, ...]]:
    """One row's tokens at positions `start` on, over dense caches; `heard` are the window's cross-attention entries."""
    scale = decoder.config.head_dim**-0.5
    attend, cross_attend = dense_attend(start, scale), dense_cross_attend(scale)
    x, written = decoder.embed(tokens, start + jnp.arange(tokens.shape[0])), []
    for layer, kv, cross in zip(decoder.layers, caches, heard, strict=True):
        x, kv = layer(x, kv, attend, cross, cross_attend)
        written.append(kv)
    return decoder.norm(x), tuple(written)


def dense_caches(decoder: WhisperDecoder) -> tuple[KV, ...]:
    """Empty self-attention caches of one row."""
    projections = decoder.layers[0].attention
    heads = projections.o.weight.shape[1] // projections.head_dim
    shape, dtype = (decoder.config.max_position, heads, projections.head_dim), projections.o.weight.dtype
    return tuple((jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in decoder.layers)


def decode_greedily(
    decoder: WhisperDecoder,
    states: Float[Array, "positions hidden"],
    prompt: Int[Array, "prompt"],
    never: Float[Array, "vocab"],
    never_first: Float[Array, "vocab"],
    end: int,
    max_tokens: int,
) -> tuple[Int[Array, "max_tokens"], Int[Array, ""]]:
    """The likeliest token after token, until `end` or `max_tokens`: the tokens, and how many there are without the end.

    `never` and `never_first` are added to the logits of all tokens and of the first one: 0, or -inf where suppressed.
    """
    heard = cross_kv(decoder, states)
    hidden, caches = dense_extend(decoder, dense_caches(decoder), heard, prompt, jnp.zeros((), jnp.int32))

    def best(hidden: Array, bias: Array) -> Array:
        return jnp.argmax(decoder.head(hidden[-1:])[0] + bias).astype(jnp.int32)

    def goes_on(carry: tuple[Array, Array, Array, tuple[KV, ...]]) -> Array:
        count, token = carry[:2]
        return (token != end) & (count < max_tokens)

    def step(carry: tuple[Array, Array, Array, tuple[KV, ...]]) -> tuple[Array, Array, Array, tuple[KV, ...]]:
        count, token, said, caches = carry
        hidden, caches = dense_extend(decoder, caches, heard, token[None], prompt.shape[0] + count)
        return count + 1, best(hidden, never), said.at[count].set(token), caches

    first = best(hidden, never + never_first)
    begin = (jnp.zeros((), jnp.int32), first, jnp.zeros((max_tokens,), jnp.int32), caches)
    count, _, said, _ = jax.lax.while_loop(goes_on, step, begin)
    return said, count


@dataclass(frozen=True)
class Transcriber:
    """A loaded model and its compiled programs, on one device.

    A transcript has at most half as many tokens a window as the decoder has positions, as in the paper's own decoder.
    """

    encoder: LoadedWhisper[WhisperEncoder]
    decoder: LoadedWhisper[WhisperDecoder]
    tokens: SpeechTokens
    tokenizer: Tokenizer

    @property
    def max_tokens(self) -> int:
        return self.decoder.config.max_position // 2

    def window(self, samples: np.ndarray, language: str | None = None, task: Task = "transcribe") -> list[int]:
        """Token ids of one window of float32 audio at 16 kHz, without prompt and end.

        Raises ValueError if it is empty or longer than a window, UnknownLanguageError as `SpeechTokens.prompt` does.
        """
        prompt = self.tokens.prompt(language, task)
        config = self.encoder.config
        if not 0 < samples.size <= config.samples:
            raise ValueError(f"a window holds 1 to {config.samples} samples, got {samples.size}")
        # Padded here, so that audio of every length runs the same program.
        padded = np.zeros(config.samples, np.float32)
        padded[: samples.size] = samples
        states = _encode(self.encoder.structure, self.encoder.params, padded)
        said, count = _decode(
            self.decoder.structure,
            self.decoder.params,
            states,
            np.asarray(prompt, np.int32),
            _bias(self.tokens.suppressed, config.vocab_size),
            _bias(self.tokens.suppressed_first, config.vocab_size),
            self.tokens.end,
            self.max_tokens,
        )
        return np.asarray(said)[: int(count)].tolist()

    def text(self, samples: np.ndarray, language: str | None = None, task: Task = "transcribe") -> str:
        """The transcript of audio of any length, window by window (`windows.py`), without timestamps."""
        parts = split_windows(samples, self.encoder.config.samples)
        said = (self.tokenizer.decode(self.window(part, language, task)).strip() for part in parts)
        return " ".join(text for text in said if text)


@partial(jax.jit, static_argnums=0)
def _encode(structure, params, samples):
    return encode(structure.merge(params), samples)


@partial(jax.jit, static_argnums=(0, 6, 7))
def _decode(structure, params, states, prompt, never, never_first, end, max_tokens):
    return decode_greedily(structure.merge(params), states, prompt, never, never_first, end, max_tokens)


def _bias(tokens: tuple[int, ...], vocab_size: int) -> np.ndarray:
    bias = np.zeros(vocab_size, np.float32)
    bias[list(tokens)] = -np.inf
    return bias
