"""The rows of a plan as the inputs of an `extend` program: which bucket, and the packed vector.

A program has D decode rows (one token each, token i being row i's), then P prefill rows that lie one after another in Tp token slots.
A plan's rows come in any order; decode-shaped ones go to the decode segment when the program has one, and each row's place is only
needed here, because the program picks the hidden state of every draw in plan order.

All padding points at the null page 0, has KV length 0 and comes after what is real in its segment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from triptych.runtime.engine.buckets import Buckets, PlanError, smallest
from triptych.runtime.engine.config import EngineConfig
from triptych.runtime.engine.packing import Field, Packing
from triptych.runtime.instance.plan import Row, StepPlan


@dataclass(frozen=True, order=True)
class ExtendShape:
    """The static sizes of one extend program: decode rows, prefill tokens, table width in pages."""

    decode_rows: int
    prefill_tokens: int
    width: int

    def __str__(self) -> str:
        return f"decode={self.decode_rows} prefill={self.prefill_tokens} width={self.width}"

    @property
    def tokens(self) -> int:
        return self.decode_rows + self.prefill_tokens

    def rows(self, max_prefill_rows: int) -> int:
        """Rows of the program, both segments."""
        return self.decode_rows + (max_prefill_rows if self.prefill_tokens else 0)


def extend_shapes(buckets: Buckets) -> tuple[ExtendShape, ...]:
    """Every extend program of an engine: pure decode, then prefill with and without decode rows."""
    decode = [ExtendShape(rows, 0, width) for rows in buckets.decode_rows for width in buckets.table_widths]
    mixed = [
        ExtendShape(rows, tokens, width)
        for rows in buckets.mixed_decode_rows
        for tokens in buckets.prefill_tokens
        for width in buckets.table_widths
    ]
    return (*decode, *mixed)


def extend_packing(shape: ExtendShape, config: EngineConfig) -> Packing:
    """The inputs of an extend program. `carried` is the slot whose last draw is the token's id, or max_num_seqs: the id is given."""
    rows = shape.rows(config.max_prefill_rows)
    per_token = tuple(Field(name, (shape.tokens,)) for name in ("tokens", "carried", "positions", "write_index"))
    return Packing(
        (
            *per_token,
            Field("kv_lens", (rows,)),
            Field("cu_q_lens", (rows + 1,)),
            Field("page_indices", (rows, shape.width)),
            Field("picks", (config.max_num_seqs,)),
        )
    )


@dataclass(frozen=True)
class ExtendBatch:
    """One step's rows, packed. `first_token[i]` is where plan row i's tokens lie in the program."""

    shape: ExtendShape
    packed: np.ndarray
    first_token: tuple[int, ...]


class BatchPacker:
    """Packs rows for the compiled shapes."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._packings = {shape: extend_packing(shape, config) for shape in extend_shapes(config.buckets)}

    def pack(self, plan: StepPlan) -> ExtendBatch | None:
        """None for a plan without rows. Raises PlanError if it does not fit a compiled shape."""
        if not plan.rows:
            return None
        shape, decode, prefill = self._place(plan)
        packed, views = self._packings[shape].host()
        views["carried"].fill(self._config.max_num_seqs)
        first_token = [0] * len(plan.rows)
        cu_q_lens = views["cu_q_lens"]
        cu_q_lens[: shape.decode_rows + 1] = np.arange(shape.decode_rows + 1)
        for place, at in enumerate(decode):
            first_token[at] = place
            self._fill(views, plan.rows[at], place, place, shape.width)
        token = shape.decode_rows
        for place, at in enumerate(prefill, start=shape.decode_rows):
            first_token[at] = token
            self._fill(views, plan.rows[at], place, token, shape.width)
            token += plan.rows[at].length
            cu_q_lens[place + 1] = token
        if shape.prefill_tokens:
            cu_q_lens[shape.decode_rows + len(prefill) + 1 :] = token
        self._pick(views["picks"], plan, first_token)
        return ExtendBatch(shape, packed, tuple(first_token))

    def _place(self, plan: StepPlan) -> tuple[ExtendShape, list[int], list[int]]:
        """(program, indices of the rows in its decode segment, indices of the rows in its prefill segment)."""
        config, buckets = self._config, self._config.buckets
        decode = [at for at, row in enumerate(plan.rows) if row.decode]
        prefill = [at for at, row in enumerate(plan.rows) if not row.decode]
        width = smallest(buckets.table_widths, max(len(row.pages) for row in plan.rows), "pages in a row")
        if decode and not prefill and buckets.decode_rows:
            return ExtendShape(smallest(buckets.decode_rows, len(decode), "decode rows"), 0, width), decode, prefill
        if decode and len(buckets.mixed_decode_rows) == 1:
            # An instance that never decodes meets one-token rows as the last chunks of prompts.
            decode, prefill = [], list(range(len(plan.rows)))
        if len(prefill) > config.max_prefill_rows:
            raise PlanError(f"the plan has {len(prefill)} prefill rows; the engine takes {config.max_prefill_rows}")
        tokens = sum(plan.rows[at].length for at in prefill)
        rows = smallest(buckets.mixed_decode_rows, len(decode), "decode rows beside prefill")
        return ExtendShape(rows, smallest(buckets.prefill_tokens, tokens, "prefill tokens"), width), decode, prefill

    def _fill(self, views: dict[str, np.ndarray], row: Row, place: int, token: int, width: int) -> None:
        """Write one row's numbers at row `place` and token slot `token`."""
        length, size = row.length, self._config.page_size
        if (row.start + length - 1) // size >= len(row.pages):
            raise PlanError(f"sequence {row.sequence}: {len(row.pages)} pages cannot hold {row.start + length} tokens")
        views["kv_lens"][place] = row.start + length
        pages = views["page_indices"][place]
        pages[: len(row.pages)] = row.pages
        if not row.tokens:
            views["carried"][token] = row.token_slot
        if length == 1:
            if row.tokens:
                views["tokens"][token] = row.tokens[0]
            views["positions"][token] = row.position
            views["write_index"][token] = row.pages[row.start // size] * size + row.start % size
            return
        here = slice(token, token + length)
        index = np.arange(row.start, row.start + length)
        views["tokens"][here] = row.tokens
        views["positions"][here] = np.arange(row.position, row.position + length)
        views["write_index"][here] = pages[index // size] * size + index % size

    def _pick(self, picks: np.ndarray, plan: StepPlan, first_token: list[int]) -> None:
        """The token slot whose hidden state each draw uses, draws in plan order."""
        wanted = [first + row.length - 1 for row, first in zip(plan.rows, first_token, strict=True) for _ in row.draws]
        if len(wanted) > len(picks):
            raise PlanError(f"the plan draws {len(wanted)} tokens; the engine has {len(picks)} slots")
        picks[: len(wanted)] = wanted
