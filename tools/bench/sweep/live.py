"""The live half: a deployment of this host under one candidate's settings, and what one load at one rate does to it.

The processes are those of `triptych serve`, started here, so that they end with this one whatever happens to it: a
context manager stops them, and their stdin closes if this process is killed. This process imports no jax: it would take memory of the GPUs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.client import AsyncClient
from triptych.runtime.core.errors import TriptychError
from triptych.tools import launch
from triptych.tools.bench import runner
from triptych.tools.bench.sweep import judge, prompts
from triptych.tools.bench.sweep.budget import Budget
from triptych.tools.bench.sweep.candidates import Candidate
from triptych.tools.bench.sweep.client import SweepClient
from triptych.tools.bench.sweep.loads import Load, Room, Sent, Source
from triptych.tools.bench.sweep.sweep import Plan, ProcessLostError
from triptych.tools.ports import ReservedPort
from triptych.tools.settings import dump
from triptych.tools.supervisor import Supervisor, describe_exit
from triptych.tools.trials.deployment import Deployment

STOP = 10.0  # seconds that the processes get to end, before they are killed
SETTLE = 5.0  # seconds in which an ended point's requests must have left the deployment
SLACK = 5.0  # seconds of a point beside its requests: drawing pictures, asking workers, the deadline's margin
TICK = 0.01  # seconds between looks at how late the event loop is
WARM = 4  # requests that go before a load, one after the other
WARM_OUTPUT = 8  # tokens of theirs

Log = Callable[[str], None]


@dataclass(frozen=True)
class Counters:
    """Sums of the workers' counters over all instances."""

    values: Mapping[str, int]

    def since(self, before: Counters, name: str) -> int:
        return self.values.get(name, 0) - before.values.get(name, 0)


class Running:
    """A deployment that is ready, as `sweep.run_sweep` measures it."""

    def __init__(
        self, supervisor: Supervisor, address: str, scheduler: str, ready_seconds: float, plan: Plan, budget: Budget
    ):
        self.ready_seconds = ready_seconds
        self._budget = budget
        self._supervisor, self._address, self._plan = supervisor, address, plan
        self._deployment = Deployment(address, scheduler)
        self._info, self._placeholder = asyncio.run(self._ask())
        special = [*self._info.eos_token_ids, *([] if self._placeholder is None else [self._placeholder])]
        ordinary = prompts.ordinary_tokens(self._info.vocab_size, special)
        self._tokens = prompts.Tokens(ordinary, self._placeholder)

    def open(self, load: Load) -> Source:
        """The load for this model, warmed up. Raises TriptychError if it cannot be sent."""
        return asyncio.run(self._open(load))

    def seconds(self, source: Source, rate: float) -> float:
        """The most that `measure` takes."""
        requests = self._requests(source, rate)
        return self._cut(source.load, requests) + SETTLE + SLACK

    def measure(self, source: Source, rate: float) -> judge.Point:
        """One point. Raises ProcessLostError if a process of the deployment ended."""
        point = asyncio.run(self._measure(source, rate))
        for child in self._supervisor.children:
            if not child.alive:
                lost = f"{child.name} ended: {describe_exit(child.exit_code or 0)}"
                raise ProcessLostError(f"{lost}; its last lines: {' | '.join(list(child.lines)[-3:])}")
        return point

    @property
    def _patience(self) -> float:
        """Seconds that answers before the first point may take."""
        return max(1.0, min(self._plan.patience, self._budget.left))

    def _requests(self, source: Source, rate: float) -> list[Sent]:
        return source.requests(rate, *self._plan.counts(rate))

    def _cut(self, load: Load, requests: list[Sent]) -> float:
        """Seconds after the start by which every request has met both objectives or missed one."""
        ttft, tpot = load.slo.ttft or 0.0, load.slo.tpot or 0.0
        return self._lag(load) + max(one.at + ttft + tpot * (one.output - 1) for one in requests)

    def _lag(self, load: Load) -> float:
        """Seconds that the load generator may be late."""
        return self._plan.most_lag or judge.most_lag(load.slo)

    async def _ask(self) -> tuple[pb.ModelInfo, int | None]:
        async with AsyncClient(self._address) as client:
            await client.wait_ready(self._patience)
            info = await client.model_info()
            if not info.media_placeholder:
                return info, None
            try:
                ids = await client.tokenize(info.media_placeholder, add_special_tokens=False)
            except TriptychError:  # without a tokenizer nobody can say where pictures belong
                return info, None
            return info, ids[0] if len(ids) == 1 else None

    async def _open(self, load: Load) -> Source:
        room = Room(self._info.max_model_len)
        async with AsyncClient(self._address) as client:
            if load.seen and self._placeholder is not None:
                room = replace(room, image_tokens=await self._image_tokens(client, load))
            source = Source(load, room, self._plan.seed)
            short = [replace(one, output=min(one.output, WARM_OUTPUT)) for one in source.requests(1.0, 0, WARM)]
            sent = self._items(source, short, "warm")
            load_client = SweepClient(client, secrets.token_hex(4), time.monotonic() + self._patience)
            await runner.warm_up(load_client, sent)
        return source

    async def _image_tokens(self, client: AsyncClient, load: Load) -> int:
        """Tokens that the model makes of one picture, as a prompt of one shows."""
        (item,) = prompts.items([Sent(0.0, 1, 1, 1)], self._tokens, load.size, "one")
        result = await client.complete(
            token_ids=list(item.prompt),
            images=list(item.images),
            max_tokens=1,
            temperature=0.0,
            timeout=self._patience,
        )
        return result.prompt_tokens - 1

    def _items(self, source: Source, requests: list[Sent], salt: object) -> list[prompts.PicturedItem]:
        return prompts.items(requests, self._tokens, source.load.size, f"{self._plan.seed}/{source.load.name}/{salt}")

    async def _measure(self, source: Source, rate: float) -> judge.Point:
        requests = self._requests(source, rate)
        sent = await asyncio.to_thread(self._items, source, requests, f"{rate:.6g}")
        warm, judged = self._plan.counts(rate)
        window = judge.Window(warm, warm / rate, judged / rate)
        async with AsyncClient(self._address) as client:
            await client.model_info()  # the connection is there before the first request is due
            before = await self._counters()
            start = time.monotonic()
            load = SweepClient(client, secrets.token_hex(4), start + self._cut(source.load, requests))
            lags: list[float] = []
            ticker = asyncio.create_task(_tick(lags))
            try:
                records = await runner.run(load, sent)
            finally:
                ticker.cancel()
            start = records[0].scheduled - sent[0].at
            point = judge.judge(rate, records, start, window, source.load.slo, self._lag(source.load), lags)
            await self._settle(client)
            after = await self._counters()
        if before is None or after is None:
            return point
        transfers = [timing.transfer for timing in load.timings if timing.kv_bytes]
        moved = judge.Moved(
            after.since(before, "kv_bytes_received"),
            after.since(before, "kv_pull_us") * 1e-6,
            after.since(before, "kv_pull_exposed_us") * 1e-6,
            after.since(before, "media_bytes_received"),
            statistics.median(transfers) if transfers else None,
        )
        compiled, preemptions = (after.since(before, name) for name in ("compiled_after_ready", "preemptions"))
        return replace(point, moved=moved, compiled=compiled, preemptions=preemptions)

    async def _counters(self) -> Counters | None:
        """None if a worker does not answer: that is not worth a point."""
        try:
            states = await self._deployment.states()
        except grpc.aio.AioRpcError:
            return None
        total: dict[str, int] = {}
        for state in states.values():
            for name, value in state.counters.items():
                total[name] = total.get(name, 0) + value
        return Counters(total)

    async def _settle(self, client: AsyncClient) -> None:
        """Wait until the point's requests have left, so that they are not in the next one's way."""
        until = time.monotonic() + SETTLE
        with contextlib.suppress(TriptychError):
            while time.monotonic() < until:
                loads = await client.loads()
                if not (loads.queued or loads.active or any(one.running or one.waiting for one in loads.instances)):
                    return
                await asyncio.sleep(0.1)


