"""Measuring an engine for the simulator: one steady stream of steps per compiled program, at both ends of what it may
hold.

A program is measured at its full size, because that is what it costs whatever the rows are: with as little KV as still
chooses its table width ("low"), and with every table full ("high"). Steps are dispatched one ahead, as the device loop
does it, and timed in windows: single intervals would flatter (see tools/bench/floor.py). What pages hold does not
matter; they are handed out in turn, so that a step reads as many different ones as the pool has.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.core.request import Request
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.core.tasks import StartLocal
from triptych.runtime.engine.buckets import ExtendShape
from triptych.runtime.engine.engine import Engine
from triptych.runtime.instance.config import InstanceConfig
from triptych.runtime.instance.core import InstanceCore
from triptych.runtime.instance.messages import Command, DeviceReady, StepDone
from triptych.runtime.instance.plan import Draw, Drawn, Row, RowResult, Seat, StepPlan, StepResult
from triptych.runtime.instance.termination import StopProbe
from triptych.runtime.simulation.steptime import shape_of
from triptych.runtime.simulation.steptime_table import HostTime, Measured, ProgramTime

WINDOW = 4  # steps a window
LEAST_WINDOWS = 5  # a median of fewer says little
HOST_STEPS = 200
GREEDY = SamplingParams(temperature=0.0)

Progress = Callable[[str, int, int], None]
Pending = TypeVar("Pending")


class StepEngine(Protocol[Pending]):
    """The part of an engine that runs steps."""

    def dispatch(self, plan: StepPlan) -> Pending: ...

    def collect(self, pending: Pending) -> StepResult: ...


@dataclass(frozen=True)
class Load:
    """Rows of a step as (tokens, KV tokens before them), decode rows first."""

    decode: tuple[int, ...]
    prefill: tuple[tuple[int, int], ...]


def loads(engine: Engine, shape: ExtendShape) -> tuple[Load, Load]:
    """The least and the most that a full step of the program can hold; both choose exactly this program, unless one of them is a prompt for which there is a fresh one."""
    config = engine.config
    alike = [s for s in config.buckets.extend if not s.fresh and bool(s.prefill_tokens) == bool(shape.prefill_tokens)]
    narrower = max((s.width for s in alike if s.width < shape.width), default=0)
    least = narrower * config.page_size + 1  # KV tokens of the one row that needs this width
    most = min(shape.width * config.page_size, config.max_model_len)
    chunks = list(_split(shape.prefill_tokens, most, config.max_prefill_rows))
    low_decode, low_prefill = [1] * shape.decode_rows, [(tokens, 0) for tokens in chunks]
    if chunks:
        low_prefill[0] = (chunks[0], max(0, least - chunks[0]))
    else:
        low_decode[0] = least
    full = Load((most,) * shape.decode_rows, tuple((tokens, most - tokens) for tokens in chunks))
    return Load(tuple(low_decode), tuple(low_prefill)), full


def _split(tokens: int, most: int, rows: int) -> Iterator[int]:
    """`tokens` as few chunks of at most `most`, at most `rows` of them."""
    for _ in range(rows):
        if tokens:
            yield (chunk := min(tokens, most))
            tokens -= chunk


def plan_of(engine: Engine, load: Load, number: int, draws: int) -> StepPlan:
    """Plan `number`: the first one seats the slots and names the decode rows' tokens, later ones take what was drawn.
    The first `draws` rows draw."""
    config = engine.config
    pool = config.num_pages - 1
    rows: list[Row] = []
    used = 0
    spans = [(1, context - 1) for context in load.decode] + list(load.prefill)
    for place, (length, start) in enumerate(spans):
        pages = -(-(start + length) // config.page_size)
        table = tuple(1 + (used + page) % pool for page in range(pages))
        used += pages
        decode = place < len(load.decode)
        slot = place if place < draws else 0
        tokens = () if decode and number and place < draws else (1,) * length
        drawn = (Draw(slot, start + length),) if place < draws else ()
        rows.append(Row(place + 1, tokens, start, start, table, slot, drawn))
    seats = tuple(Seat(slot, 0, GREEDY) for slot in range(draws)) if number == 0 else ()
    return StepPlan(number, tuple(rows), seats)


def stream(engine: Engine, load: Load, draws: int, seconds: float, busy: float = 0.0) -> list[float]:
    """Seconds a step of this load, as means over windows, for about `seconds` seconds."""
    return step_windows(engine, lambda number: plan_of(engine, load, number, draws), seconds, busy)


def step_windows(
    engine: StepEngine[Pending], plan: Callable[[int], StepPlan], seconds: float, busy: float = 0.0
) -> list[float]:
    """Seconds a step, as means over windows, for about `seconds` seconds; each step is dispatched before the last one
    is read. `plan`: the plan of a number. `busy`: seconds of other host work in every step."""
    pending, last, times, number = engine.dispatch(plan(0)), time.perf_counter(), [], 0
    end = last + seconds
    while len(times) <= LEAST_WINDOWS or last < end:
        number += 1
        following = engine.dispatch(plan(number))
        if busy:
            _spin(busy)
        engine.collect(pending)
        pending = following
        if number % WINDOW == 0:
            now = time.perf_counter()
            times.append((now - last) / WINDOW)
            last = now
    engine.collect(pending)
    return times[1:]  # the first window warms up


def _spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def measure_programs(engine: Engine, seconds: float, progress: Progress) -> tuple[ProgramTime, ...]:
    """Every extend program of the engine, `seconds` seconds an end. Where prompts that are alone and begin have programs of their own, low ends of a lone chunk are of those."""
    shapes = [shape for shape in engine.config.buckets.extend if not shape.fresh]
    out = []
    for number, shape in enumerate(shapes):
        progress(str(shape), number, len(shapes))
        low, high = (_measured(engine, load, seconds) for load in loads(engine, shape))
        out.append(ProgramTime(shape.decode_rows, shape.prefill_tokens, shape.width, low, high))
    progress("all programs", len(shapes), len(shapes))
    return tuple(out)


def _measured(engine: Engine, load: Load, seconds: float) -> Measured:
    draws = min(len(load.decode) or 1, engine.config.max_num_seqs)
    times = stream(engine, load, draws, seconds)
    low, median, high = np.percentile(times, (10, 50, 90))
    shape = shape_of(plan_of(engine, load, 1, draws))
    return Measured(shape.decode_context + shape.prefill_pairs, float(median), float((high - low) / median))


def smallest_load(engine: Engine) -> Load:
    """A step of the cheapest program."""
    return loads(engine, min(engine.config.buckets.extend, key=lambda s: (s.tokens, s.width)))[0]


def measure_idle(engine: Engine, steps: int = 30) -> float:
    """How much longer a step takes whose dispatch no earlier step hides."""
    load = smallest_load(engine)
    draws = min(1, len(load.decode)) or 1
    single = []
    for number in range(steps):
        began = time.perf_counter()
        engine.collect(engine.dispatch(plan_of(engine, load, number, draws)))
        single.append(time.perf_counter() - began)
    return max(0.0, statistics.median(single) - statistics.median(stream(engine, load, draws, 0.0)))


def measure_sample(engine: Engine, seconds: float) -> float:
    """What drawing costs in a step that could do without it."""
    shapes = [s for s in engine.config.buckets.extend if s.prefill_tokens]
    if not shapes:
        return 0.0
    load = loads(engine, min(shapes, key=lambda s: (s.tokens, s.width)))[0]
    with_draw, without = (statistics.median(stream(engine, load, draws, seconds)) for draws in (1, 0))
    return max(0.0, with_draw - without)


def measure_host(engine: Engine, seconds: float) -> HostTime:
    """The pure half's own time, and how much of such work the device hides."""
    few, many = 1, engine.config.max_num_seqs
    one, all_rows = core_seconds(engine, few), core_seconds(engine, many)
    row = max(0.0, (all_rows - one) / (many - few)) if many > few else 0.0
    load = smallest_load(engine)
    draws = min(1, len(load.decode)) or 1
    alone = statistics.median(stream(engine, load, draws, seconds))
    busy = 0.5 * alone
    longer = statistics.median(stream(engine, load, draws, seconds, busy)) - alone
    return HostTime(max(0.0, one - row), row, min(1.0, max(0.0, 1.0 - longer / busy)))


