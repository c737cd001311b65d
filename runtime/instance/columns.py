"""Rows of plans and results kept by columns, where all of them are of one kind: sequences that decode a token each.

Most steps are such, and a step of 256 sequences would make thousands of small objects that nobody looks at one by one. So the planner, the engine and the
core hand on columns, and a row is made when somebody asks for it: whoever iterates over `StepPlan.rows` or `StepResult.rows` need not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, overload

from triptych.runtime.core.bulk import named
from triptych.runtime.instance.plan import Attended, Draw, Drawn, Row, RowResult

R = TypeVar("R")
Columns = Mapping[str, Sequence[Any]]
"""Fields of some rows by name, all but `draws`."""


class _Rows(Sequence[R]):
    """Rows that are made from columns each time somebody asks."""

    def __iter__(self) -> Iterator[R]:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[R, ...]: ...
    def __getitem__(self, index: int | slice) -> R | tuple[R, ...]:
        return tuple(self)[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


class DecodeRows(_Rows[Row]):
    """Rows of one token each; what they draw is for their slot, behind that token. Arguments are the fields of `Row`, in columns."""

    __slots__ = ("columns", "sequences", "slots", "starts")

    def __init__(
        self,
        sequences: Sequence[int],
        tokens: Sequence[tuple[int, ...]],
        starts: Sequence[int],
        positions: Sequence[int],
        pages: Sequence[tuple[int, ...]],
        slots: Sequence[int],
        attended: Sequence[tuple[Attended, ...]],
    ) -> None:
        self.sequences, self.starts, self.slots = sequences, starts, slots
        nothing = [()] * len(starts)
        self.columns: Columns = {
            "sequence": sequences, "tokens": tokens, "start": starts, "position": positions, "pages": pages, "token_slot": slots,
            "score": nothing, "embedded": nothing, "attended": attended, "guess": [0] * len(starts),
        }  # fmt: skip

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[Row]:
        c, none = self.columns, [0] * len(self)
        fields = (c["sequence"], c["tokens"], c["start"], c["position"], c["pages"], c["token_slot"])
        draws = zip(named(Draw, self.slots, self.positions))
        return named(Row, *fields, draws, c["score"], none, c["embedded"], c["attended"], c["guess"])

    @property
    def positions(self) -> list[int]:
        """Where the drawn tokens stand."""
        return [start + 1 for start in self.starts]


class DrawnRows(_Rows[RowResult]):
    """Results of rows with a single draw and nothing else to tell."""

    __slots__ = ("sequences", "slots", "tokens")

    def __init__(self, sequences: Sequence[int], slots: Sequence[int], tokens: Sequence[int]) -> None:
        self.sequences, self.slots, self.tokens = sequences, slots, tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[RowResult]:
        drawn = zip(named(Drawn, self.slots, self.tokens, [None] * len(self)))
        return named(RowResult, self.sequences, drawn, [()] * len(self), [None] * len(self))


class Draws(NamedTuple):
    """The draws of some rows, in order, and how many each row has."""

    slots: Sequence[int]
    positions: Sequence[int]
    counts: Sequence[int]


def columns_of(rows: Sequence[Row]) -> Columns:
    """The fields of rows, at least one, in columns."""
    return (
        rows.columns if isinstance(rows, DecodeRows) else dict(zip(Row._fields, zip(*rows, strict=True), strict=True))
    )


def draws_of(rows: Sequence[Row]) -> Draws:
    """The draws of rows in columns."""
    if isinstance(rows, DecodeRows):
        return Draws(rows.slots, rows.positions, [1] * len(rows))
    draws = [draw for row in rows for draw in row.draws]
    return Draws([draw.slot for draw in draws], [draw.position for draw in draws], [len(row.draws) for row in rows])


def prefill_tokens(rows: Sequence[Row]) -> int:
    """Tokens of the rows that are not decode-shaped."""
    return 0 if isinstance(rows, DecodeRows) else sum([row.length for row in rows if not row.decode])
