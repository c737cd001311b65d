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
from dataclasses import asdict, dataclass, field
from pathlib import Path

import grpc

from triptych.runtime.client import AsyncClient
from triptych.runtime.core.errors import Status
from triptych.runtime.core.topology import parse
from triptych.tools.trials.deployment import Deployment, Log, deployed
from triptych.tools.trials.faults import Bounds, Fault, inflict
from triptych.tools.trials.load import Load, Outcome, kinds, learn

ROLES = ("prefill", "decode", "scheduler", "gateway")
RECOVERY_LIMIT = 120.0  # seconds after which a deployment that is not whole again never will be
LEAD = (0.3, 2.0)  # seconds of load before a fault, so that it meets requests at every stage
SETTLE = 2.0  # seconds of load after a recovery, before the pause
IDLE_LIMIT = 20.0  # seconds until nothing may be held with no request running
MAY_FAIL = {("gateway", Fault.KILL), ("gateway", Fault.PARTITION)}  # the client's own connection is what broke
COLUMNS = (
    "faults",
    "requests",
    "admitted",
    "completed",
    "failed",
    "hung",
    "lost",
    "duplicated",
    "wrong",
    "leaked",
    "recovery",
)


@dataclass
class Event:
    """One fault: to whom, when (time.monotonic), how long until the deployment was whole again (None: never), and what was held after it."""

    role: str
    fault: Fault
    victim: str
    began: float
    recovery: float | None = None
    held: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def ended(self) -> float:
        return self.began + (RECOVERY_LIMIT if self.recovery is None else self.recovery)


@dataclass(frozen=True)
class Row:
    """One line of the loss table. Lost, duplicated and wrong count tokens, leaked counts things held, recovery is the longest, in seconds."""

    role: str
    fault: str
    faults: int
    requests: int
    admitted: int
    completed: int
    failed: int
    hung: int
    lost: int
    duplicated: int
    wrong: int
    leaked: int
    recovery: float


@dataclass
class Report:
    """Everything that happened."""

    events: list[Event] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    restarts: dict[str, float] = field(default_factory=dict)

    def rows(self) -> list[Row]:
        """A line for each pair of role and fault that happened, and one for requests that met none."""
        met = [(outcome, met_by(outcome, self.events)) for outcome in self.outcomes]
        pairs = sorted({(event.role, event.fault) for event in self.events})
        found = [_row("-", "none", [], [outcome for outcome, event in met if event is None])]
        for role, fault in pairs:
            events = [event for event in self.events if (event.role, event.fault) == (role, fault)]
            found.append(_row(role, fault, events, [outcome for outcome, event in met if event in events]))
        return found

    @property
    def problems(self) -> list[str]:
        found = []
        for row in self.rows():
            where = f"{row.role} {row.fault}"
            for name in ("hung", "lost", "duplicated", "wrong", "leaked"):
                if count := getattr(row, name):
                    found.append(f"{where}: {count} {name}")
            if row.failed and (row.role, row.fault) not in MAY_FAIL:
                found.append(f"{where}: {row.failed} requests failed")
        found += [
            f"{e.victim} {e.fault}: not whole again after {RECOVERY_LIMIT:g} s"
            for e in self.events
            if e.recovery is None
        ]
        found += [f"{o.spec}: failed ({o.reason}), and so did its retries" for o in self.outcomes if o.retried is False]
        return found

    def table(self) -> str:
        lines = ["".join([f"{'process':<12}{'fault':<12}", *(f"{name:>11}" for name in COLUMNS)])]
        for row in self.rows():
            cells = [
                f"{getattr(row, name):>11.1f}" if name == "recovery" else f"{getattr(row, name):>11}"
                for name in COLUMNS
            ]
            lines.append("".join([f"{row.role:<12}{row.fault:<12}", *cells]))
        again = sum(outcome.attempts > 1 for outcome in self.outcomes)
        lines.append(f"\nrestart, seconds: {', '.join(f'{role} {s:.1f}' for role, s in self.restarts.items())}")
        lines.append(
            f"{len(self.outcomes)} requests, {again} completed after more than one attempt; {len(self.problems)} problems"
        )
        reasons = sorted(
            {
                f"{o.status.name if o.status else 'no end'}: {o.reason}"
                for o in self.outcomes
                if o.status is not Status.OK
            }
        )
        return "\n".join(
            [*lines, *(f"  {problem}" for problem in self.problems), *(f"  reason given: {r}" for r in reasons)]
        )


def met_by(outcome: Outcome, events: Sequence[Event]) -> Event | None:
    """The last fault that was not over when the request began, and had begun before it ended."""
    hits = [event for event in events if event.began <= outcome.ended and outcome.began <= event.ended]
    return hits[-1] if hits else None


def _row(role: str, fault: str, events: Sequence[Event], outcomes: Sequence[Outcome]) -> Row:
    return Row(
        role=role,
        fault=fault,
        faults=len(events),
        requests=len(outcomes),
        admitted=sum(o.admitted for o in outcomes),
        completed=sum(o.status is Status.OK for o in outcomes),
        failed=sum(o.status not in (Status.OK, None) for o in outcomes),
        hung=sum(o.status is None for o in outcomes),
        lost=sum(o.lost for o in outcomes),
        duplicated=sum(o.duplicated for o in outcomes),
        wrong=sum(o.wrong for o in outcomes),
        leaked=sum(sum(what.values()) or 1 for event in events for what in event.held.values()),
        recovery=max((event.ended - event.began for event in events), default=0.0),
    )


class Chaos:
    """Inflicts faults on `deployment` while `load` runs."""

    def __init__(self, deployment: Deployment, load: Load, report: Report, bounds: Bounds, instances: frozenset[str]):
        self._deployment = deployment
        self._load = load
        self._report = report
        self._bounds = bounds
        self._instances = instances

    async def run(self, seconds: float, rng: random.Random) -> None:
        """Measure how long each kind of process takes to come back, then inflict random faults for `seconds`."""
        for role in self._roles():
            event = await self._event(role, Fault.KILL, rng)
            self._report.restarts[role] = event.ended - event.began
        interval = 2.0 * max(self._report.restarts.values())
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = time.monotonic()
            await self._event(rng.choice(self._roles()), rng.choice(list(Fault)), rng)
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


async def trial(deployment: Deployment, topology: str, seconds: float, seed: int, clients: int) -> Report:
    """Learn what requests give, then inflict faults under load."""
    rng, report = random.Random(f"{seed}/chaos"), Report()
    async with deployment.client() as client:
        specs = await learn(client, kinds(random.Random(f"{seed}/kinds")))
    load = Load(deployment.client, specs, seed, report.outcomes)
    instances = frozenset(spec.id for spec in parse(topology).instances())
    running = asyncio.create_task(load.run(clients))
    load.resume()
    try:
        await Chaos(deployment, load, report, Bounds(), instances).run(seconds, rng)
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
    parser.add_argument("--topology", default="1P2D", help="of the deployment that is started (default 1P2D)")
    parser.add_argument(
        "--clients", type=int, default=6, help="clients that send one request after the other (default 6)"
    )
    parser.add_argument("--log", type=Path, help="file for what the deployment's processes say (default: stderr)")
    parser.add_argument("--json", type=Path, help="write the table, every fault and every failed request to this file")
    parser.add_argument("flags", nargs="*", metavar="-- FLAG", help="further flags of `triptych serve`")


def run(args: argparse.Namespace) -> int:
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    with Log(args.log) as log:
        async with deployed([f"--topology={args.topology}", *args.flags], log=log) as deployment:
            report = await trial(deployment, args.topology, args.seconds, args.seed, args.clients)
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
