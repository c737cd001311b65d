"""What is sent and when: a list of items, fixed before the run, so that two servers can be given exactly the same load.

Arrival times: Poisson (exponential gaps), uniform (equal gaps), all at once, or those of a trace. Prompts: random token ids of a given length, or texts.
Traces that come with the project have names; those that are whole are the simulator's (runtime/simulation/data).
Everything random comes from one seed.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from triptych.runtime.simulation import traces

BUNDLED_TRACE = Path(__file__).parent / "data" / "azure_llm_conv_2023_excerpt.csv"
EXCERPT = "azure"  # the name of BUNDLED_TRACE
WHOLE_TRACES = {"conversation": "azure-conv", "code": "azure-code"}  # by the simulator's names
_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


class WorkloadError(ValueError):
    """The load as asked for cannot be built."""


@dataclass(frozen=True)
class Item:
    """One request: due `at` seconds after the start; its prompt as token ids or as text; `output_tokens` to generate.

    `ignore_eos`: generate exactly that many, for fixed lengths; otherwise the model may stop earlier.
    """

    at: float
    prompt: tuple[int, ...] | str
    output_tokens: int
    ignore_eos: bool


@dataclass(frozen=True)
class TraceRow:
    """One request of a trace: seconds after the first, prompt tokens, generated tokens."""

    at: float
    input_tokens: int
    output_tokens: int


def poisson(count: int, rate: float, rng: random.Random) -> list[float]:
    """`count` arrival times with independent exponential gaps of mean 1/rate; the first is at 0."""
    _check_rate(rate)
    times, now = [], 0.0
    for _ in range(count):
        times.append(now)
        now += rng.expovariate(rate) if math.isfinite(rate) else 0.0
    return times


def uniform(count: int, rate: float) -> list[float]:
    """`count` arrival times 1/rate apart; the first is at 0."""
    _check_rate(rate)
    return [i / rate for i in range(count)]


def random_items(
    times: Sequence[float], *, input_tokens: int, output_tokens: int, vocab: Sequence[int] | range, rng: random.Random
) -> list[Item]:
    """Prompts of random ids out of `vocab`, all of one length: no two share a prefix, so no cache can help."""
    if input_tokens < 1 or output_tokens < 1:
        raise WorkloadError(f"lengths must be positive, not {input_tokens} in and {output_tokens} out")
    return [Item(t, tuple(rng.choices(vocab, k=input_tokens)), output_tokens, True) for t in times]


def text_items(
    times: Sequence[float], texts: Sequence[str], *, output_tokens: int, ignore_eos: bool = False
) -> list[Item]:
    """Text prompts in turn; the model may stop before `output_tokens` unless `ignore_eos`."""
    if not texts:
        raise WorkloadError("there is no prompt to send")
    return [Item(t, texts[i % len(texts)], output_tokens, ignore_eos) for i, t in enumerate(times)]


def load_trace(name: str) -> list[TraceRow]:
    """The rows of a bundled trace (EXCERPT, WHOLE_TRACES), or else of a CSV file."""
    if name not in WHOLE_TRACES:
        path = BUNDLED_TRACE if name == EXCERPT else Path(name)
        return read_trace(path.read_text().splitlines())
    whole = traces.load(WHOLE_TRACES[name])
    return [TraceRow(at, s.prompt_tokens, s.output_tokens) for at, s in zip(whole.times, whole.shapes, strict=True)]


def mean_rate(rows: Sequence[TraceRow]) -> float:
    """Requests a second of a trace: its rows over its span. Raises WorkloadError if all came at once."""
    span = rows[-1].at - rows[0].at
    if not span > 0:
        raise WorkloadError("the trace's requests all come at one time, so it has no rate that could be scaled")
    return len(rows) / span


def within(rows: Sequence[TraceRow], speed: float, window: float) -> list[TraceRow]:
    """The rows that arrive in the first `window` seconds when time runs `speed` times faster."""
    return [row for row in rows if row.at / speed < window]


def read_trace(lines: Iterable[str]) -> list[TraceRow]:
    """Rows of a CSV with the columns of the Azure LLM inference traces: TIMESTAMP, ContextTokens, GeneratedTokens."""
    reader = csv.DictReader(lines)
    if missing := [c for c in _COLUMNS if c not in (reader.fieldnames or ())]:
        raise WorkloadError(f"the trace lacks the columns {', '.join(missing)}; it has {reader.fieldnames}")
    rows: list[TraceRow] = []
    first: datetime | None = None
    for number, row in enumerate(reader, start=2):
        try:
            stamp = datetime.fromisoformat(_microseconds(row["TIMESTAMP"]))
            first = stamp if first is None else first
            rows.append(
                TraceRow((stamp - first).total_seconds(), int(row["ContextTokens"]), int(row["GeneratedTokens"]))
            )
        except (ValueError, TypeError) as error:
            raise WorkloadError(f"the trace's line {number} cannot be read: {error}") from error
    if not rows:
        raise WorkloadError("the trace has no rows")
    return sorted(rows, key=lambda r: r.at)


def trace_items(
    rows: Sequence[TraceRow],
    *,
    speed: float,
    length_scale: float,
    max_total: int,
    vocab: Sequence[int] | range,
    rng: random.Random,
    max_output: int | None = None,
) -> list[Item]:
    """A trace as items: time runs `speed` times faster, lengths are multiplied by `length_scale`, outputs then cut to `max_output`, and both so
    that prompt + output <= `max_total`."""
    _check_rate(speed)
    if not length_scale > 0 or max_total < 2:
        raise WorkloadError(
            f"length scale {length_scale} and longest request {max_total} must be positive (the latter at least 2)"
        )
    items = []
    for row in rows:
        inputs = min(max(1, round(row.input_tokens * length_scale)), max_total - 1)
        outputs = min(max(1, round(row.output_tokens * length_scale)), max_output or max_total, max_total - inputs)
        items.append(Item(row.at / speed, tuple(rng.choices(vocab, k=inputs)), outputs, True))
    return items


def _check_rate(rate: float) -> None:
    if not rate > 0:
        raise WorkloadError(f"rate is {rate}; expected requests per second, or inf for all at once")


def _microseconds(stamp: str) -> str:
    """The traces have seven decimals; datetime reads six."""
    head, dot, fraction = stamp.strip().partition(".")
    return f"{head}{dot}{fraction[:6]}"
