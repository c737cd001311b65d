"""Decode steps by batch, and steps that mix decodes with a prompt's chunk.

Steps are timed in windows: the intervals of single ones would flatter (see tools/bench/floor.py). Prompts of sequences that decode are never computed: what
their pages hold does not matter, and every round begins at the same context.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence

import jax

from triptych.runtime.engine.buckets import Demand
from triptych.runtime.engine.engine import Engine
from triptych.runtime.engine.results import PendingStep
from triptych.runtime.instance.plan import StepPlan
from triptych.tools.bench.engine.figures import Figure
from triptych.tools.bench.engine.loop import EngineLoop, HostSeconds, Step
from triptych.tools.bench.engine.rig import Rig, decoding, random_prompt, request
from triptych.tools.bench.engine.work import Work
from triptych.tools.bench.floor import decode_plan

WINDOW = 4  # steps a window
ROUND = 64  # timed steps before the sequences begin anew, so that contexts stay near what is asked for
LONGEST_ROUND = ROUND + 2 * WINDOW  # and those that warm up, and those in flight at the end
QUEUED = 16  # steps dispatched without reading any
AT_LEAST = 3  # windows: a median of fewer says little
PROMPTS = 4  # that wait beside mixed steps, so that each has its chunk


def measure_decode(rig: Rig, batches: Sequence[int], context: int) -> Iterator[Figure]:
    """A figure for each batch, at about `context` tokens a sequence; each is there before the next one is tried."""
    engine = decode_engine(rig, batches, context)
    for batch in batches:
        rig.tell(f"decode, batch {batch}")
        yield _decode(rig, engine, batch, context)


def decode_engine(rig: Rig, batches: Sequence[int], context: int) -> Engine:
    """With the programs that decode steps of these batches choose in rounds at about `context` tokens a sequence."""
    most, last = max(batches), first_context(context) + LONGEST_ROUND
    widths = range(rig.pages(first_context(context)), rig.pages(last) + 1)
    config = rig.config(
        sequences=most,
        longest=last,
        chunk=rig.page_size,
        tokens=most * rig.pages(last) * rig.page_size,
        demands=[Demand(batch, 0, 0, width) for batch in batches for width in widths],
    )
    engine, _ = rig.engine(config)
    return engine


def first_context(context: int) -> int:
    """Prompt tokens of a round whose steps are at `context` in the middle."""
    return max(1, context - ROUND // 2)


def _decode(rig: Rig, engine: Engine, batch: int, context: int) -> Figure:
    def begin() -> tuple[EngineLoop, Callable[[], Step | None]]:
        loop = decoding(engine, batch, first_context(context), LONGEST_ROUND)
        return loop, loop.step

    times, host, middle = _rounds(begin, rig.seconds)
    return Figure("decode", batch, times, (rig.work.of(middle),), host, queued_step(engine, batch, context))


def measure_mixed(rig: Rig, decodes: int, chunk: int, context: int) -> list[Figure]:
    """Steps of `decodes` sequences that decode and a fresh prompt of `chunk` tokens. The floor is that of both, one after the other."""
    slots, last = decodes + PROMPTS, first_context(context) + LONGEST_ROUND
    widths = range(rig.pages(first_context(context)), rig.pages(last) + 1)
    config = rig.config(
        sequences=slots,
        longest=max(last, chunk + 1),
        chunk=chunk,
        tokens=decodes * rig.pages(last) * rig.page_size + PROMPTS * (chunk + rig.page_size),
        demands=[Demand(decodes, 1, chunk, width) for width in widths],
    )
    engine, _ = rig.engine(config)
    rig.tell(f"mixed, {decodes} decodes and a chunk of {chunk}")
    prompt = random_prompt(rig.loaded.config.vocab_size, chunk, seed=1)

    def begin() -> tuple[EngineLoop, Callable[[], Step | None]]:
        loop = decoding(engine, decodes, first_context(context), LONGEST_ROUND, waiting=PROMPTS)
        numbers = itertools.count()

        def step() -> Step | None:
            while loop.submitted - loop.finished - decodes < PROMPTS:
                loop.submit(request(decodes + next(numbers), prompt, 1))
            done = loop.step()
            if done is not None and len(done.plan.rows) != decodes + 1:
                raise AssertionError(f"a step of {len(done.plan.rows)} rows; expected {decodes} decodes and a chunk")
            return done

        return loop, step

    times, host, middle = _rounds(begin, rig.seconds)
    return [Figure("mixed", decodes, times, _halves(rig, middle), host, note=f"and a chunk of {chunk}")]


def _rounds(
    begin: Callable[[], tuple[EngineLoop, Callable[[], Step | None]]], seconds: float
) -> tuple[tuple[float, ...], HostSeconds, StepPlan]:
    """(seconds a step in windows, the host's of a step, the plan of a step in the middle) of rounds for about `seconds`."""
    ends = time.perf_counter() + seconds
    windows: list[float] = []
    host, steps, middle = HostSeconds(), 0, None
    while middle is None or (len(windows) < AT_LEAST or time.perf_counter() < ends):
        loop, step = begin()
        seen: list[Step] = []
        for number in range(1, ROUND + WINDOW + 1):
            done = step()
            assert done is not None, "sequences ended before the round did"
            seen.append(done)
            if number == WINDOW:
                loop.host = HostSeconds()  # what came before warmed up
            elif number % WINDOW == 0:
                windows.append((seen[-1].at - seen[-1 - WINDOW].at) / WINDOW)
                if done.at > ends and len(windows) >= AT_LEAST:
                    break
        host, steps, middle = host.plus(loop.host), steps + len(seen) - WINDOW, middle or seen[len(seen) // 2].plan
        loop.drain()
    return tuple(windows), host.over(steps), middle


def _halves(rig: Rig, plan: StepPlan) -> tuple[Work, Work]:
    """The work of a mixed step's decodes and of its chunk, each as a step of its own."""
    decode = [(row.start, row.length) for row in plan.rows if row.decode]
    chunk = [(row.start, row.length) for row in plan.rows if not row.decode]
    return rig.work.of_rows(decode, len(decode)), rig.work.of_rows(chunk, 1)


def queued_step(engine: Engine, batch: int, context: int) -> float:
    """Seconds a decode step when many are dispatched before any is read: the device's time, or the host's to pack and dispatch if that is longer."""
    first, later = (decode_plan(number, batch, context, engine.config.page_size) for number in (0, 1))
    last, best = engine.dispatch(first), float("inf")
    for _ in range(3):
        engine.collect(last)
        began = time.perf_counter()
        for _ in range(QUEUED):
            last = engine.dispatch(later)
        assert isinstance(last, PendingStep)
        jax.block_until_ready(last.draws)
        best = min(best, (time.perf_counter() - began) / QUEUED)
    return best
