"""StepTable: step times measured on the real engine (`triptych calibrate`), as a JSON file, and the rule by which they
are looked up.

An engine runs one of a few compiled programs for each step, padded to its sizes: decode rows, prefill tokens, table
width. So the table has one entry a program, not a surface over rows and contexts, and a step costs that of the program
which the engine would choose for it (the rule is the engine's own, runtime/engine/buckets.py; a test holds them
together). Between the two ends that were measured, with hardly any KV and with full tables, a program's time is linear
in the (query, key) pairs that the step computes; below and above it is that of the nearer end.

What the measured times contain: one step in a steady stream of steps, each dispatched before the last one is read, with
packing, sampling and reading the tokens. `host` is the work of the pure half of an instance on top, of which the device
hides a part (measured, 1 on accelerators, 0 where host and device share a core). Chunks that draw nothing lack the
sampler: `sample` is taken off. Where the model takes media, every encode program was measured too (`encode`), full.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from triptych.runtime.simulation.steptime import StepShape, grown

FORMAT = 1


class StepTableError(ValueError):
    """A table that cannot be read, or does not hold what it is asked for."""


@dataclass(frozen=True)
class Measured:
    """Seconds of a step (`median` of several windows; `spread` = (p90 - p10) / median) that computes `pairs` (query,
    key) pairs."""

    pairs: int
    median: float
    spread: float


@dataclass(frozen=True)
class ProgramTime:
    """One extend program and what steps of its full size cost, with the least KV and with full tables."""

    decode_rows: int
    prefill_tokens: int
    width: int
    low: Measured
    high: Measured

    def seconds(self, pairs: int) -> float:
        """Linear between the two ends."""
        low, high = self.low, self.high
        if high.pairs <= low.pairs:
            return high.median
        share = min(1.0, max(0.0, (pairs - low.pairs) / (high.pairs - low.pairs)))
        return low.median + share * (high.median - low.median)


@dataclass(frozen=True)
class EncodeTable:
    """The encode programs of an engine.

    Attributes:
        sizes: slots and seconds of each program, ascending: a step of encodes costs that of the smallest that holds it.
        embedding_bytes: bytes of one embedding.
        image: patches and embeddings of the image that was measured with.
    """

    sizes: tuple[tuple[int, float], ...]
    embedding_bytes: int
    image: tuple[int, int]

    def __post_init__(self) -> None:
        if not self.sizes or list(self.sizes) != sorted(self.sizes):
            raise StepTableError(f"encode programs are {self.sizes}; expected some, the smallest first")

    @property
    def most(self) -> int:
        """Slots of the largest program."""
        return self.sizes[-1][0]

    def seconds(self, patches: int, pairs: int) -> float:
        """Raises StepTableError for more patches than any program holds."""
        at = bisect_left(self.sizes, (patches, 0.0))
        if at == len(self.sizes):
            raise StepTableError(f"no measured program encodes {patches} patches; the largest holds {self.most}")
        return self.sizes[at][1]


@dataclass(frozen=True)
class HostTime:
    """Seconds of the pure half per step and per row of it, and the share of them that the device hides."""

    step: float = 0.0
    row: float = 0.0
    hidden: float = 1.0

    def visible(self, rows: int) -> float:
        return (1.0 - self.hidden) * (self.step + self.row * rows)


@dataclass(frozen=True)
class PullTime:
    """A pull of KV: seconds before and after the bytes, and bytes a second."""

    latency: float = 0.0
    bandwidth: float = 1e12


@dataclass(frozen=True)
class Limits:
    """The engine that was measured; an instance simulated with this table has the same ones."""

    page_size: int
    max_num_seqs: int
    max_model_len: int
    chunk_tokens: int
    max_prefill_rows: int
    num_pages: int
    kv_bytes_per_token: int


@dataclass(frozen=True)
class StepTable:
    """StepTimes from measurements.

    Attributes:
        ragged_decode_cost: what a decode row costs in the engine's choice when it is packed among prefill rows.
        sample: seconds that drawing takes in a step; steps that draw nothing are so much shorter.
        idle: seconds that a step takes longer when no step was before it: nothing hides its dispatch.
        encode: the encode programs; None for a text model.
        facts: what was measured, where and when: for people.
    """

    limits: Limits
    programs: tuple[ProgramTime, ...]
    ragged_decode_cost: int = 32
    sample: float = 0.0
    idle: float = 0.0
    host: HostTime = HostTime()
    pull: PullTime | None = None
    encode: EncodeTable | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.programs:
            raise StepTableError("a step table needs at least one program")

    def seconds(self, shape: StepShape) -> float:
        """Raises StepTableError for a step that no measured program holds."""
        program = self.choose(shape)
        spared = 0.0 if shape.draws else self.sample
        rows = shape.decode_rows + shape.prefill_rows
        return max(program.seconds(shape.decode_context + shape.prefill_pairs) - spared, 0.0) + self.host.visible(rows)

    def decode_run(self, shape: StepShape, steps: int) -> list[float]:
        return [self.seconds(grown(shape, step)) for step in range(steps)]

    def choose(self, shape: StepShape) -> ProgramTime:
        """The program that the engine runs for `shape`."""
        limits = self.limits
        width = -(-shape.longest // limits.page_size)
        rows, tokens = shape.decode_rows + shape.prefill_rows, shape.decode_rows + shape.prefill_tokens
        best: tuple[tuple[int, int], ProgramTime] | None = None
        for program in self.programs:
            if program.width < width:
                continue
            size = program.decode_rows + program.prefill_tokens
            apart = program.decode_rows >= shape.decode_rows and shape.prefill_rows <= limits.max_prefill_rows
            if apart and program.prefill_tokens >= shape.prefill_tokens:
                cost = (size, program.width)
            elif program.prefill_tokens >= tokens and rows <= limits.max_prefill_rows:
                cost = (size + self.ragged_decode_cost * shape.decode_rows, program.width)
            else:
                continue
            if best is None or cost < best[0]:
                best = (cost, program)
        if best is None:
            raise StepTableError(f"no measured program holds {shape}; the table is for {limits}")
        return best[1]

    def as_json(self) -> str:
        """What `load_table` reads."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"


def load_table(path: Path) -> StepTable:
    """Raises StepTableError, naming what is wrong with the file."""
    try:
        values = json.loads(path.read_text())
        if values.pop("format", None) != FORMAT:
            raise StepTableError(f"{path} is not a step table of format {FORMAT}; make one with `triptych calibrate`")
        programs = tuple(
            ProgramTime(**{**p, "low": Measured(**p["low"]), "high": Measured(**p["high"])})
            for p in values.pop("programs")
        )
        pull, encode = values.pop("pull"), values.pop("encode", None)
        return StepTable(
            limits=Limits(**values.pop("limits")),
            programs=programs,
            host=HostTime(**values.pop("host")),
            pull=None if pull is None else PullTime(**pull),
            encode=None if encode is None else _encode_table(**encode),
            **values,
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, StepTableError):
            raise
        raise StepTableError(f"{path} cannot be read as a step table: {error!r}") from error


def _encode_table(sizes: list[list[float]], embedding_bytes: int, image: list[int]) -> EncodeTable:
    """JSON has lists where an EncodeTable has tuples."""
    patches, tokens = image
    return EncodeTable(tuple((int(size), seconds) for size, seconds in sizes), embedding_bytes, (patches, tokens))
