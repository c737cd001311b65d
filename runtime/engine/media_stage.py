"""The media side of an engine: the pool of what was encoded, and the encode programs where there is an encoder.

An encode step packs its items into one bucket and writes what comes out to their pages, in one call:

    (encoder's params, media pool, bucket, slot of each output row) -> (media pool, rows written)

The pool is donated. The number of rows written is what a step waits for: the pool itself belongs to the next program.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from triptych.models.structure import Pools
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.engine.buckets import PlanError, smallest
from triptych.runtime.engine.compiling import Executable, Key, Program
from triptych.runtime.engine.encoder import MediaEncoder
from triptych.runtime.engine.media_pool import MediaPool
from triptych.runtime.engine.shelf import MediaShelf, Pixels
from triptych.runtime.instance.plan import Encode


class MediaStage:
    """Used by the engine that owns it, on its thread.

    Args:
        pool: geometry of the pool.
        encoder: None on an instance that only takes embeddings.
        shelf: where the pixels of planned items are.
        encode_patches: slots of the largest bucket; 0 without an encoder.

    Attributes:
        pools: keys and values of each layer (see `media_pool`); whoever moves pages takes it and puts the result back.
    """

    def __init__(
        self,
        pool: MediaPool,
        encoder: MediaEncoder | None = None,
        shelf: MediaShelf | None = None,
        encode_patches: int = 0,
    ):
        if encoder is not None and encoder.group(pool.dtype) != pool.group:
            raise ConfigError(f"the encoder gives {encoder.group(pool.dtype)}, the pool holds {pool.group}")
        self.pool = pool
        self.encoder = encoder
        self.shelf = shelf
        self.pools: Pools = ()
        self._compiled: dict[Key, Executable] = {}
        self._sizes: tuple[int, ...] = ()
        if encoder is not None:
            self._sizes = encoder.sizes(encode_patches)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Slots of the encode programs, ascending; none without an encoder."""
        return self._sizes

    # ---- life ----------------------------------------------------------------------------------------------------------------------

    def programs(self) -> list[Program]:
        """Everything to compile, the largest first."""
        structs = self.pool.structs
        shardings = jax.tree.map(lambda struct: struct.sharding, structs)

        def allocate() -> Any:
            return jax.tree.map(lambda struct: jnp.zeros(struct.shape, struct.dtype), structs)

        encoder = self.encoder
        encodes = [] if encoder is None else [self._encode_program(encoder, size) for size in reversed(self._sizes)]
        return [*encodes, Program(("media",), allocate, (), shardings)]

    def add(self, compiled: dict[Key, Executable]) -> None:
        """Take in what `compile_programs` made of `programs`."""
        self._compiled = compiled

    def rebuild(self) -> None:
        """An empty pool."""
        self.pools = ()
        self.pools = jax.block_until_ready(self._compiled["media",]())

    def run_each_once(self) -> None:
        """Run every encode program on padding, so that no request pays for its first call."""
        if self.encoder is not None:
            for size in self._sizes:
                self._run(self.encoder, size, self.encoder.empty(size), self._nowhere(self.encoder.rows(size)))
        jax.block_until_ready(self.pools)

    # ---- steps ---------------------------------------------------------------------------------------------------------------------

    def encode(self, encodes: tuple[Encode, ...]) -> jax.Array:
        """Start encoding items into their pages; returns what is ready when they are.

        Raises PlanError for what cannot be encoded here, or was not brought.
        """
        encoder, items = self._encoder(), [self._pixels(item) for item in encodes]
        size = smallest(self._sizes, sum(encoder.slots(pixels.grid) for pixels in items), "slots of an encode program")
        packed, counts = encoder.pack(items, size)
        target, at = self._nowhere(encoder.rows(size)), 0
        for item, count in zip(encodes, counts, strict=True):
            if count != item.tokens:
                raise PlanError(f"item {item.hash} has {count} embeddings, the plan expects {item.tokens}")
            target[at : at + count] = self._slots(item)
            at += count
        return self._run(encoder, size, packed, target)

    def _run(self, encoder: MediaEncoder, size: int, packed: Any, target: np.ndarray) -> jax.Array:
        self.pools, done = self._compiled["encode", size](encoder.params, self.pools, packed, target)
        return done

    def _encoder(self) -> MediaEncoder:
        if self.encoder is None:
            raise PlanError("the plan encodes; this instance has no encoder")
        return self.encoder

    def _pixels(self, item: Encode) -> Pixels:
        pixels = None if self.shelf is None else self.shelf.get(item.hash)
        if pixels is None:
            raise PlanError(f"the plan encodes item {item.hash}, whose pixels are not here")
        return pixels

    def _slots(self, item: Encode) -> np.ndarray:
        """The pool's slot of each of an item's embeddings."""
        size = self.pool.page_size
        if len(item.pages) * size < item.tokens or not all(0 < page < self.pool.num_pages for page in item.pages):
            raise PlanError(
                f"item {item.hash}: {item.tokens} embeddings in pages {item.pages}; the pool has {self.pool.num_pages} of {size}"
            )
        index = np.arange(item.tokens)
        return np.asarray(item.pages, np.int32)[index // size] * size + index % size

    def _nowhere(self, rows: int) -> np.ndarray:
        return np.full(rows, self.pool.slots, np.int32)

    def _encode_program(self, encoder: MediaEncoder, size: int) -> Program:
        pool, small = self.pool, self.pool.rules.replicated()

        def run(params: tuple[jax.Array, ...], pools: Pools, packed: Any, target: jax.Array) -> tuple[Pools, jax.Array]:
            written = pool.write(pools, encoder.apply(params, packed), target)
            return written, jnp.sum(target < pool.slots, dtype=jnp.int32)

        def struct(array: np.ndarray) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=small)

        packed = jax.tree.map(struct, encoder.empty(size))
        target = jax.ShapeDtypeStruct((encoder.rows(size),), np.int32, sharding=small)
        shardings = jax.tree.map(lambda half: half.sharding, pool.structs)
        return Program(
            ("encode", size), run, (encoder.abstract, pool.structs, packed, target), (shardings, small), donated=(1,)
        )
