"""Recorded traces: those that come with the project (data/README.md) and files of the same forms.

Azure (CSV, TIMESTAMP,ContextTokens,GeneratedTokens): arrival times and lengths of two production services, Patel et
al., ISCA 2024. Mooncake (JSON lines, timestamp in ms, input_length, output_length, hash_ids): the same with the names
of each prompt's prefix blocks of 512 tokens, Qin et al., FAST 2025. A trace is kept whole in memory (tens of thousands
of rows); `replay` repeats it as often as is needed, at any rate.
"""

from __future__ import annotations

import csv
import io
import json
import lzma
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path

from triptych.runtime.simulation.workload import Arrival, Shape, WorkloadError

DATA = Path(__file__).parent / "data"
BUNDLED = {
    "azure-conv": DATA / "azure_llm_conv_2023.csv.xz",
    "azure-code": DATA / "azure_llm_code_2023.csv.xz",
    "mooncake": DATA / "mooncake_conversation.jsonl.xz",
}
MOONCAKE_BLOCK = 512  # tokens a hash id, by the trace's documentation
_AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


@dataclass(frozen=True)
class Trace:
    """Requests in order of arrival; `times` in seconds from the first."""

    name: str
    times: tuple[float, ...]
    shapes: tuple[Shape, ...]

    def __len__(self) -> int:
        return len(self.times)

    @property
    def rate(self) -> float:
        """Requests a second, on average."""
        return (len(self) - 1) / self.times[-1] if self.times[-1] > 0 else math.inf

    def shapes_forever(self) -> Iterator[Shape]:
        """The shapes again and again. Blocks of one round are never those of another: repeating a trace must not invent
        cache hits."""
        names = 1 + max((max(s.blocks, default=0) for s in self.shapes), default=0)
        for number in count():
            shift = number * names
            for s in self.shapes:
                if shift and s.blocks:
                    blocks = tuple(block + shift for block in s.blocks)
                    s = Shape(s.prompt_tokens, s.output_tokens, s.session, blocks, s.block_tokens, s.images)
                yield s

    def times_forever(self, rate: float) -> Iterator[float]:
        """The arrival times again and again, stretched to a mean of `rate` a second; bursts keep their form."""
        if not 0 < rate < math.inf:
            raise WorkloadError(f"rate is {rate}; expected requests a second")
        stretch = self.rate / rate if math.isfinite(self.rate) else 0.0
        period = self.times[-1] * stretch + 1 / rate
        for number in count():
            for at in self.times:
                yield number * period + at * stretch


def replay(trace: Trace, rate: float) -> Iterator[Arrival]:
    """The trace at another rate, for as long as anybody asks."""
    for serial, (at, shape) in enumerate(zip(trace.times_forever(rate), trace.shapes_forever(), strict=True)):
        yield Arrival(serial, at, shape)


def load(name: str) -> Trace:
    """A bundled trace by name, or a file (.csv or .jsonl, also .xz).

    Raises:
        WorkloadError: no such trace or file, or a line that cannot be read.
    """
    path = BUNDLED.get(name) or Path(name)
    if not path.is_file():
        raise WorkloadError(f"no trace {name!r}; bundled are {', '.join(BUNDLED)}; or name a .csv or .jsonl file")
    data = path.read_bytes()
    text = (lzma.decompress(data) if path.suffix == ".xz" else data).decode()
    kind = path.name.removesuffix(".xz").rpartition(".")[2]
    readers = {"csv": read_azure, "jsonl": read_mooncake}
    if kind not in readers:
        raise WorkloadError(f"trace {path} is neither .csv (Azure's columns) nor .jsonl (Mooncake's fields)")
    return readers[kind](name, io.StringIO(text))


def read_azure(name: str, lines: Iterable[str]) -> Trace:
    """The Azure form."""
    reader = csv.DictReader(lines)
    if missing := [c for c in _AZURE_COLUMNS if c not in (reader.fieldnames or ())]:
        raise WorkloadError(f"trace {name} lacks the columns {', '.join(missing)}; it has {reader.fieldnames}")
    rows: list[tuple[float, Shape]] = []
    for number, row in enumerate(reader, start=2):
        try:
            at = datetime.fromisoformat(row["TIMESTAMP"].strip()[:26]).timestamp()  # seven decimals; datetime has six
            rows.append((at, _shape(int(row["ContextTokens"]), int(row["GeneratedTokens"]), ())))
        except (ValueError, TypeError) as error:
            raise WorkloadError(f"trace {name}, line {number}: {error}") from error
    return _trace(name, rows)


def read_mooncake(name: str, lines: Iterable[str]) -> Trace:
    """The Mooncake form."""
    rows: list[tuple[float, Shape]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            shape = _shape(int(row["input_length"]), int(row["output_length"]), tuple(map(int, row["hash_ids"])))
            rows.append((float(row["timestamp"]) / 1e3, shape))
        except (ValueError, TypeError, KeyError) as error:
            raise WorkloadError(f"trace {name}, line {number}: {error!r}") from error
    return _trace(name, rows)


def _shape(prompt: int, output: int, blocks: tuple[int, ...]) -> Shape:
    if prompt < 1 or output < 1:
        raise ValueError(f"{prompt} tokens in and {output} out; expected at least one each")
    if blocks and len(blocks) != -(-prompt // MOONCAKE_BLOCK):
        raise ValueError(f"{len(blocks)} blocks of {MOONCAKE_BLOCK} tokens for a prompt of {prompt}")
    return Shape(prompt, output, None, blocks, MOONCAKE_BLOCK if blocks else 0)


def _trace(name: str, rows: list[tuple[float, Shape]]) -> Trace:
    if not rows:
        raise WorkloadError(f"trace {name} has no rows")
    rows.sort(key=lambda row: row[0])
    first = rows[0][0]
    return Trace(name, tuple(at - first for at, _ in rows), tuple(shape for _, shape in rows))
