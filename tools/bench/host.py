"""`python -m triptych.tools.bench.host`: what the host does for a decode step, phase by phase, in CPU time of the one thread that does it. Needs no device.

The core, the packers and the reading of results are those of a served instance; programs are not called, so what it takes to call them with some hundreds of
arguments is missing (`bench-engine` has that in `pack_and_dispatch`). CPU time of the thread, because other processes share most machines.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role
from triptych.runtime.engine.batch import BatchPacker
from triptych.runtime.engine.config import EngineConfig, engine_config
from triptych.runtime.engine.draws import DrawPacker
from triptych.runtime.engine.results import PendingStep, read
from triptych.runtime.instance.messages import DeviceReady, StepDone
from triptych.runtime.instance.plan import StepPlan, StepResult
from triptych.tools.bench.engine.rig import decoding
from triptych.tools.reports import check_outputs

PHASES = ("plan", "pack rows", "pack draws", "read", "take results")
AHEAD = 2  # plans in flight, as in the device loop
WARM = 4  # steps that are not counted
T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table. Raises ConfigError for sizes that are not positive."""
    parser = argparse.ArgumentParser(description="what the host does for a decode step, without a device")
    parser.add_argument("--batches", default="1,32,256", help="sequences in the step (default 1,32,256)")
    parser.add_argument("--context", type=int, default=1024, help="tokens in each sequence (default 1024)")
    parser.add_argument("--steps", type=int, default=200, help="steps to time for each (default 200)")
    parser.add_argument("--page-size", type=int, default=16)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    args = parser.parse_args(argv)
    batches = [int(batch) for batch in args.batches.split(",") if batch.isdecimal()]
    if not batches or min(*batches, args.context, args.steps, args.page_size) < 1:
        raise ConfigError("--batches, --context, --steps and --page-size must be positive")
    check_outputs(args.json)
    found = {batch: measure(batch, args.context, args.steps, args.page_size) for batch in batches}
    print(f"microseconds of CPU time a decode step, medians of {args.steps}; context {args.context}")
    print(f"{'batch':>8}" + "".join(f"{phase:>14}" for phase in (*PHASES, "all")))
    for batch, phases in found.items():
        print(f"{batch:>8}" + "".join(f"{us:>14.0f}" for us in (*phases.values(), sum(phases.values()))))
    if args.json is not None:
        args.json.write_text(json.dumps({"context": args.context, "us": found}, indent=1) + "\n")
    return 0


def measure(batch: int, context: int, steps: int, page_size: int) -> dict[str, float]:
    """Microseconds of each phase of one step, medians."""
    last = context + WARM + steps + AHEAD
    pages = -(-(last + 1) // page_size)
    config = engine_config(
        num_pages=1 + batch * (pages + 1), max_num_seqs=batch, max_model_len=pages * page_size, chunk_tokens=page_size, page_size=page_size,
        kv_dtype="float32", roles=frozenset({Role.PREFILL, Role.DECODE}), prompt_logprobs=False,
    )  # fmt: skip
    engine = HostEngine(config)
    core = decoding(engine, batch, context, last - context).core  # pyright: ignore[reportArgumentType]
    waiting: list[Any] = []
    for number in range(WARM + steps):
        if number == WARM:
            engine.seconds = {phase: [] for phase in PHASES}
        while len(waiting) < AHEAD:
            plan = engine.timed("plan", lambda: core.handle(DeviceReady(), 0.0))[-1]
            assert isinstance(plan, StepPlan) and len(plan.rows) == batch
            waiting.append(engine.dispatch(plan))
        result = engine.collect(waiting.pop(0))
        engine.timed("take results", lambda: core.handle(StepDone(result), 0.0))  # noqa: B023 - called at once
    return {phase: statistics.median(seconds) * 1e6 for phase, seconds in engine.seconds.items()}


class HostEngine:
    """An engine's host half: packs what it is given, draws token 1, and keeps the seconds of each phase."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.seconds: dict[str, list[float]] = {phase: [] for phase in PHASES}
        self._rows, self._draws = BatchPacker(config), DrawPacker(config.buckets.draws, config.max_num_seqs)

    def timed(self, phase: str, job: Callable[[], T]) -> T:
        began = time.thread_time()
        done = job()
        self.seconds[phase].append(time.thread_time() - began)
        return done

    def dispatch(self, plan: StepPlan) -> PendingStep:
        for seat in plan.seats:
            self._draws.tables.seat(seat)
        self.timed("pack rows", lambda: self._rows.pack(plan))
        draws = self.timed("pack draws", lambda: self._draws.pack(plan))
        if draws is None:
            return PendingStep(plan, None)
        return PendingStep(plan, None, np.ones((draws.size, 1), np.int32), draws.logprobs)  # pyright: ignore[reportArgumentType]

    def collect(self, pending: PendingStep) -> StepResult:
        return self.timed("read", lambda: read(pending))


if __name__ == "__main__":
    raise SystemExit(main())
