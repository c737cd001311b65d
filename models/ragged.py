"""The metadata of one ragged step: which token stands where, in which page it is written, and what each row may read.

A step has T token slots and N rows (a row is one sequence's share of the step). Rows come in two segments: the first
`decode_rows` rows have exactly one token each, token i belonging to row i; the rest lie one after another behind them
as `cu_q_lens` says. Both counts and `max_q_len` are static, so one compiled program serves every batch of its bucket.

Page 0 is the null page that no sequence owns: padding tokens write there, and unused table entries point there. A
padding row has kv_len 0; token slots from cu_q_lens[-1] on are padding. In a step with ragged rows a decode row that is
padding keeps its token slot: cu_q_lens[i] is i for every i up to `decode_rows`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("tokens", "positions", "write_index", "kv_lens", "page_indices", "cu_q_lens"),
    meta_fields=("decode_rows", "max_q_len", "fresh", "last_only"),
)
@dataclass(frozen=True)
class Ragged:
    """One step's batch.

    tokens        token id of each slot
    positions     rotary position of each slot; never derived from a KV length. With M-RoPE there may be three: [3, tokens]
    write_index   where the slot's keys and values go: page * page_size + offset
    kv_lens       KV length of each row after this step's tokens are written
    page_indices  block table of each row, in the order of its tokens
    cu_q_lens     first token slot of each row, and the end of the last one
    fresh         static: nothing but the first row has tokens, and it begins its sequence, so no query sees older keys
    last_only     static: for a decoder's last layer, from which nothing but the last token of each row is wanted; the others are written and do not attend
    """

    tokens: Int[Array, "tokens"]
    positions: Int[Array, "*three tokens"]
    write_index: Int[Array, "tokens"]
    kv_lens: Int[Array, "rows"]
    page_indices: Int[Array, "rows width"]
    cu_q_lens: Int[Array, "rows_plus_1"]
    decode_rows: int
    max_q_len: int
    fresh: bool = False
    last_only: bool = False

    def last_tokens(self) -> Int[Array, "rows"]:
        """The slot of each row's last token, where its next logits come from; a padding row's is of no meaning."""
        return jnp.maximum(self.cu_q_lens[1:] - 1, 0)

    def wanted(self) -> Int[Array, "rows"] | None:
        """The slots of the tokens that attend; None: all do."""
        return self.last_tokens() if self.last_only else None

    def queries(self) -> Ragged:
        """The batch of the tokens that attend, when the keys and values of all are in the pages: itself, or one token of each row."""
        if not self.last_only:
            return self
        last, rows = self.last_tokens(), self.kv_lens.shape[0]
        return Ragged(
            tokens=self.tokens.at[last].get(mode="clip"),
            positions=self.positions.at[..., last].get(mode="clip"),
            write_index=self.write_index.at[last].get(mode="clip"),
            kv_lens=self.kv_lens,
            page_indices=self.page_indices,
            cu_q_lens=jnp.arange(rows + 1, dtype=self.cu_q_lens.dtype),
            decode_rows=rows,
            max_q_len=1,
        )
