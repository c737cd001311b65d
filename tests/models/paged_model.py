"""A decoder driven the way an engine drives it: sequences on shuffled pages, padded buckets, donated pools full of NaN.

Whatever a program reads that it does not own, or leaves unwritten, shows as NaN in the logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from triptych.models.decoder import extend
from triptych.models.kv import kv_groups
from triptych.models.ragged import Ragged
from triptych.models.weights.load import LoadedDecoder

PAGE_SIZE = 4
WIDTH = 12


@dataclass
class PagedSequence:
    """The pages of one sequence, and how many tokens are in them."""

    pages: np.ndarray
    length: int = 0


Row = tuple[PagedSequence | None, Sequence[int]]

# What stands in for the one decode row of a bucket when nobody decodes.
NOBODY: Row = (None, (0,))


@dataclass(frozen=True)
class Bucket:
    """The static sizes of one compiled step."""

    tokens: int
    rows: int
    decode_rows: int
    max_q_len: int


@dataclass
class PagedModel:
    """A loaded decoder with pools for a few sequences of WIDTH pages."""

    loaded: LoadedDecoder
    rng: np.random.Generator
    sequences: int = 3
    _programs: dict[Bucket, jax.stages.Compiled] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (group,) = kv_groups(self.loaded.config, str(self.loaded.structure.dtype))
        num_pages = 1 + self.sequences * WIDTH
        pools = self.loaded.structure.allocate_pools(group, num_pages, PAGE_SIZE)
        self.pools = jax.tree.map(lambda pool: jnp.full_like(pool, jnp.nan, device=pool.sharding), pools)
        self._free = list(self.rng.permutation(np.arange(1, num_pages)))

    def new_sequence(self) -> PagedSequence:
        pages = np.array([self._free.pop() for _ in range(WIDTH)])
        return PagedSequence(pages)

    def step(self, bucket: Bucket, rows: Sequence[Row]) -> list[np.ndarray]:
        """Extend sequences by tokens in one step; logits [tokens, vocab] of each row.

        Decode rows come first. A row on NOBODY is padding, and its logits are of no meaning.
        """
        batch = self._batch(bucket, rows)
        logits, self.pools = self._program(bucket, batch)(self.loaded.params, self.pools, batch)
        starts = np.asarray(batch.cu_q_lens)
        for sequence, tokens in rows:
            if sequence is not None:
                sequence.length += len(tokens)
        # Copied: on CPU the numpy view would be of a buffer that the next step may reuse.
        return [np.array(logits[starts[row] : starts[row] + len(tokens)]) for row, (_, tokens) in enumerate(rows)]

    def _batch(self, bucket: Bucket, rows: Sequence[Row]) -> Ragged:
        tokens, positions, write = (np.zeros(bucket.tokens, np.int32) for _ in range(3))
        kv_lens, table = np.zeros(bucket.rows, np.int32), np.zeros((bucket.rows, WIDTH), np.int32)
        cu_q_lens = np.zeros(bucket.rows + 1, np.int32)
        at = 0
        for row, (sequence, new) in enumerate(rows):
            if sequence is None:
                at += len(new)
                cu_q_lens[row + 1] = at
                continue
            for token in new:
                position = sequence.length + at - cu_q_lens[row]
                tokens[at], positions[at] = token, position
                write[at] = sequence.pages[position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE
                at += 1
            cu_q_lens[row + 1] = at
            kv_lens[row], table[row] = sequence.length + len(new), sequence.pages
        cu_q_lens[len(rows) + 1 :] = at
        arrays: tuple[Any, ...] = (tokens, positions, write, kv_lens, table, cu_q_lens)
        return Ragged(*arrays, decode_rows=bucket.decode_rows, max_q_len=bucket.max_q_len)

    def _program(self, bucket: Bucket, batch: Ragged) -> jax.stages.Compiled:
        if bucket not in self._programs:

            def program(params, pools, batch):
                decoder = self.loaded.merge(params)
                hidden, pools = extend(decoder, pools, batch)
                return decoder.head(hidden), pools

            placed = jax.tree.map(lambda pool: pool.sharding, self.pools)
            jitted = jax.jit(program, donate_argnums=1, out_shardings=(self.loaded.rules.replicated(), placed))
            self._programs[bucket] = jitted.lower(self.loaded.params, self.pools, batch).compile()
        return self._programs[bucket]
