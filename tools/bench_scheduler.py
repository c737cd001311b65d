"""`triptych bench-scheduler`: what one request costs the scheduler's core, and how that grows with the number of
instances.

One core, no network, no instances: the driver answers every command at once, as instances do that have room, and keeps
a steady number of requests decoding on each instance. Only processor time inside `Scheduler.handle` counts. Besides the
seven events of each request there are heartbeats with changed loads, one in `--beat-every` requests, because a heartbeat
updates the same indexes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

from triptych.runtime.core.control import (
    Failed,
    GatewayJoined,
    Heartbeat,
    InstanceLoad,
    Reported,
    SchedulerEvent,
    Submit,
    ToGateway,
    ToInstance,
    WorkerJoined,
)
from triptych.runtime.core.errors import ConfigError, Status
from triptych.runtime.core.handle import Handle
from triptych.runtime.core.instance import Capacity, Compatibility, InstanceInfo, InstanceRef, Load, Role
from triptych.runtime.core.request import PromptReport, Request
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.core.tasks import (
    Accepted,
    DecodeStarted,
    Granted,
    PrefillDone,
    ReserveDecode,
    Staged,
    StartDecode,
    StartLocal,
    StartPrefill,
    TaskEnded,
)
from triptych.runtime.core.topology import parse
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.policies.router import ROUTERS
from triptych.runtime.scheduler.scheduler import Scheduler
from triptych.tools.reports import check_outputs

GATEWAY, PROMPT = "gateway-0", tuple(range(64))
WORKER_INSTANCES = 8


@dataclass(frozen=True)
class Cost:
    """What was measured with `instances` instances; seconds are those inside the scheduler."""

    instances: int
    requests: int
    seconds: float
    join_seconds: float

    @property
    def microseconds(self) -> float:
        return self.seconds / self.requests * 1e6

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


class Driver:
    """A scheduler, and instances that are nothing but their answers."""

    def __init__(self, instances: int, router: str, prefill_share: float):
        prefill = max(1, round(instances * prefill_share))
        topology = parse(f"{prefill}P{max(1, instances - prefill)}D")
        self.scheduler = Scheduler(SchedulerConfig(max_queued=1 << 20, max_active=1 << 30), ROUTERS[router]())
        self.seconds = 0.0
        self._decode: deque[tuple[InstanceRef, InstanceRef, str]] = deque()
        self._prefill: dict[str, InstanceRef] = {}
        self._infos: list[InstanceInfo] = []
        self._serial = self._beats = 0
        self.say(GatewayJoined(GATEWAY))
        workers: dict[str, list[InstanceInfo]] = {}
        for number, spec in enumerate(topology.instances()):
            worker = f"worker-{number // WORKER_INSTANCES}"
            compatibility = Compatibility(1, "model", "bench", "any", 16, "any")
            capacity = Capacity(256, 100_000, 16, 8192)
            info = InstanceInfo(InstanceRef(spec.id, 1), worker, worker, spec.roles, capacity, compatibility)
            workers.setdefault(worker, []).append(info)
            self._infos.append(info)
        for worker, infos in workers.items():
            self.say(WorkerJoined(worker, tuple(infos)))

    def say(self, event: SchedulerEvent) -> None:
        """Feed one event, timed, and answer what comes back until nothing is left to say."""
        began = time.process_time()
        commands = self.scheduler.handle(event, self._serial * 1e-4)
        self.seconds += time.process_time() - began
        for command in commands:
            if isinstance(command, ToInstance):
                self._answer(command)
            elif isinstance(command, ToGateway) and isinstance(command.notice, Failed):
                raise ConfigError(f"the scheduler failed a request: {command.notice.reason}")

    def submit(self) -> None:
        self._serial += 1
        sampling = SamplingParams(max_tokens=100)
        self.say(Submit(Request(str(self._serial), GATEWAY, "model", PROMPT, sampling)))

    def finish(self) -> None:
        """The oldest request that decodes is done."""
        decode, prefill, request = self._decode.popleft()
        if prefill != decode:
            self.say(Reported(prefill, TaskEnded(request, Role.PREFILL, Status.OK)))
        self.say(Reported(decode, TaskEnded(request, Role.DECODE, Status.OK)))

    def beat(self) -> None:
        """The next instance reports another load."""
        self._beats += 1
        info = self._infos[self._beats % len(self._infos)]
        load = Load(self._beats % 7, 0, 0, 50_000 + self._beats % 1000, 100, 0)
        self.say(Heartbeat(info.worker, (InstanceLoad(info.ref, load),)))

    def _answer(self, sent: ToInstance) -> None:
        match sent.command:
            case ReserveDecode(request=request):
                self.say(Reported(sent.ref, Granted(request.id, 0)))
            case StartPrefill(request=request):
                self._prefill[request.id] = sent.ref
                self.say(Reported(sent.ref, Staged(request.id, Handle(sent.ref, "", 1, ""))))
                self.say(Reported(sent.ref, PrefillDone(request.id, PromptReport(len(PROMPT), 0), False)))
            case StartDecode(request=request):
                self.say(Reported(sent.ref, DecodeStarted(request)))
                self._decode.append((sent.ref, self._prefill.pop(request), request))
            case StartLocal(request=request):
                self.say(Reported(sent.ref, Accepted(request.id)))
                self._decode.append((sent.ref, sent.ref, request.id))


def measure(
    instances: int, requests: int, *, router: str, decoding: int, beat_every: int, prefill_share: float
) -> Cost:
    """`decoding` requests an instance are under way all the time; an instance beats, in turn, every `beat_every`
    requests."""
    driver = Driver(instances, router, prefill_share)
    joined, driver.seconds = driver.seconds, 0.0
    standing = decoding * instances
    for _ in range(standing):
        driver.submit()
    driver.seconds = 0.0
    for _ in range(requests):
        driver.submit()
        driver.finish()
        if driver._serial % beat_every == 0:
            driver.beat()
    return Cost(instances, requests, driver.seconds, joined)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--instances", default="10,100,1000,10000", metavar="LIST", help="cluster sizes (default 10,100,1000,10000)"
    )
    parser.add_argument("--requests", type=int, default=20_000, help="to measure at each size (default 20000)")
    parser.add_argument("--decoding", type=int, default=4, help="requests under way per instance (default 4)")
    parser.add_argument(
        "--beat-every", type=int, default=4, help="requests for each heartbeat with a new load (default 4)"
    )
    parser.add_argument("--prefill-share", type=float, default=0.25, help="of the instances (default 0.25)")
    parser.add_argument("--router", choices=tuple(ROUTERS), default="least-loaded")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="needs matplotlib")


def run(args: argparse.Namespace) -> int:
    try:
        sizes = [int(part) for part in args.instances.split(",")]
    except ValueError:
        raise ConfigError(f"--instances {args.instances!r} is not a list such as 10,100,1000") from None
    if min(*sizes, args.requests, args.decoding, args.beat_every, 2) < 1 or min(sizes) < 2:
        raise ConfigError("--requests, --decoding and --beat-every must be positive, --instances at least 2 each")
    if not 0 < args.prefill_share < 1:
        raise ConfigError(f"--prefill-share is {args.prefill_share}; expected more than 0 and less than 1")
    check_outputs(args.json, args.plot)
    if args.plot is not None:
        from triptych.tools import simulate_plot

        simulate_plot.check()
    costs = []
    for size in sizes:
        print(f"{size} instances ...", file=sys.stderr, flush=True)
        costs.append(
            measure(
                size, args.requests, router=args.router, decoding=args.decoding, beat_every=args.beat_every,
                prefill_share=args.prefill_share,
            )
        )  # fmt: skip
    print(table(costs))
    if args.json is not None:
        args.json.write_text(json.dumps({"router": args.router, "costs": [asdict(c) for c in costs]}, indent=1) + "\n")
    if args.plot is not None:
        plot(args.plot, costs)
    return 0


def table(costs: list[Cost]) -> str:
    """A line a size, and what a doubling of the cluster adds."""
    lines = [f"{'instances':>10}{'us/request':>12}{'requests/s':>12}{'us per log2(n)':>16}{'joining, s':>12}"]
    lines += [
        f"{c.instances:>10}{c.microseconds:>12.1f}{c.per_second:>12.0f}{c.microseconds / math.log2(c.instances):>16.1f}{c.join_seconds:>12.2f}"
        for c in costs
    ]
    return "\n".join(lines)


def plot(path: Path, costs: list[Cost]) -> None:
    """Cost against instances, with the logarithm through the first point."""
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    sizes = [c.instances for c in costs]
    axes.plot(sizes, [c.microseconds for c in costs], marker="o", label="measured")
    scale = costs[0].microseconds / math.log2(sizes[0])
    axes.plot(sizes, [scale * math.log2(n) for n in sizes], linestyle=":", label="log n through the first point")
    axes.axhline(200, color="grey", linestyle="--", label="5,000 requests a second")
    axes.set(xscale="log", xlabel="instances", ylabel="microseconds a request, one core", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
