"""The live half of `triptych fidelity`: a deployment whose workers each have a core of their own, and what is measured
on it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from triptych.runtime.client import AsyncClient
from triptych.runtime.core.errors import ConfigError
from triptych.tools import launch
from triptych.tools.bench import runner
from triptych.tools.bench.grpc_client import GrpcLoadClient
from triptych.tools.bench.metrics import Record
from triptych.tools.bench.workload import Item
from triptych.tools.config import ServeConfig
from triptych.tools.ports import ReservedPort
from triptych.tools.settings import dump
from triptych.tools.supervisor import Supervisor


@dataclass(frozen=True)
class Cores:
    """Which cores serve whom: those of each worker, and the others for scheduler, gateway and this process (all of them if
    there are no others)."""

    workers: tuple[tuple[int, ...], ...]
    rest: tuple[int, ...]

    @property
    def shared(self) -> bool:
        """Whether the rest has to share the workers' cores: then nothing about this machine is quiet."""
        return any(set(own) & set(self.rest) for own in self.workers)


def assign_cores(workers: int) -> Cores:
    """Raises ConfigError if the machine has fewer cores than workers, or cannot pin processes."""
    if not hasattr(os, "sched_setaffinity"):
        raise ConfigError("fidelity pins processes to cores, which this system cannot")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < workers:
        raise ConfigError(f"{workers} workers need a core each; this process may use {len(cores)}")
    return Cores(
        tuple((core,) for core in cores[len(cores) - workers :]), tuple(cores[: len(cores) - workers]) or tuple(cores)
    )


def all_cores(workers: int) -> Cores:
    """For workers that wait more than they compute."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    return Cores((cores,) * workers, cores)


@contextlib.contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """What is started inside runs on these cores only, from its first instruction: thread pools are sized by what they
    see."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def deployment(config: ServeConfig, cores: Cores) -> Iterator[str]:
    """The processes of `triptych serve`, pinned; yields the gateway's address."""
    device = launch.detect_device() if config.device == "auto" else config.device
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="triptych-fidelity-"))
        file = Path(folder) / "config.json"
        file.write_text(dump(config))
        door, control = (stack.enter_context(ReservedPort(config.host, 0)) for _ in range(2))
        front = (
            launch.scheduler_process(config, file, control.port, os.environ),
            launch.gateway_process(config, file, control.address, door.port, os.environ),
        )
        workers = launch.worker_processes(config, file, control.address, device, os.environ)
        lines: list[str] = []
        supervisor = stack.enter_context(Supervisor(log=lines.append))
        for group, places in ((front, [cores.rest] * len(front)), (workers, cores.workers)):
            for spec, place in zip(group, places, strict=True):
                with pinned(place):
                    supervisor.start(spec.name, spec.argv, spec.env)
            supervisor.wait_ready(config.startup_timeout)
        yield door.address


@dataclass(frozen=True)
class Probe:
    """One request as its client saw it, in seconds."""

    prompt: int
    output: int
    ttft: float
    gaps: tuple[float, ...]

    @property
    def after(self) -> float:
        """From the first token to the last."""
        return sum(self.gaps)


async def probe(client: AsyncClient, prompt: Sequence[int], output: int) -> Probe:
    """Send one request now."""
    began, arrivals = time.perf_counter(), list[float]()
    call = client.generate(
        token_ids=list(prompt), max_tokens=output, temperature=0.0, ignore_eos=True, cache_salt=secrets.token_hex(8)
    )
    async with call as stream:
        async for chunk in stream:
            arrivals += [time.perf_counter()] * len(chunk.tokens)
    gaps = tuple(b - a for a, b in pairwise(arrivals))
    return Probe(len(prompt), output, arrivals[0] - began, gaps)


async def probes(address: str, lengths: Sequence[int], output: int, together: int, repeats: int) -> list[list[Probe]]:
    """Groups of `together` requests sent at once, one group after the other, `repeats` of each length; the first group
    of each length warms up."""
    rng = random.Random(0)
    groups: list[list[Probe]] = []
    async with AsyncClient(address) as client:
        await client.wait_ready(30.0)
        vocab = (await client.model_info()).vocab_size
        for length in lengths:
            for number in range(repeats + 1):
                prompts = [[rng.randrange(vocab) for _ in range(length)] for _ in range(together)]
                group = list(await asyncio.gather(*(probe(client, prompt, output) for prompt in prompts)))
                if number:
                    groups.append(group)
    return groups


async def replay(address: str, shapes: Sequence[tuple[float, int, int]], seed: int) -> list[Record]:
    """Requests (arrival, prompt tokens, output tokens) of random tokens, open loop."""
    rng = random.Random(seed)
    async with AsyncClient(address) as client:
        info = await client.model_info()
        items = [
            Item(at, tuple(rng.choices(range(info.vocab_size), k=prompt)), output, True)
            for at, prompt, output in shapes
        ]
        load = GrpcLoadClient(client, share_prefixes=False, run=secrets.token_hex(4))
        return await runner.run(load, items)
