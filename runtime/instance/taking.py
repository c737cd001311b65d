"""The tokens of samples that just go on decoding, taken all at once: what most results are (results.py has the others).

One loop with nothing in it but what every token needs; it is the larger part of what the host does with a step's results.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

from triptych.runtime.core.bulk import maker
from triptych.runtime.core.request import Logprobs, TokenOut
from triptych.runtime.instance.columns import DrawnRows
from triptych.runtime.instance.plan import RowResult
from triptych.runtime.instance.state import PlannedDecodes
from triptych.runtime.instance.tasks import Task


def take_decodes(
    planned: PlannedDecodes, rows: Sequence[RowResult], tokens: dict[str, list[TokenOut]], touched: dict[int, Task]
) -> None:
    """Commit and accept the first rows of a step, one for each that is `planned`: adds to `tokens`, by gateway, and to `touched` the tasks whose state may
    change with them, by serial."""
    gateway, emitted, token_out = "", list[TokenOut](), maker(TokenOut)
    drawn, logprobs = _columns(rows, len(planned.streams))
    for stream, generation, token, about in zip(planned.streams, planned.generations, drawn, logprobs, strict=False):
        sequence, task = stream.sequence, stream.task
        if stream.generation != generation or sequence is None:
            continue
        known, outputs, request = sequence.tokens, stream.outputs, task.request
        position = len(known)
        sequence.commit(position)
        known.append(token)
        outputs.append(token)
        stream.pending -= 1
        finish = stream.finish = stream.termination.check(token, len(outputs))
        if finish is not None or not task.reported:
            touched[task.serial] = task
        if request.gateway != gateway or not emitted:
            gateway = request.gateway
            emitted = tokens.setdefault(gateway, [])
        if about is not None and request.sampling.logprobs is None:
            about = None
        emitted.append(token_out((request.id, request.attempt, stream.sample, position, token, about, finish)))


def _columns(rows: Sequence[RowResult], count: int) -> tuple[Sequence[int], Sequence[Logprobs | None] | repeat[None]]:
    """The tokens of the first `count` rows and what is told of them."""
    if isinstance(rows, DrawnRows):
        return rows.tokens, repeat(None)
    drawn = [row.drawn[0] for row in rows[:count]]
    return [each.token for each in drawn], [each.logprobs for each in drawn]