def core_seconds(engine: Engine, rows: int) -> float:
    """Seconds of InstanceCore a decode step of `rows` rows: planning it and taking its result. No device."""
    e = engine.config
    ref = InstanceRef("host", 1)
    config = InstanceConfig(
        ref, "", "", frozenset({Role.PREFILL, Role.DECODE}), e.num_pages, e.page_size, e.max_num_seqs, e.max_model_len,
        chunk_tokens=e.chunk_tokens, max_prefill_rows=e.max_prefill_rows,
    )  # fmt: skip
    core = InstanceCore(config, stop_probe=_no_stop_strings, random=random.Random(0))
    room = min(e.max_model_len, e.page_size * ((e.num_pages - 1) // rows))  # tokens that each row may hold to its end
    if room < 4:
        raise ConfigError(
            f"{e.num_pages} pages of {e.page_size} tokens are too few for {rows} sequences to decode together"
        )
    length = max(
        1, min(room // 4, e.chunk_tokens * room // (4 * rows))
    )  # the last row begins before the first one ends
    for number in range(rows):
        params = SamplingParams(max_tokens=room - length, ignore_eos=True)
        core.handle(Command(StartLocal(Request(str(number), "", "", tuple(range(1, length + 1)), params))), 0.0)
    times = []
    while len(times) < HOST_STEPS:
        began = time.perf_counter()
        messages = core.handle(DeviceReady(), 0.0)
        if not messages:
            break  # every row has come to its end
        plan = messages[-1]
        assert isinstance(plan, StepPlan)
        middle = time.perf_counter()
        result = StepResult(
            plan.id, tuple(RowResult(r.sequence, tuple(Drawn(d.slot, 1) for d in r.draws)) for r in plan.rows)
        )
        resumed = time.perf_counter()
        core.handle(StepDone(result), 0.0)
        if len(plan.rows) == rows and all(r.decode for r in plan.rows):
            times.append(time.perf_counter() - resumed + middle - began)
    return statistics.median(times)


def _no_stop_strings(stop: tuple[str, ...]) -> StopProbe:
    raise AssertionError(f"no request here has stop strings, but {stop} came")
