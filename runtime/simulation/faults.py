"""What can go wrong, when, and to whom: fault schedules as plain values that are applied to a world.

A schedule is generated from a seed or written by hand (a property test shrinks it). Whatever ends by itself does so after its `seconds`; at the end
of a schedule `lift` ends all the rest, except deaths and cuts that are for good.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from triptych.runtime.core.control import DrainEnded, DrainRequested, SchedulerCommand, SchedulerEvent
from triptych.runtime.core.instance import Role
from triptych.runtime.simulation.events import Process
from triptych.runtime.simulation.moments import SUBJECT, Moment, Subject, told
from triptych.runtime.simulation.worker import SimWorker
from triptych.runtime.simulation.world import SCHEDULER, World


class Kind(StrEnum):
    """Kinds of faults; `target` and `other` of a Fault say to what they happen."""

    KILL = "kill"  # a process gets SIGKILL, and is started again after `seconds`
    VANISH = "vanish"  # its host loses power: no connection is closed; started again after `seconds`
    PAUSE = "pause"  # SIGSTOP, and SIGCONT after `seconds`
    CUT = "cut"  # no packet passes between two hosts for `seconds`
    ISOLATE = "isolate"  # no packet passes between a host and all others for `seconds`
    RESET = "reset"  # all connections of two hosts are reset
    SLOW = "slow"  # everything between two hosts takes 30 times as long for `seconds`
    ENGINE = "engine"  # a device program of an instance fails: its pool is lost, its process lives
    CORRUPT = "corrupt"  # the next KV that an instance sends arrives damaged
    REPEAT = "repeat"  # the subscription of a gateway (`other`) to a worker is reset, and its last tokens come again on the next
    TERM = "term"  # a process gets SIGTERM, says good-bye and ends; started again after `seconds`
    DRAIN = "drain"  # an operator has an instance take on roles ("decode+prefill") or, if `other` is empty, leave; its worker is back after `seconds`
    FORCE = "force"  # DRAIN, even of the last instance of a role
    LEAVE = "leave"  # the client of a request goes away


FOR_GOOD = 1e9  # seconds; longer than any schedule: the process is not started again

SLOWNESS = 30.0  # a pull then takes seconds, and a message nearly as long as silence may


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        at: when it begins: seconds since the start or, if it waits for a moment, since that.
        target: a process, an instance (ENGINE, CORRUPT, DRAIN, FORCE) or a request (LEAVE), or SUBJECT: what the moment is about.
        other: the second host of a link, or roles (DRAIN, FORCE).
        seconds: how long it lasts.
        when: the moment that it waits for, if it does.
    """

    kind: Kind
    at: float
    target: str
    other: str = ""
    seconds: float = 0.0
    when: Moment | None = None

    def __str__(self) -> str:
        where = f"{self.target} - {self.other}" if self.other else self.target
        span = "" if not self.seconds else " for good" if self.seconds >= FOR_GOOD else f" for {self.seconds:.3f} s"
        after = "" if self.when is None else f" after {self.when}"
        return f"{self.at:7.3f}{after}  {self.kind} {where}{span}"


