"""`triptych pressure`: prefill all but stands still while clients go on asking about new pictures; memory before it must level off.

Prefill is slowed down from outside: its process runs for a share of every PERIOD and is stopped for the rest, always shorter than the heartbeat timeout, so that nobody gives it
up. Then its media pool fills, what encode instances have staged is not pulled, their pools fill, they encode no more, pixels wait on their shelves and at the gateway, and
the gateway refuses what is beyond its bounds. When prefill runs freely again, everything must complete with the tokens that a deployment of one instance gives.

It also tells what weights and pools take on the devices of each instance, beside those of the one instance.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import grpc

from triptych.runtime.core.errors import ConfigError, Status
from triptych.runtime.core.instance import Role
from triptych.runtime.core.topology import parse
from triptych.tools.reports import check_outputs
from triptych.tools.trials.deployment import Deployment
from triptych.tools.trials.flags import add_arguments as add_trial_arguments
from triptych.tools.trials.flags import opened
from triptych.tools.trials.levelling import Finding, Holding, Reading, device_table, judged, series
from triptych.tools.trials.load import Spec, learn, send
from triptych.tools.trials.media_load import MODEL, fresh_kinds
from triptych.tools.trials.scrape import free_ports, scrape
from triptych.tools.trials.watch import look

FLAGS = (
    *MODEL,
    "--media-pages=9",
    "--media-memory=4KiB",
    "--max-num-seqs=16",
    "--max-in-flight=40",
    "--heartbeat-timeout=10",
)
"""Small pools: 8 pictures in a media pool and five on a shelf, for 16 prompts that may be under way; and fewer open requests than there are clients."""

PERIOD = 2.0  # seconds; its stopped part must stay well below the heartbeat timeout
FLOW = 5.0  # seconds of load before prefill is slowed down
EVERY = 0.5  # seconds between readings
PATIENCE = 120.0  # seconds after which what has not completed never will
AGAIN = (0.2, 0.6)  # seconds until a refused request is sent again


@dataclass
class Tally:
    """What became of the requests so far."""

    completed: int = 0
    refused: int = 0
    failures: Counter[str] = field(default_factory=Counter)


class Crowd:
    """`clients` that send one request after the other, each with new pictures, and again what is refused for want of room, until `stop` is set."""

    def __init__(self, deployment: Deployment, specs: Sequence[Spec], clients: int):
        self._deployment, self._clients = deployment, clients
        self._turns: Iterator[Spec] = itertools.cycle(specs)
        self.tally, self.stop = Tally(), asyncio.Event()

    async def run(self) -> None:
        async with self._deployment.client() as client:
            await asyncio.gather(*(self._one(client, random.Random(number)) for number in range(self._clients)))

    async def _one(self, client: object, rng: random.Random) -> None:
        while not self.stop.is_set():
            spec = next(self._turns)
            while (outcome := await send(client, spec)).status is Status.RESOURCE_EXHAUSTED:  # type: ignore[arg-type]
                self.tally.refused += 1
                await asyncio.sleep(rng.uniform(*AGAIN))
            if outcome.status is Status.OK and outcome.exact:
                self.tally.completed += 1
            else:
                self.tally.failures[outcome.reason or "other tokens than one instance gives"] += 1


class Observer:
    """Takes readings of the encode instances and the gateway of a deployment."""

    def __init__(self, deployment: Deployment, encoders: frozenset[str], gateway_port: int, tally: Tally):
        self._deployment, self._encoders = deployment, encoders
        self._port, self._tally = gateway_port, tally
        self._began = time.monotonic()
        self.phase = "free"
        self.readings: list[Reading] = []

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            with suppress(OSError, grpc.aio.AioRpcError):  # one that is too busy to answer is asked again
                self.readings.append(await self._read())
            await asyncio.sleep(EVERY)

    async def _read(self) -> Reading:
        pids = self._deployment.processes()
        states = await self._deployment.states(self._encoders)
        gateway = await scrape(self._port)
        held = [state.resources for state in states.values()]
        memory = {name: sample.rss for name, pid in pids.items() if (sample := look(pid)) is not None}
        return Reading(
            seconds=time.monotonic() - self._began,
            phase=self.phase,
            pages_held=sum(one["media_pages_held"] for one in held),
            pages=sum(one["media_pages_total"] for one in held),
            shelf_bytes=sum(one["shelf_bytes"] for one in held),
            encoded=sum(state.counters["encoded_items"] for state in states.values()),
            encode_rss=sum(memory.get(name, 0) for name in self._encoders),
            gateway_held=int(gateway["triptych_gateway_media_held_bytes"]),
            gateway_pushes=int(gateway["triptych_gateway_media_pushes"]),
            gateway_rss=memory.get("gateway", 0),
            open=int(gateway["triptych_requests_open"]),
            completed=self._tally.completed,
            refused=self._tally.refused,
        )


@asynccontextmanager
async def slowed(pids: Sequence[int], share: float) -> AsyncIterator[None]:
    """Inside, these processes run for `share` of the time (0: not at all)."""

    async def stutter() -> None:
        while True:
            _tell(pids, signal.SIGSTOP)
            await asyncio.sleep(PERIOD * (1 - share))
            if share:
                _tell(pids, signal.SIGCONT)
                await asyncio.sleep(PERIOD * share)

    task = asyncio.create_task(stutter())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        _tell(pids, signal.SIGCONT)


def _tell(pids: Sequence[int], signum: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signum)


async def trial(
    deployment: Deployment, topology: str, specs: Sequence[Spec], seconds: float, share: float, clients: int, port: int
) -> Finding:
    """Free load, then `seconds` of prefill at `share` of its speed, then free again until all has completed."""
    roles = {spec.id: spec.roles for spec in parse(topology).instances()}
    encoders = frozenset(name for name, its in roles.items() if Role.ENCODE in its)
    if any(Role.PREFILL in roles[name] for name in encoders) or not encoders:
        raise ConfigError(f"pressure needs encode instances that do nothing else; topology {topology} has none")
    pids = deployment.processes()
    before = [pids[name] for name, its in roles.items() if Role.PREFILL in its]
    crowd = Crowd(deployment, specs, clients)
    observer = Observer(deployment, encoders, port, crowd.tally)
    watching, running = asyncio.create_task(observer.run()), asyncio.create_task(crowd.run())
    try:
        await asyncio.sleep(FLOW)
        observer.phase = "slow"
        async with slowed(before, share):
            await asyncio.sleep(seconds)
        observer.phase = "after"
        crowd.stop.set()
        done, _ = await asyncio.wait([running], timeout=PATIENCE)
    finally:
        for task in (watching, running):
            task.cancel()
        await asyncio.gather(watching, running, return_exceptions=True)
    return Finding(observer.readings, dict(crowd.tally.failures), bool(done), await deployment.wait_idle())


async def holdings(deployment: Deployment) -> list[Holding]:
    """Device bytes of every instance, and the resident memory of its process."""
    pids = deployment.processes()
    alone = pids.get("worker", 0)  # what serve calls the process of all instances
    return [
        Holding(
            name,
            "+".join(sorted(state.info.roles)),
            *(state.resources[f"device_{what}_bytes"] for what in ("decoder", "encoder", "kv_pool", "media_pool")),
            rss=0 if (sample := look(pids.get(name, alone))) is None else sample.rss,
        )
        for name, state in sorted((await deployment.states()).items())
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=60.0, help="how long prefill is slow (default 60)")
    parser.add_argument("--share", type=float, default=0.05, help="of the time that prefill runs then (default 0.05)")
    parser.add_argument("--clients", type=int, default=60, help="clients that send at once (default 60)")
    parser.add_argument(
        "--requests", type=int, default=200, help="with pictures of their own, before they begin again (default 200)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all pictures")
    parser.add_argument("--json", type=Path, help="write readings and device bytes to this file")
    add_trial_arguments(parser, topology="1E1P1D")


def run(args: argparse.Namespace) -> int:
    check_outputs(args.log, args.json)
    if not 0 <= args.share <= 1:
        raise ConfigError(f"--share is {args.share}; expected a share of the time, 0 to 1")
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    whole = argparse.Namespace(**{**vars(args), "topology": "EPD"})
    async with opened(whole, *FLAGS) as deployment, deployment.client() as client:
        model = await client.model_info()
        kinds = fresh_kinds(random.Random(f"{args.seed}/pressure"), args.requests, model.media_placeholder)
        specs, held = await learn(client, kinds), await holdings(deployment)
    port = free_ports(2 + len(parse(args.topology).instances()))
    async with opened(args, *FLAGS, f"--metrics-port={port}") as deployment:
        found = await trial(deployment, args.topology, specs, args.seconds, args.share, args.clients, port + 1)
        held += await holdings(deployment)
    problems = judged(found)
    print("\n\n".join([series(found.readings), device_table(held), f"{len(problems)} problems"]))
    print("\n".join(f"  {problem}" for problem in problems))
    if args.json is not None:
        data = {"readings": found.readings, "devices": held}
        args.json.write_text(json.dumps({k: [asdict(one) for one in v] for k, v in data.items()}, indent=1) + "\n")
    return 1 if problems else 0
