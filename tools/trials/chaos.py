"""`triptych chaos`: faults in a deployment under load, one process at a time, and what became of every request.

Load are real clients whose tokens are known (load.py). One fault after the other is drawn from the seed, each kind once before any comes again; the next one comes when the
deployment is whole again and at least twice the longest restart, which is measured first, has passed. After each fault the load pauses once, and what is then held has leaked.

A topology with E serves the toy model that sees, and half of the load asks about pictures. A link, such as gateway/encode, can be cut alone: pixels go over that one, embeddings
over encode/prefill. What requests give is then learned from a deployment of one instance (EPD), which moves nothing.

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
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc

from triptych.runtime.client import AsyncClient
from triptych.runtime.core.errors import ConfigError, Status
from triptych.runtime.core.instance import Role
from triptych.runtime.core.topology import parse
from triptych.tools.reports import check_outputs
from triptych.tools.trials.deployment import Deployment
from triptych.tools.trials.faults import Bounds, Fault, inflict
from triptych.tools.trials.flags import add_arguments as add_trial_arguments
from triptych.tools.trials.flags import opened
from triptych.tools.trials.load import Load, Spec, kinds, learn
from triptych.tools.trials.losses import RECOVERY_LIMIT, Event, Report
from triptych.tools.trials.media_load import MODEL, fresh_kinds, media_kinds, sees

PLANES = ("scheduler", "gateway")
LEAD = (0.3, 2.0)  # seconds of load before a fault, so that it meets requests at every stage
SETTLE = 2.0  # seconds of load after a recovery, before the pause
IDLE_LIMIT = 20.0  # seconds until nothing may be held with no request running


def kind_of(process: str) -> str:
    """Processes of workers are named after their instances: encode-0 is an encode."""
    name, _, number = process.rpartition("-")
    return name if number.isdigit() else process


def roles_of(topology: str) -> tuple[str, ...]:
    """The kinds of process of a deployment with a process for each instance."""
    return tuple(dict.fromkeys(kind_of(spec.id) for spec in parse(topology).instances())) + PLANES


def links_of(topology: str) -> tuple[str, ...]:
    """Pairs of kinds of process between which pixels, embeddings or KV move: gateway/encode, encode/prefill, prefill/decode."""
    roles = {kind_of(spec.id): spec.roles for spec in parse(topology).instances()}
    stages = ((Role.ENCODE, Role.PREFILL), (Role.PREFILL, Role.DECODE))
    found = [f"gateway/{kind}" for kind, its in roles.items() if Role.ENCODE in its]
    for giver, taker in stages:
        for one, its in roles.items():
            found += [f"{one}/{other}" for other, theirs in roles.items() if giver in its and taker in theirs - its]
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Traffic:
    """Kinds of requests with what they give: some that are repeated, and some with pictures that are new when their turn comes."""

    known: Sequence[Spec]
    fresh: Sequence[Spec] = ()


async def learned(deployment: Deployment, topology: str, seed: int) -> Traffic:
    """What `deployment` gives to the requests of a seed; with pictures if `topology` has an E."""
    known, fresh = kinds(random.Random(f"{seed}/kinds")), list[Spec]()
    if sees(topology):
        known += media_kinds(random.Random(f"{seed}/media"))
        fresh = fresh_kinds(random.Random(f"{seed}/fresh"))
    async with deployment.client() as client:
        return Traffic(await learn(client, known), await learn(client, fresh))


class Chaos:
    """Inflicts faults on `deployment` while `load` runs. `victims` are kinds of process, and links between two of them, which can only be cut."""

    def __init__(
        self,
        deployment: Deployment,
        load: Load,
        report: Report,
        bounds: Bounds,
        instances: frozenset[str],
        victims: Sequence[str],
        faults: Sequence[Fault],
    ):
        self._deployment = deployment
        self._load = load
        self._report = report
        self._bounds = bounds
        self._instances = instances
        self._roles = [victim for victim in victims if "/" not in victim]
        self._pairs = [(role, fault) for role in self._roles for fault in faults]
        if Fault.PARTITION in faults:
            self._pairs += [(victim, Fault.PARTITION) for victim in victims if "/" in victim]

    async def run(self, seconds: float, rng: random.Random) -> None:
        """Measure how long each kind of process takes to come back, then inflict random faults for `seconds`."""
        for role in self._roles:
            event = await self._event(role, Fault.KILL, rng)
            self._report.restarts[role] = event.ended - event.began
        interval = 2.0 * max(self._report.restarts.values(), default=0.0)
        until = time.monotonic() + seconds
        left: list[tuple[str, Fault]] = []
        while time.monotonic() < until:
            began = time.monotonic()
            left = left or rng.sample(self._pairs, len(self._pairs))
            await self._event(*left.pop(), rng)
            await asyncio.sleep(max(0.0, began + interval - time.monotonic()))

    def _one_of(self, kind: str, rng: random.Random) -> tuple[str, int]:
        """Name and pid of a process of this kind. Raises ConfigError if none runs."""
        found = sorted(one for one in self._deployment.processes().items() if kind_of(one[0]) == kind)
        if not found:
            raise ConfigError(f"no process of the deployment is a {kind}; chaos needs one for each instance")
        return rng.choice(found)

    async def _event(self, role: str, fault: Fault, rng: random.Random) -> Event:
        await asyncio.sleep(rng.uniform(*LEAD))
        (name, pid), *peers = [self._one_of(kind, rng) for kind in role.split("/")]
        event = Event(role, fault, "/".join([name, *(peer for peer, _ in peers)]), time.monotonic())
        self._report.events.append(event)
        await inflict(fault, pid, self._bounds, peers[0][1] if peers else None)
        event.recovery = await self._whole(name, pid if fault is Fault.KILL else None, event.began)
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
    victims: Sequence[str] = (),
    traffic: Traffic | None = None,
) -> Report:
    """Inflict faults under load. `victims`: all there are, unless given. `traffic`: learned from the deployment itself, unless given."""
    rng, report = random.Random(f"{seed}/chaos"), Report()
    victims = victims or (*roles_of(topology), *links_of(topology))
    traffic = traffic or await learned(deployment, topology, seed)
    load = Load(deployment.client, traffic.known, seed, report.outcomes, traffic.fresh)
    instances = frozenset(spec.id for spec in parse(topology).instances())
    running = asyncio.create_task(load.run(clients))
    load.resume()
    try:
        await Chaos(deployment, load, report, Bounds(), instances, victims, faults).run(seconds, rng)
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
    parser.add_argument(
        "--victims",
        default="",
        help="kinds of process and links, with commas between, such as encode,gateway/encode (default all)",
    )
    parser.add_argument("--json", type=Path, help="write the table, every fault and every failed request to this file")
    add_trial_arguments(parser, topology="1P2D")


def chosen(text: str) -> tuple[Fault, ...]:
    """The faults that --faults names. Raises ConfigError for one that there is not."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or set(names) - set(Fault):
        raise ConfigError(f"--faults is {text!r}; expected some of {', '.join(Fault)}, with commas between")
    return tuple(map(Fault, names))


def aimed(text: str, topology: str) -> tuple[str, ...]:
    """The victims that --victims names. Raises ConfigError for one that there is not."""
    there = (*roles_of(topology), *links_of(topology))
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if set(names) - set(there):
        raise ConfigError(f"--victims is {text!r}; expected some of {', '.join(there)}, with commas between")
    return names


def run(args: argparse.Namespace) -> int:
    check_outputs(args.log, args.json)
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    faults, victims, traffic = chosen(args.faults), aimed(args.victims, args.topology), None
    model = MODEL if sees(args.topology) else ()
    if model:
        whole = argparse.Namespace(**{**vars(args), "topology": "EPD"})
        async with opened(whole, *model) as deployment:
            traffic = await learned(deployment, args.topology, args.seed)
    async with opened(args, *model) as deployment:
        report = await trial(deployment, args.topology, args.seconds, args.seed, args.clients, faults, victims, traffic)
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