async def _tick(lags: list[float]) -> None:
    """How much later than asked the event loop ran, again and again."""
    while True:
        due = time.monotonic() + TICK
        await asyncio.sleep(TICK)
        lags.append(max(0.0, time.monotonic() - due))


def _stop(supervisor: Supervisor) -> None:
    """End the processes that were started here; at once if that is interrupted."""
    try:
        supervisor.stop(STOP)
    except KeyboardInterrupt:
        supervisor.kill()
        raise


@contextlib.contextmanager
def running(candidate: Candidate, budget: Budget, plan: Plan, log: Log) -> Iterator[Running]:
    """The candidate's deployment, ready, until the context is left.

    Raises:
        ConfigError: it cannot run here, for example for want of GPUs.
        ChildExitedError, StartupTimeoutError: it did not start, or not within its own limit and the budget.
    """
    config, began = candidate.config, time.monotonic()
    device = launch.detect_device() if config.device == "auto" else config.device
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="triptych-sweep-"))
        file = Path(folder) / "config.json"
        file.write_text(dump(config))
        door, control = (stack.enter_context(ReservedPort(config.host, 0)) for _ in range(2))
        front = (
            launch.scheduler_process(config, file, control.port, os.environ),
            launch.gateway_process(config, file, control.address, door.port, os.environ),
        )
        workers = launch.worker_processes(config, file, control.address, device, os.environ)
        supervisor = Supervisor(log=log)
        stack.callback(_stop, supervisor)
        for group in (front, workers):  # the gateway fetches the model, if need be, before the workers look for it
            for spec in group:
                supervisor.start(spec.name, spec.argv, spec.env)
            limit = min(config.startup_timeout, budget.left)
            supervisor.wait_ready(limit)
        yield Running(supervisor, door.address, control.address, time.monotonic() - began, plan, budget)
