"""What must come out, computed another way: a dense forward pass without pages, and a sampler in numpy that sorts."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from triptych.models.attend import KV, PlainOps
from triptych.models.config import PRESETS, ModelConfig
from triptych.models.decoder import Decoder
from triptych.models.weights.dummy import DummySource
from triptych.models.weights.load import LoadedDecoder, load_decoder
from triptych.runtime.core.sampling import SamplingParams
from triptych.sharding.mesh import make_mesh

LONGEST = 64
TOY: ModelConfig = PRESETS["toy"]

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


@cache
def toy(tp: int = 1) -> LoadedDecoder:
    """The toy preset with random weights on the first `tp` devices."""
    return load_decoder(TOY, DummySource(TOY, seed=3), make_mesh(jax.devices()[:tp], tp), "float32")


def forward(
    decoder: Decoder,
    x: jax.Array,
    positions: jax.Array,
    into: Callable[[int, jax.Array], jax.Array] = lambda layer, x: x,
    kept: Callable[[jax.Array], jax.Array] = lambda entries: entries,
) -> jax.Array:
    """[tokens, vocab] from embeddings [tokens, hidden]: the decoder with dense attention; traced. `into` may change a layer's input.

    `kept` is what is left of keys or values [tokens, heads, head_dim] once they are in the cache.
    """

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, kv: KV, window: int | None):
        k, v, group = kept(k), kept(v), q.shape[1] // k.shape[1]
        k, v = jnp.repeat(k, group, axis=1), jnp.repeat(v, group, axis=1)
        scores = jnp.einsum("qhd,khd->hqk", q, k) * TOY.head_dim**-0.5
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[1:], bool)), scores, -1e30)
        return jnp.einsum("hqk,khd->qhd", jax.nn.softmax(scores, axis=-1), v), kv

    by, unused, ops = decoder.rotation(positions), jnp.zeros(()), PlainOps(attend, decoder.rules)
    for number, layer in enumerate(decoder.layers):
        stream, _ = layer(layer.begin(into(number, x), ops), by, (unused, unused), ops)
        x = decoder.whole(stream)
    return decoder.head(decoder.norm(x))


@cache
def _forward():
    loaded = toy()

    def run(params, tokens, positions):
        decoder = loaded.merge(params)
        return forward(decoder, decoder.embed(tokens), positions)

    return jax.jit(run)


def logits_of(tokens: list[int], first_position: int = 0) -> np.ndarray:
    """[len(tokens), vocab]: what follows each token, by dense attention over the whole sequence."""
    padded = np.zeros(LONGEST, np.int32)
    padded[: len(tokens)] = tokens
    return np.asarray(_forward()(toy().params, padded, first_position + np.arange(LONGEST)))[: len(tokens)]


def greedy(prompt: list[int], count: int, first_position: int = 0) -> list[int]:
    """The next `count` greedy tokens."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits_of(tokens, first_position)[-1].argmax()))
    return tokens[len(prompt) :]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def penalise(
    logits: np.ndarray, params: SamplingParams, prompt: list[int], outputs: list[int], forbidden: tuple[int, ...]
) -> np.ndarray:
    """One row through penalties, bias and forbidden ids."""
    out = logits.astype(np.float64).copy()
    for token in set(prompt) | set(outputs):
        out[token] = (
            out[token] / params.repetition_penalty if out[token] > 0 else out[token] * params.repetition_penalty
        )
    for token in set(outputs):
        out[token] -= params.frequency_penalty * outputs.count(token) + params.presence_penalty
    for token, bias in params.logit_bias:
        out[token] += bias
    for token in forbidden:
        out[token] = -np.inf
    return out


def kept(scaled: np.ndarray, params: SamplingParams) -> np.ndarray:
    """Which tokens of one row the filters leave, by sorting; equal logits together."""
    keep = np.isfinite(scaled)
    if params.min_p > 0:
        keep &= scaled >= scaled.max() + np.log(params.min_p)
    if 0 < params.top_k < len(scaled):
        keep &= scaled >= np.sort(np.where(keep, scaled, -np.inf))[-params.top_k]
    if params.top_p < 1:
        weights = np.where(keep, np.exp(scaled - scaled.max()), 0.0)
        order = np.argsort(-np.where(keep, scaled, -np.inf), kind="stable")
        mass = np.cumsum(weights[order]) / weights.sum()
        last = int(np.searchsorted(mass, params.top_p * (1 - 1e-12)))
        keep &= scaled >= scaled[order[min(last, len(order) - 1)]]
    return keep


def threefry(key: tuple[int, int], high: np.ndarray, low: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Threefry-2x32-20 with Python's and numpy's integers."""
    schedule = [np.uint64(key[0]), np.uint64(key[1]), np.uint64(key[0] ^ key[1] ^ 0x1BD11BDA)]
    mask = np.uint64(0xFFFFFFFF)
    x, y = (high.astype(np.uint64) + schedule[0]) & mask, (low.astype(np.uint64) + schedule[1]) & mask
    for group in range(5):
        for distance in ROTATIONS[group % 2]:
            x = (x + y) & mask
            y = ((y << np.uint64(distance)) | (y >> np.uint64(32 - distance))) & mask
            y = y ^ x
        x = (x + schedule[(group + 1) % 3]) & mask
        y = (y + schedule[(group + 2) % 3] + np.uint64(group + 1)) & mask
    return x, y


def gumbel(seed: int, sample: int, position: int, vocab: int) -> np.ndarray:
    """The noise of one draw in float64."""
    key = (seed >> 32, seed & 0xFFFFFFFF)
    for word in (sample, position, 1):
        high, low = threefry(key, np.zeros(1), np.full(1, word))
        key = (int(high[0]), int(low[0]))
    pairs = np.arange((vocab + 1) // 2)
    bits = np.stack(threefry(key, np.zeros_like(pairs), pairs), axis=-1).reshape(-1)[:vocab]
    return -np.log(-np.log1p(-(bits + 0.5) / 2.0**32))


def draw(
    logits: np.ndarray,
    params: SamplingParams,
    *,
    prompt: list[int],
    outputs: list[int],
    position: int,
    sample: int = 0,
    forbidden: tuple[int, ...] = (),
) -> int:
    """The token that a row must draw."""
    changed = penalise(logits, params, prompt, outputs, forbidden)
    if params.greedy:
        return int(changed.argmax())
    scaled = (changed - changed.max()) / params.temperature
    noisy = np.where(kept(scaled, params), scaled, -np.inf) + gumbel(params.seed, sample, position, len(logits))
    return int(noisy.argmax())
