"""The decode segment of an extend program, packed by columns: rows of one token each, which are most rows of most steps.

What is written is what packing row by row would write (a test packs random plans both ways), at 256 rows in a tenth of the time.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from triptych.runtime.engine.block_tables import BlockTables
from triptych.runtime.engine.buckets import PlanError
from triptych.runtime.instance.columns import Columns


def fill_decodes(views: dict[str, np.ndarray], rows: Columns, width: int, page_size: int, tables: BlockTables) -> None:
    """Write decode-shaped rows to the first rows and token slots of `views`, whose tables have `width` pages. What they attend to is not written here.

    Raises PlanError for a block table that is too short.
    """
    starts, pages, tokens, slots = rows["start"], rows["pages"], rows["tokens"], rows["token_slot"]
    count = len(starts)
    try:
        written = [
            held[start // page_size] * page_size + start % page_size for start, held in zip(starts, pages, strict=True)
        ]
    except IndexError:
        raise next(_too_short(rows, page_size)) from None
    views["page_indices"][:count] = tables.of(rows["sequence"], pages, width)
    views["kv_lens"][:count] = [start + 1 for start in starts]
    views["positions"][..., :count] = rows["position"]
    views["write_index"][:count] = written
    if not any(tokens):  # the step before draws them all
        views["carried"][:count] = slots
        return
    known = [at for at, token in enumerate(tokens) if token]
    drawn = [at for at, token in enumerate(tokens) if not token]
    views["tokens"][known] = [tokens[at][0] for at in known]
    views["carried"][drawn] = [slots[at] for at in drawn]


def _too_short(rows: Columns, page_size: int) -> Iterator[PlanError]:
    for sequence, start, pages in zip(rows["sequence"], rows["start"], rows["pages"], strict=True):
        if start >= len(pages) * page_size:
            yield too_short(sequence, len(pages), start + 1)


def too_short(sequence: int, pages: int, tokens: int) -> PlanError:
    """What is wrong with a block table that does not reach as far as its row's tokens."""
    return PlanError(f"sequence {sequence}: {pages} pages cannot hold {tokens} tokens")
