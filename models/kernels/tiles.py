"""Which queries the programs of an attention kernel take: tiles of equally many queries, none of them over two rows."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


@partial(
    jax.tree_util.register_dataclass, data_fields=("starts", "lengths", "rows", "numbers"), meta_fields=("queries",)
)
@dataclass(frozen=True)
class Tiles:
    """The tiles of a segment of a step.

    starts    first token of each row, in the segment
    lengths   queries of each row
    rows      row of each tile
    numbers   number of each tile in its row: it begins at query number * queries. A tile behind its row's last query is empty
    queries   most queries of a tile
    """

    starts: Int[Array, "rows"]
    lengths: Int[Array, "rows"]
    rows: Int[Array, "tiles"]
    numbers: Int[Array, "tiles"]
    queries: int


def decode_tiles(tokens: Int[Array, "rows"]) -> Tiles:
    """One tile a row, of one query. Row i's token is token i, which is what `tokens` says: numbers counted up inside a program would be made anew for each layer."""
    return Tiles(tokens, jnp.ones_like(tokens), tokens, jnp.zeros_like(tokens), 1)


def ragged_tiles(starts: Int[Array, "rows_plus_1"], tokens: int, queries: int) -> Tiles:
    """Tiles of at most `queries` queries over rows that lie one after another in `tokens` slots, the last row being first.

    A row's last tile sees most, so it begins first and the short ones fill up at the end. There are as many tiles as any
    rows of so many tokens need; the rest are empty.
    """
    rows = starts.shape[0] - 1
    lengths = starts[1:] - starts[:-1]
    counts = -(-lengths // queries)
    ends = jnp.cumsum(counts)
    tile = jnp.arange(-(-tokens // queries) + rows - 1, -1, -1, dtype=jnp.int32)
    row = jnp.minimum((tile[:, None] >= ends[None, :]).sum(axis=1), rows - 1).astype(jnp.int32)
    return Tiles(starts[:-1], lengths, row, (tile - (ends - counts)[row]).astype(jnp.int32), queries)
