"""One schedule with a log: what strikes, what the scheduler hears, what it says, and how each call ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from triptych.runtime.core.control import (
    Heartbeat,
    Reported,
    SchedulerCommand,
    SchedulerEvent,
    SchedulerTick,
    Submit,
    ToGateway,
    ToInstance,
)
from triptych.runtime.core.request import Request, SampleState
from triptych.runtime.simulation.faults import Fault, Kind
from triptych.runtime.simulation.gateway import Client
from triptych.runtime.simulation.run import Outcome, Watcher, run
from triptych.runtime.simulation.schedule import Schedule, generate
from triptych.runtime.simulation.world import World


def replay(seed: int, out: TextIO, kinds: Sequence[Kind] = tuple(Kind)) -> Outcome:
    """Run the schedule of `seed` with these kinds of faults, and print it."""
    return log(generate(seed, kinds), out)


def log(schedule: Schedule, out: TextIO) -> Outcome:
    """Run `schedule` and print what it consists of, what happens, and what is wrong in the end."""
    print(f"seed {schedule.seed}: {schedule.topology}, {schedule.router}, {schedule.queue_order}", file=out)
    for shape in schedule.instances:
        print(f"  {shape}", file=out)
    for arrival in schedule.arrivals:
        print(f"  {arrival.at:7.3f}  {_short(arrival.request)} of {arrival.request.gateway}", file=out)
    for fault in schedule.faults:
        print(f"  {fault}", file=out)
    watcher = _Log(out)
    outcome = run(schedule, watcher)
    for client in watcher.clients:
        shown = [len(line) for line in client.shown]
        status = "open" if client.status is None else client.status.name
        print(
            f"{client.ended:8.4f}  {client.request.id} {status} at attempt {client.attempts}, tokens {shown} {client.reason}",
            file=out,
        )
    for line in outcome.wrong:
        print(f"WRONG: {line}", file=out)
    print("passed" if outcome.passed else "failed", file=out)
    return outcome


class _Log(Watcher):
    """Prints what the scheduler hears and says."""

    def __init__(self, out: TextIO):
        self._out = out
        self._now = lambda: 0.0
        self.clients: list[Client] = []

    def started(self, world: World) -> None:
        self._now, self.clients = world.loop.now, world.clients

    def struck(self, fault: Fault) -> None:
        print(f"{self._now():8.4f}  ******** {fault}", file=self._out)

    def said(self, event: SchedulerEvent, commands: list[SchedulerCommand]) -> None:
        if commands or not isinstance(event, SchedulerTick | Heartbeat):
            print(f"{self._now():8.4f}  {_tell(event)}", file=self._out)
        for command in commands:
            print(f"             -> {_tell(command)}", file=self._out)


def _tell(value: SchedulerEvent | SchedulerCommand) -> str:
    match value:
        case Reported():
            return f"{value.ref.id}/{value.ref.epoch % 1000} reports {_short(value.report)}"
        case Submit():
            return f"Submit {_short(value.request)}"
        case ToInstance():
            return f"{value.ref.id}/{value.ref.epoch % 1000}: {_short(value.command)}"
        case ToGateway():
            return f"{value.gateway}: {_short(value.notice)}"
        case _:
            return _short(value)


def _short(value: object) -> str:
    """A value with its fields, but of requests and samples only what tells them apart."""
    match value:
        case Request():
            n = f" n={value.sampling.n}" if value.sampling.n > 1 else ""
            due = f" due {value.deadline:.3f}" if value.deadline is not None else ""
            size = f"{len(value.prompt)}+{value.sampling.max_tokens}"
            return f"{value.id}#{value.attempt} ({size}{n}{due})"
        case SampleState():
            return f"{len(value.outputs)}{'.' if value.finish else ''}"
        case tuple():
            return f"[{', '.join(map(_short, value))}]"
        case str() | int() | float() | None:
            return str(value)
        case _ if hasattr(value, "__dataclass_fields__"):
            skipped = {"times", "load", "loads", "capacity", "compatibility", "transports", "labels"}
            fields = [f"{k}={_short(v)}" for k, v in vars(value).items() if k not in skipped]
            return f"{type(value).__name__}({', '.join(fields)})"
        case _:
            return str(value)