class Weather:
    """Applies faults to a world, and ends them. `struck` are those that have begun, with their targets' names."""

    def __init__(self, world: World, on_strike: Callable[[Fault], None]):
        self.struck: list[Fault] = []
        self._on_strike = on_strike
        self._world = world
        self._over = False
        self._awaited: dict[Moment, list[Fault]] = {}
        self._counts: Counter[str] = Counter()
        self._cuts: dict[tuple[str, str], int] = {}
        self._pauses: dict[Process, int] = {}
        self._slow: dict[tuple[str, str], int] = {}
        self._drains: dict[str, Fault] = {}  # by ticket
        self._dead_for_good: set[str] = set()
        self._cut_for_good: set[tuple[str, str]] = set()

    def forecast(self, fault: Fault) -> None:
        """Have `fault` happen when it is due."""
        if fault.when is None:
            self._world.loop.at(fault.at, None, self._strike, fault)
        else:
            self._awaited.setdefault(fault.when, []).append(fault)

    def witness(self, event: SchedulerEvent, commands: list[SchedulerCommand]) -> None:
        """Let the faults happen that wait for this."""
        if self._over:
            return
        for command in commands if self._drains else ():
            if isinstance(command, DrainEnded):
                fault = self._drains[command.ticket]
                self._world.loop.after(fault.seconds, None, self._revive, self._world.shape(fault.target).worker)
        if not self._awaited:
            return
        for name, subject in told(event, commands, lambda instance: self._world.shape(instance).worker):
            self._counts[name] += 1
            for fault in self._awaited.pop(Moment(name, self._counts[name]), ()):
                self._world.loop.after(fault.at, None, self._strike, _about(fault, subject))

    def lift(self) -> None:
        """Every fault that is not for good ends now, and none begins any more."""
        self._over = True
        world = self._world
        for pair in list(self._cuts):
            if pair not in self._cut_for_good:
                world.network.heal(*pair)
        for pair in list(self._slow):
            world.network.slow(*pair, 1.0)
        for process in list(self._pauses):
            process.proceed()
        for process in list(world.processes.values()):
            if not process.alive and process.name not in self._dead_for_good:
                world.spawn(process.name)
        self._cuts.clear()
        self._slow.clear()
        self._pauses.clear()
        self.restore()

    def restore(self) -> None:
        """If nobody is left for a role after what operators did, whoever has left or changed starts again as it was configured."""
        world = self._world
        if frozenset().union(*(shape.roles for shape in world.config.instances)) <= {
            role for worker in world.workers for i in worker.instances.values() for role in i.info.roles
        }:
            return
        for name in world.config.workers:
            worker = world.processes.get(name)
            if isinstance(worker, SimWorker) and worker.alive and _changed(world, worker):
                world.kill(name)
            self._revive(name)

    # ---- beginnings

    def _strike(self, fault: Fault) -> None:
        world = self._world
        pair = (fault.target, fault.other)
        if self._over or not fault.target or fault.target == fault.other:
            return
        self.struck.append(fault)
        self._on_strike(fault)
        match fault.kind:
            case Kind.KILL | Kind.VANISH | Kind.TERM:
                if fault.target in world.processes:
                    ways = {Kind.KILL: world.kill, Kind.VANISH: world.vanish, Kind.TERM: world.terminate}
                    ways[fault.kind](fault.target)
                    if fault.seconds >= FOR_GOOD:
                        self._dead_for_good.add(fault.target)
                    else:
                        world.loop.after(fault.seconds, None, self._revive, fault.target)
            case Kind.PAUSE:
                process = world.processes.get(fault.target)
                if process is not None and process.alive:
                    self._pauses[process] = self._pauses.get(process, 0) + 1
                    world.pause(fault.target)
                    world.loop.after(fault.seconds, None, self._proceed, process)
            case Kind.CUT:
                self._cut(pair, fault.seconds)
            case Kind.ISOLATE:
                for other in (SCHEDULER, *world.config.gateways, *world.config.workers):
                    if other != fault.target:
                        self._cut((fault.target, other), fault.seconds)
            case Kind.SLOW:
                self._slow[pair] = self._slow.get(pair, 0) + 1
                world.network.slow(*pair, SLOWNESS)
                world.loop.after(fault.seconds, None, self._hurry, pair)
            case Kind.RESET:
                world.network.reset(*pair)
            case Kind.ENGINE | Kind.CORRUPT:
                self._hit_instance(fault)
            case Kind.REPEAT:
                worker = world.processes.get(fault.target)
                if isinstance(worker, SimWorker):
                    worker.repeat(fault.other)
                    world.network.reset(*pair)
            case Kind.DRAIN | Kind.FORCE:
                self._drain(fault)
            case Kind.LEAVE:
                for client in world.clients:
                    if client.request.id == fault.target:
                        world.leave_at(world.loop.now(), client)

    def _cut(self, pair: tuple[str, str], seconds: float) -> None:
        one, other = sorted(pair)
        self._cuts[one, other] = self._cuts.get((one, other), 0) + 1
        self._world.network.cut(one, other)
        if seconds >= FOR_GOOD:
            self._cut_for_good.add((one, other))
        else:
            self._world.loop.after(seconds, None, self._heal, (one, other))

    def _hit_instance(self, fault: Fault) -> None:
        for worker in self._world.workers:
            instance = worker.instances.get(fault.target)
            if instance is None:
                continue
            if fault.kind is Kind.CORRUPT:
                instance.producer.corrupt_next = True
            else:
                worker.happen(worker.lose_engine, fault.target)

    def _drain(self, fault: Fault) -> None:
        scheduler = self._world.scheduler
        if scheduler is not None:
            ticket = f"ticket {len(self.struck)}"
            self._drains[ticket] = fault
            roles = frozenset(Role(name) for name in fault.other.split("+")) if fault.other else None
            event = DrainRequested(ticket, fault.target, roles, force=fault.kind is Kind.FORCE)
            scheduler.happen(scheduler.feed, event)

    # ---- ends

    def _revive(self, name: str) -> None:
        if name not in self._dead_for_good:
            self._world.spawn(name)

    def _proceed(self, process: Process) -> None:
        left = self._pauses.get(process, 0) - 1
        if left > 0:
            self._pauses[process] = left
        elif self._pauses.pop(process, None) is not None:
            process.proceed()

    def _heal(self, pair: tuple[str, str]) -> None:
        left = self._cuts.get(pair, 0) - 1
        if left > 0:
            self._cuts[pair] = left
        elif pair not in self._cut_for_good and self._cuts.pop(pair, None) is not None:
            self._world.network.heal(*pair)

    def _hurry(self, pair: tuple[str, str]) -> None:
        left = self._slow.get(pair, 0) - 1
        if left > 0:
            self._slow[pair] = left
        elif self._slow.pop(pair, None) is not None:
            self._world.network.slow(*pair, 1.0)


def _changed(world: World, worker: SimWorker) -> bool:
    """Whether an instance of `worker` was drained or has switched roles."""
    roles = {shape.id: shape.roles for shape in world.config.instances if shape.worker == worker.name}
    return roles != {name: instance.info.roles for name, instance in worker.instances.items()}


def _about(fault: Fault, subject: Subject) -> Fault:
    """`fault` with the name of its target."""
    if fault.target != SUBJECT:
        return fault
    match fault.kind:
        case Kind.ENGINE | Kind.CORRUPT | Kind.DRAIN | Kind.FORCE:
            name = subject.instance
        case Kind.LEAVE:
            name = subject.request
        case _:
            name = subject.process
    return replace(fault, target=name)


def role_of(world: World, name: str) -> str:
    """What a process or instance is for, in a word, for tables."""
    if name == SCHEDULER:
        return "scheduler"
    if name in world.config.gateways:
        return "gateway"
    shapes = [shape for shape in world.config.instances if name in (shape.id, shape.worker)]
    roles = sorted({role for shape in shapes for role in shape.roles})
    return "+".join(roles) if roles else "client"
