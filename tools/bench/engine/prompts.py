"""Prompts of which one token is wanted, one at a time: from the submission to the token, whole and in chunks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from triptych.runtime.engine.buckets import Demand
from triptych.runtime.engine.engine import Engine
from triptych.runtime.instance.plan import StepPlan
from triptych.tools.bench.engine.figures import Figure
from triptych.tools.bench.engine.loop import HostSeconds
from triptych.tools.bench.engine.rig import Rig, loop_over, random_prompt, request

AT_LEAST = 5  # prompts of each length: a median of fewer says little


def measure_prompts(rig: Rig, lengths: Sequence[int], chunk: int) -> Iterator[Figure]:
    """A figure for each length, whole, and another one for those that are longer than `chunk`; each is there before the next one is tried."""
    longest = max(lengths)
    chosen = [(length, size) for length in lengths for size in ([length] if length <= chunk else [length, chunk])]
    config = rig.config(
        sequences=2,
        longest=longest + 1,
        chunk=longest,
        tokens=longest,
        prefill_rows=1,
        demands=[demand for length, size in chosen for demand in chunk_demands(rig, length, size)],
    )
    engine, _ = rig.engine(config)
    for length, size in chosen:
        rig.tell(f"prompt of {length} tokens, {size} a step")
        yield _prompts(rig, engine, length, size)


def chunk_demands(rig: Rig, length: int, chunk: int) -> Iterator[Demand]:
    """The steps of a prompt."""
    for start in range(0, length, chunk):
        tokens = min(chunk, length - start)
        width = rig.pages(start + tokens)
        yield Demand(1, 0, 0, width) if tokens == 1 else Demand(0, 1, tokens, width, fresh=not start)


def _prompts(rig: Rig, engine: Engine, length: int, chunk: int) -> Figure:
    loop = loop_over(engine, chunk=chunk)
    times: list[float] = []
    plans: list[StepPlan] = []
    ends, number, host = time.perf_counter() + rig.seconds, 0, HostSeconds()
    while len(times) < AT_LEAST + 1 or time.perf_counter() < ends:
        prompt = random_prompt(rig.loaded.config.vocab_size, length, seed=number)
        plans, loop.host = [], HostSeconds()
        began = time.perf_counter()
        loop.submit(request(number, prompt, 1))
        while (step := loop.step()) is not None:
            plans.append(step.plan)
        times.append(time.perf_counter() - began)
        host = host.plus(loop.host) if number else host
        number += 1
    assert loop.finished == number, "a prompt did not end"
    works = tuple(rig.work.of(plan) for plan in plans)
    note = "whole" if chunk >= length else f"in chunks of {chunk}"
    return Figure("prefill", length, tuple(times[1:]), works, host.over(number - 1), note=note)
