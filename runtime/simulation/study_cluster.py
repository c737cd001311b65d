"""A cluster for studies: the real scheduler, many StudyInstances, a gateway that only takes times, and delays instead
of a network.

One event heap drives everything; nothing fails, so streams, journals and recovery are left out
(runtime/simulation/world.py has them). What is real: every decision of the scheduler and of each instance. What is
modelled: step times, link bandwidth, and the delays below, each the same for every message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from triptych.runtime.core.control import (
    Completed,
    Failed,
    GatewayJoined,
    Heartbeat,
    InstanceLoad,
    Placed,
    Progress,
    Reported,
    SchedulerCommand,
    SchedulerEvent,
    SchedulerTick,
    Submit,
    ToGateway,
    ToInstance,
    WorkerJoined,
)
from triptych.runtime.core.errors import TriptychError
from triptych.runtime.core.instance import Capacity, Compatibility, InstanceInfo, InstanceRef, Load, Role
from triptych.runtime.core.request import Request
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.core.tasks import TaskReport
from triptych.runtime.instance.composer import DefaultComposer, StepComposer
from triptych.runtime.instance.config import InstanceConfig
from triptych.runtime.instance.messages import Command, Emit, EmitPrompt
from triptych.runtime.instance.tasks import Stream
from triptych.runtime.scheduler.scheduler import Scheduler
from triptych.runtime.simulation.events import EventLoop
from triptych.runtime.simulation.metrics import Occupancy, Requests, Timeline
from triptych.runtime.simulation.steptime import StepTimes
from triptych.runtime.simulation.study_instance import Around, StudyInstance, Wire
from triptych.runtime.simulation.workload import Arrival
from triptych.runtime.simulation.workload_tokens import TokenSource

GATEWAY, MODEL = "gateway-0", "model"
WORKER_INSTANCES = 8  # instances a worker process holds: one host's accelerators
SAMPLED = 256  # instances of a kind that the timeline looks at: every fortieth of ten thousand tells the mean
SAMPLES = 100  # of the timeline over the time in which requests arrive
SCHEDULER_TICK = 0.1  # seconds; what SchedulerTick asks for


class StudyError(TriptychError):
    """The simulated cluster came to a stop that a real one would not: a bug of the simulation or of what it runs."""


@dataclass(frozen=True)
class Delays:
    """Seconds between the parties.

    Attributes:
        admit: gateway: from arrival to Submit (tokenising), and the way to the scheduler.
        command: scheduler to instance.
        report: instance to scheduler.
        token: instance to client.
        pull: to set up a pull, and to hear that it is complete.
    """

    admit: float = 1e-3
    command: float = 5e-4
    report: float = 5e-4
    token: float = 5e-4
    pull: float = 1e-3


@dataclass(frozen=True)
class Kind:
    """`count` equal instances.

    Attributes:
        times: what their steps take.
        bandwidth: bytes a second of KV out and in.
        token_bytes: bytes of KV a token.
        composer: makes each instance's StepComposer.
    """

    name: str
    count: int
    roles: frozenset[Role]
    times: StepTimes
    num_pages: int
    page_size: int
    max_num_seqs: int
    max_model_len: int
    chunk_tokens: int
    max_prefill_rows: int
    bandwidth: float
    token_bytes: int
    prefix_cache: bool = True
    composer: Callable[[], StepComposer] = DefaultComposer


class _Open:
    """A request under way."""

    __slots__ = ("arrival", "cached", "first", "last", "prefill", "prompt", "queue", "transfer", "wait")

    def __init__(self, arrival: Arrival, prompt: int):
        self.arrival, self.prompt = arrival, prompt
        self.first = self.last = self.queue = self.wait = self.prefill = self.transfer = 0.0
        self.cached = 0


class StudyCluster:
    """Built idle; `run` feeds it arrivals until all have ended."""

    def __init__(
        self,
        kinds: Sequence[Kind],
        scheduler: Scheduler,
        delays: Delays,
        tokens: TokenSource,
        *,
        heartbeat: float = 1.0,
        max_waiting: int = 256,
        leaps: bool = True,
    ):
        """`heartbeat`: seconds between a worker's signs of life; `max_waiting`: of each instance's queue; `leaps`: see
        StudyInstance."""
        self.loop = EventLoop()
        self.scheduler = scheduler
        self.requests = Requests()
        self.timeline = Timeline()
        self.kinds: dict[str, list[StudyInstance]] = {}
        self._delays, self._tokens = delays, tokens
        self._instances: dict[str, StudyInstance] = {}
        self._open: dict[str, _Open] = {}
        self._sampling: dict[int, SamplingParams] = {}
        self._loads: dict[str, Load] = {}
        self._busy: dict[str, float] = {}
        self._sampled = 0.0
        self._arrivals: Iterator[Arrival] = iter(())
        self._more = False
        self.submitted = 0
        self._sessions = 0  # requests so far that belong to one: only their tokens matter
        around = Around(self.loop, self._report, self._emit, self._draws, self._instances.__getitem__)
        self._tell(GatewayJoined(GATEWAY))
        for kind in kinds:
            self._add(kind, around, delays.pull, max_waiting, leaps)
        workers: dict[str, list[StudyInstance]] = {}
        for instance in self._instances.values():
            workers.setdefault(instance.info.worker, []).append(instance)
        for number, (worker, instances) in enumerate(workers.items()):
            self._tell(WorkerJoined(worker, tuple(instance.info for instance in instances)))
            first = heartbeat * (number + 1) / len(workers)  # workers do not beat in step
            self.loop.at(first, None, self._beat, (worker, instances, heartbeat))
        self.loop.at(SCHEDULER_TICK, None, self._tick)

    def _add(self, kind: Kind, around: Around, pull: float, max_waiting: int, leaps: bool) -> None:
        instances = self.kinds[kind.name] = []
        wire = Wire(kind.bandwidth, pull, kind.token_bytes)
        capacity = Capacity(kind.max_num_seqs, kind.num_pages, kind.page_size, kind.max_model_len)
        compatibility = Compatibility(1, MODEL, "study", "any", kind.page_size, "any")
        for number in range(kind.count):
            ref, worker = InstanceRef(f"{kind.name}-{number}", 1), f"{kind.name}-worker-{number // WORKER_INSTANCES}"
            info = InstanceInfo(ref, worker, worker, kind.roles, capacity, compatibility)
            config = InstanceConfig(
                ref, worker, "", kind.roles, kind.num_pages, kind.page_size, kind.max_num_seqs, kind.max_model_len,
                chunk_tokens=kind.chunk_tokens, max_prefill_rows=kind.max_prefill_rows, max_waiting=max_waiting,
                prefix_cache=kind.prefix_cache,
            )  # fmt: skip
            seed = len(self._instances)
            instance = StudyInstance(
                info, config, kind.times, wire, around, composer=kind.composer(), seed=seed, leaps=leaps
            )
            instances.append(instance)
            self._instances[ref.id] = instance

    # ---- running

    def run(
        self,
        arrivals: Iterator[Arrival],
        *,
        sample: float | None = None,
        progress: Callable[[float, int, int], None] = lambda now, submitted, ended: None,
        every: float = 1.0,
    ) -> None:
        """Feed every arrival and wait for every end. `sample`: seconds of virtual time between samples of the timeline;
        `progress(virtual time, submitted, ended)` is called every `every` virtual seconds. Raises StudyError if nothing
        happens any more while requests are open."""
        self._arrivals, self._more = arrivals, True
        self._next_arrival(None)
        if sample is not None:
            self._sample(sample)
        silent, before = 0.0, -1
        while self._more or self._open:
            self.loop.run_until(self.loop.now() + every)
            ended = len(self.requests)
            progress(self.loop.now(), self.submitted, ended)
            silent = 0.0 if ended + self.submitted > before else silent + every
            before = ended + self.submitted
            if silent > 3600.0:
                raise StudyError(
                    f"{len(self._open)} requests are open and none has ended for an hour: {list(self._open)[:5]}"
                )

    def _next_arrival(self, due: Arrival | None) -> None:
        if due is not None:
            self._submit(due)
        arrival = next(self._arrivals, None)
        if arrival is None:
            self._more = False
        else:
            self.loop.at(arrival.at, None, self._next_arrival, arrival)

    def _submit(self, arrival: Arrival) -> None:
        self.submitted += 1
        self._sessions += arrival.shape.session is not None
        name, prompt, outputs = str(arrival.serial), self._tokens.prompt(arrival), arrival.shape.output_tokens
        sampling = self._sampling.get(outputs)
        if sampling is None:
            sampling = self._sampling[outputs] = SamplingParams(max_tokens=outputs, ignore_eos=True)
        self._open[name] = _Open(arrival, len(prompt))
        request = Request(name, GATEWAY, MODEL, prompt, sampling)
        self.loop.after(self._delays.admit, None, self._tell, Submit(request))

    def _sample(self, interval: float) -> None:
        now, snapshot = self.loop.now(), {}
        for kind, everyone in self.kinds.items():
            instances = everyone[:: -(-len(everyone) // SAMPLED)]
            for instance in instances:
                instance.settle()
            loads = [instance.core.load() for instance in instances]
            busy = sum(
                min(instance.busy_seconds, instance.busy_seconds - max(0.0, instance.free_at - now))
                for instance in instances
            )
            pages = sum(
                1.0 - load.free_pages / (i.info.capacity.num_pages - 1)
                for load, i in zip(loads, instances, strict=True)
            )
            n = len(instances)
            snapshot[kind] = Occupancy(
                sum(load.running for load in loads) / n,
                sum(load.waiting for load in loads) / n,
                pages / n,
                (busy - self._busy.get(kind, 0.0)) / (n * (now - self._sampled)) if now else 0.0,
            )
            self._busy[kind] = busy
        self._sampled = now
        self.timeline.add(now, self.scheduler.queued, self.scheduler.placed, snapshot)
        if self._more or self._open:
            # The tail of a run, in which the last long answers end, may last much longer than the arrivals did.
            self.loop.after(max(interval, now / SAMPLES), None, self._sample, interval)

    # ---- the scheduler

    def _tell(self, event: SchedulerEvent) -> None:
        loop, delays = self.loop, self._delays
        for command in self.scheduler.handle(event, loop.now()):
            if isinstance(command, ToInstance):
                loop.after(delays.command, None, self._instances[command.ref.id].post, Command(command.command))
            else:
                self._notice(command)

    def _tick(self, _: object) -> None:
        self._tell(SchedulerTick())
        self.loop.after(SCHEDULER_TICK, None, self._tick)

    def _beat(self, what: tuple[str, list[StudyInstance], float]) -> None:
        worker, instances, interval = what
        changed = []
        for instance in instances:
            instance.tick()
            instance.settle()
            load, name = instance.core.load(), instance.info.ref.id
            if load != self._loads.get(name):
                self._loads[name] = load
                changed.append(InstanceLoad(instance.info.ref, load))
        self.loop.after(self._delays.report, None, self._tell, Heartbeat(worker, tuple(changed)))
        self.loop.after(interval, None, self._beat, what)

    def _report(self, instance: StudyInstance, report: TaskReport) -> None:
        self.loop.after(self._delays.report, None, self._tell, Reported(instance.info.ref, report))

    # ---- the gateway

    def _notice(self, command: SchedulerCommand) -> None:
        notice = command.notice if isinstance(command, ToGateway) else None
        match notice:
            case Placed():
                self._open[notice.request].queue = notice.queue
            case Progress():
                entry = self._open[notice.request]
                if notice.role is Role.PREFILL:
                    entry.wait, entry.prefill = notice.times.queue, notice.times.compute
                else:
                    entry.transfer = notice.times.transfer
            case Completed():
                self._end(self._open.pop(notice.request), notice.preemptions)
            case Failed():
                self.requests.fail(self._open.pop(notice.request).arrival.at, notice.status.name)

    def _end(self, entry: _Open, preemptions: int) -> None:
        at, shape = entry.arrival.at, entry.arrival.shape
        tpot = (entry.last - entry.first) / (shape.output_tokens - 1) if shape.output_tokens > 1 else float("nan")
        self.requests.add(
            at=at, ttft=entry.first - at, tpot=tpot, e2e=entry.last - at, queue=entry.queue, wait=entry.wait,
            prefill=entry.prefill, transfer=entry.transfer, prompt=entry.prompt, output=shape.output_tokens, cached=entry.cached,
            preemptions=preemptions,
        )  # fmt: skip

    def _emit(self, message: Emit | EmitPrompt) -> None:
        now = self.loop.now() + self._delays.token
        if isinstance(message, EmitPrompt):
            self._open[message.request].cached = message.report.cached_tokens
            return
        for token in message.tokens:
            entry = self._open[token.request]
            if token.position == entry.prompt:
                entry.first = now
            entry.last = now

    def _draws(self, stream: Stream, position: int, count: int) -> list[int]:
        if not self._sessions:
            return [0] * count
        arrival = self._open[stream.task.request.id].arrival
        return [0] * count if arrival.shape.session is None else self._tokens.tokens(arrival, position, count)
