"""Sequences for engine tests: they keep block tables and write plans, as an instance would, and assert that nothing compiles."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from tests.runtime.engine.oracle import LONGEST, toy
from triptych.runtime.core.instance import Role
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.engine.buckets import Buckets, ExtendShape
from triptych.runtime.engine.compile_guard import no_compilation
from triptych.runtime.engine.config import EngineConfig
from triptych.runtime.engine.engine import Engine
from triptych.runtime.instance.plan import Draw, Row, Seat, StepPlan, StepResult

PAGE = 4
SLOTS = 4
CHUNK = 16
PREFILL_ROWS = 3
# Two table widths, two prefill sizes and two decode sizes, so that tests cross programs.
SHAPES = tuple(
    ExtendShape(rows, tokens, width)
    for rows, tokens in ((1, 0), (4, 0), (0, 6), (0, 16), (4, 6), (4, 16))
    for width in (4, 16)
)
BOTH = frozenset({Role.PREFILL, Role.DECODE})
GREEDY = SamplingParams(temperature=0.0)


def toy_config(**changes: Any) -> EngineConfig:
    """A small engine."""
    fields: dict[str, Any] = {
        "page_size": PAGE,
        "num_pages": 80,
        "max_num_seqs": SLOTS,
        "max_model_len": LONGEST,
        "chunk_tokens": CHUNK,
        "max_prefill_rows": PREFILL_ROWS,
        "buckets": Buckets(SHAPES, draws=(1, 4)),
        "kv_dtype": "float32",
        "roles": BOTH,
    }
    return EngineConfig(**(fields | changes))


def compiled(tp: int = 1, **changes: Any) -> Engine:
    loaded = toy(tp)
    engine = Engine(toy_config(**changes), loaded, loaded.rules.mesh)
    engine.compile()
    return engine


@dataclass
class Seq:
    """One sequence: its tokens, how many of them are in the pages, and its pages (deliberately not in order)."""

    number: int
    prompt: list[int]
    slot: int
    pages: tuple[int, ...]
    params: SamplingParams = GREEDY
    sample: int = 0
    outputs: list[int] = field(default_factory=list)
    cached: int = 0
    position_offset: int = 0

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.outputs

    def seat(self, **fields: Any) -> Seat:
        counted = self.params.penalised
        return Seat(
            self.slot,
            self.sample,
            self.params,
            prompt=tuple(self.prompt) if counted else (),
            outputs=tuple(self.outputs) if counted else (),
            **fields,
        )

    def row(self, count: int, *, draws: bool = True, **fields: Any) -> Row:
        """The next `count` known tokens."""
        start = self.cached
        self.cached += count
        drawn = (Draw(self.slot, self.cached),) if draws else ()
        return Row(
            self.number,
            tuple(self.tokens[start : self.cached]),
            start,
            start + self.position_offset,
            self._table(),
            token_slot=self.slot,
            draws=drawn,
            **fields,
        )

    def carried_row(self) -> Row:
        """One token that only the device knows."""
        start = self.cached
        self.cached += 1
        return Row(
            self.number,
            (),
            start,
            start + self.position_offset,
            self._table(),
            token_slot=self.slot,
            draws=(Draw(self.slot, self.cached),),
        )

    def _table(self) -> tuple[int, ...]:
        return self.pages[: -(-self.cached // PAGE)]


def sequence(number: int, prompt: list[int], params: SamplingParams = GREEDY, **fields: Any) -> Seq:
    """Sequence `number` in slot `number`, on pages of its own that are scattered over the pool."""
    pages = tuple(1 + number + 4 * ((7 * i + number) % 16) for i in range(16))
    return Seq(number, prompt, **({"slot": number, "pages": pages, "params": params} | fields))


class Driver:
    """Numbers plans and runs them; nothing may compile."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._ids = itertools.count()

    def plan(self, *rows: Row, **fields: Any) -> StepPlan:
        return StepPlan(next(self._ids), rows=rows, **fields)

    def run(self, *rows: Row, **fields: Any) -> StepResult:
        with no_compilation():
            return self.engine.collect(self.engine.dispatch(self.plan(*rows, **fields)))

    def tokens(self, *rows: Row, **fields: Any) -> list[list[int]]:
        """The drawn tokens of each row."""
        return [[drawn.token for drawn in row.drawn] for row in self.run(*rows, **fields).rows]

    def generate(self, sequences: list[Seq], count: int, *, seats: tuple[Seat, ...] | None = None) -> list[list[int]]:
        """Prefill each sequence in one chunk of its own step, then decode all together, one step ahead of what is read."""
        for seq in sequences:
            rest = len(seq.tokens) - seq.cached
            seat = (seq.seat(),) if seats is None else tuple(s for s in seats if s.slot == seq.slot)
            ((token,),) = self.tokens(seq.row(rest), seats=seat)
            seq.outputs.append(token)
        if count == 1:
            return [seq.outputs for seq in sequences]
        with no_compilation():
            pending = [self.engine.dispatch(self.plan(*(seq.carried_row() for seq in sequences)))]
            for left in range(count - 2, -1, -1):
                if left:
                    pending.append(self.engine.dispatch(self.plan(*(seq.carried_row() for seq in sequences))))
                for seq, row in zip(sequences, self.engine.collect(pending.pop(0)).rows, strict=True):
                    seq.outputs.append(row.drawn[0].token)
        return [seq.outputs for seq in sequences]
