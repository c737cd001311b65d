"""`triptych chaos`: faults in a deployment under load, one process at a time, and what became of every request.

Load are real clients whose tokens are known (load.py). One fault after the other is drawn from the seed; the next one comes when the deployment is whole again and at least
twice the longest restart, which is measured first, has passed. After each fault the load pauses once, and what is then held has leaked.

What is expected: nothing hangs, no token is lost, duplicated or wrong, nothing leaks. Only who loses its own connection, because its gateway is killed
or cut off, may see an error, and its retry must succeed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import grpc

from triptych.runtime.client import AsyncClient
from triptych.runtime.core.errors import ConfigError, Status
from triptych.runtime.core.topology import parse
from triptych.tools.reports import check_outputs
from triptych.tools.trials.deployment import Deployment
from triptych.tools.trials.faults import Bounds, Fault, inflict
from triptych.tools.trials.flags import add_arguments as add_trial_arguments
from triptych.tools.trials.flags import opened
from triptych.tools.trials.load import Load, kinds, learn
from triptych.tools.trials.losses import RECOVERY_LIMIT, Event, Report

ROLES = ("prefill", "decode", "scheduler", "gateway")
LEAD = (0.3, 2.0)  # seconds of load before a fault, so that it meets requests at every stage
SETTLE = 2.0  # seconds of load after a recovery, before the pause
IDLE_LIMIT = 20.0  # seconds until nothing may be held with no request running


class Chaos:
    """Inflicts faults on `deployment` while `load` runs."""

    def __init__(
        self,
        deployment: Deployment,
        load: Load,
        report: Report,
        bounds: Bounds,
        instances: frozenset[str],
        faults: Sequence[Fault],
    ):
        self._deployment = deployment
        self._load = load
        self._report = report
        self._bounds = bounds
        self._instances = instances
        self._faults = faults

    async def run(self, seconds: float, rng: random.Random) -> None:
        """Measure how long each kind of process takes to come back, then inflict random faults for `seconds`."""
        for role in self._roles():
            event = await self._event(role, Fault.KILL, rng)
            self._report.restarts[role] = event.ended - event.began
        interval = 2.0 * max(self._report.restarts.values())
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = time.monotonic()
            await self._event(rng.choice(self._roles()), rng.choice(self._faults), rng)
            await asyncio.sleep(max(0.0, began + interval - time.monotonic()))

    def _roles(self) -> list[str]:
        return [role for role in ROLES if self._victims(role)]

    def _victims(self, role: str) -> dict[str, int]:
        """Processes of a role: those of workers are named after their instances."""
        return {n: pid for n, pid in self._deployment.processes().items() if n == role or n.startswith(f"{role}-")}

    async def _event(self, role: str, fault: Fault, rng: random.Random) -> Event:
        await asyncio.sleep(rng.uniform(*LEAD))
        victims = self._victims(role)
        name = rng.choice(sorted(victims))
        event = Event(role, fault, name, time.monotonic())
        self._report.events.append(event)
        await inflict(fault, victims[name], self._bounds)
        event.recovery = await self._whole(name, victims[name] if fault is Fault.KILL else None, event.began)
        await asyncio.sleep(SETTLE)
        await self._load.pause()
        event.held = await self._deployment.wait_idle(IDLE_LIMIT)
        self._load.resume()
        return event

    async def _whole(self, name: str, old: int | None, began: float) -> float | None:
        """Seconds from `began` until every instance takes work, the gateway serves, and `name` runs (not as `old`)."""
        async with self._deployment.client() as client:
            while time.monotonic() < began + RECOVERY_LIMIT:
                if self._deployment.processes().get(name, old) != old and await self._serves(client):
                    return time.monotonic() - began
                await asyncio.sleep(0.1)
        return None

    async def _serves(self, client: AsyncClient) -> bool:
        try:
            instances = (await self._deployment.cluster()).instances
        except grpc.aio.AioRpcError:
            return False
        open_now = {one.info.ref.id for one in instances if one.state in ("open", "full")}
        return open_now >= self._instances and await client.ready()


async def trial(
    deployment: Deployment,
    topology: str,
    seconds: float,
    seed: int,
    clients: int,
    faults: Sequence[Fault] = tuple(Fault),
) -> Report:
    """Learn what requests give, then inflict faults under load."""
    rng, report = random.Random(f"{seed}/chaos"), Report()
    async with deployment.client() as client:
        specs = await learn(client, kinds(random.Random(f"{seed}/kinds")))
    load = Load(deployment.client, specs, seed, report.outcomes)
    instances = frozenset(spec.id for spec in parse(topology).instances())
    running = asyncio.create_task(load.run(clients))
    load.resume()
    try:
        await Chaos(deployment, load, report, Bounds(), instances, faults).run(seconds, rng)
    finally:
        load.stop.set()
        load.resume()
        await running
    return report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seconds", type=float, default=600.0, help="how long, after the restarts were measured (default 600)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of faults and requests")
    parser.add_argument(
        "--clients", type=int, default=6, help="clients that send one request after the other (default 6)"
    )
    parser.add_argument(
        "--faults", default=",".join(Fault), help=f"which, with commas between (default {','.join(Fault)})"
    )
    parser.add_argument("--json", type=Path, help="write the table, every fault and every failed request to this file")
    add_trial_arguments(parser, topology="1P2D")


def chosen(text: str) -> tuple[Fault, ...]:
    """The faults that --faults names. Raises ConfigError for one that there is not."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or set(names) - set(Fault):
        raise ConfigError(f"--faults is {text!r}; expected some of {', '.join(Fault)}, with commas between")
    return tuple(map(Fault, names))


def run(args: argparse.Namespace) -> int:
    check_outputs(args.log, args.json)
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    faults = chosen(args.faults)
    async with opened(args) as deployment:
        report = await trial(deployment, args.topology, args.seconds, args.seed, args.clients, faults)
    print(report.table())
    if args.json is not None:
        args.json.write_text(json.dumps(_as_data(report), indent=1))
    return 1 if report.problems else 0


def _as_data(report: Report) -> dict[str, object]:
    return {
        "rows": [asdict(row) for row in report.rows()],
        "restarts": report.restarts,
        "problems": report.problems,
        "faults": [asdict(event) for event in report.events],
        "bad": [asdict(outcome) for outcome in report.outcomes if outcome.status is not Status.OK or not outcome.exact],
    }
