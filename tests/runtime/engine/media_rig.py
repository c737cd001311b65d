"""Engines with media pools for tests, and what they must compute: the dense forward pass with rows of the embedding replaced."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.runtime.engine import oracle
from tests.runtime.engine.driver import PAGE, toy_config
from tests.runtime.engine.toy_encoder import HIDDEN, ToyEncoder
from triptych.runtime.core.instance import Role
from triptych.runtime.engine.buckets import Buckets, ExtendShape
from triptych.runtime.engine.encode_engine import EncodeEngine
from triptych.runtime.engine.engine import Engine
from triptych.runtime.engine.media_pool import EmbeddingPool
from triptych.runtime.engine.media_stage import MediaStage
from triptych.runtime.engine.shelf import MediaShelf, Pixels
from triptych.runtime.instance.plan import Embedded, Encode
from triptych.runtime.transfer.layer_groups import cut_layers

MEDIA_PAGES = 12
PATCHES = 24
ALL = frozenset(Role)
# Decode-only, mixed and prefill-only programs.
SMALL = Buckets((ExtendShape(4, 0, 16), ExtendShape(4, 16, 16), ExtendShape(0, 6, 16)), draws=(4,))


def media_stage(
    tp: int, encodes: bool = True, *, hidden: int = HIDDEN, injections: tuple[tuple[int, int], ...] = ((0, 0),)
) -> MediaStage:
    rules = oracle.toy(tp).rules
    pool = EmbeddingPool.of(rules, hidden, "float32", PAGE, MEDIA_PAGES, injections)
    if not encodes:
        return MediaStage(pool)
    return MediaStage(pool, ToyEncoder(rules.mesh, hidden), MediaShelf(1 << 20), PATCHES)


def media_engine(
    tp: int = 1, roles: frozenset[Role] = ALL, layers: int = oracle.TOY.num_layers, **stage: Any
) -> Engine:
    """The toy decoder with a media pool and, if it has the role, the toy encoder; `stage` is for `media_stage`. Prompts are computed `layers`
    layers at a time."""
    loaded, encodes = oracle.toy(tp), Role.ENCODE in roles
    config = toy_config(
        buckets=SMALL,
        roles=roles,
        media_pages=MEDIA_PAGES,
        encode_patches=PATCHES if encodes else 0,
        layer_groups=cut_layers(oracle.TOY.num_layers, layers),
    )
    engine = Engine(config, loaded, loaded.rules.mesh, media_stage(tp, encodes, **stage))
    engine.compile()
    return engine


def encode_engine(tp: int = 1) -> EncodeEngine:
    config = toy_config(
        num_pages=1, buckets=SMALL, roles=frozenset({Role.ENCODE}), media_pages=MEDIA_PAGES, encode_patches=PATCHES
    )
    engine = EncodeEngine(config, oracle.toy(tp).rules.mesh, media_stage(tp))
    engine.compile()
    return engine


def bring(stage: MediaStage, name: str, item: Pixels) -> None:
    """Put an item's pixels on the shelf."""
    assert stage.shelf is not None
    stage.shelf.reserve(item.nbytes)
    stage.shelf.put(name, item)


def encode(name: str, item: Pixels, pages: tuple[int, ...]) -> Encode:
    return Encode(name, len(item.patches), len(item.patches), pages)


def stored(stage: MediaStage) -> np.ndarray:
    """The pool as embeddings, [pages, page_size, hidden]."""
    heads = stage.pool.group.num_kv_heads
    halves = [np.asarray(half)[:, :, :heads].reshape(*half.shape[:2], -1) for half in stage.pools[0]]
    return np.concatenate(halves, axis=2)


def fill(stage: MediaStage, pages: tuple[int, ...], rows: np.ndarray) -> None:
    """Put embeddings into pages, as a pull would."""
    slots = np.concatenate([np.arange(page * PAGE, page * PAGE + PAGE) for page in pages])[: len(rows)]
    write = jax.jit(stage.pool.write, out_shardings=jax.tree.map(lambda half: half.sharding, stage.pools))
    stage.pools = write(stage.pools, jnp.asarray(rows), jnp.asarray(slots, jnp.int32))


def runs(start: int, count: int, items: Mapping[int, tuple[int, tuple[int, ...]]]) -> tuple[Embedded, ...]:
    """The spans of a chunk [start, start + count) of a prompt; items are by offset: (embeddings, pages)."""
    found = []
    for offset, (size, pages) in sorted(items.items()):
        first, end = max(offset, start), min(offset + size, start + count)
        if first < end:
            found.append(Embedded(first - start, end - first, first - offset, pages))
    return tuple(found)


@cache
def _forward():
    loaded = oracle.toy()

    def run(params, tokens, rows, is_media):
        decoder = loaded.merge(params)
        x = jnp.where(is_media[:, None], rows, decoder.embed(tokens))
        return oracle.forward(decoder, x, jnp.arange(tokens.shape[0]))

    return jax.jit(run)


def logits_of(tokens: list[int], media: Mapping[int, np.ndarray]) -> np.ndarray:
    """[len(tokens), vocab] by dense attention, with the embeddings of `media` from each of its offsets on."""
    padded, rows = np.zeros(oracle.LONGEST, np.int32), np.zeros((oracle.LONGEST, HIDDEN), np.float32)
    is_media = np.zeros(oracle.LONGEST, bool)
    padded[: len(tokens)] = tokens
    for offset, embedded in media.items():
        rows[offset : offset + len(embedded)] = embedded
        is_media[offset : offset + len(embedded)] = True
    return np.asarray(_forward()(oracle.toy().params, padded, rows, is_media))[: len(tokens)]


def greedy(prompt: list[int], media: Mapping[int, np.ndarray], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits_of(tokens, media)[-1].argmax()))
    return tokens[len(prompt) :]
