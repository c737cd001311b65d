"""What the scheduler hears and says: its events and commands, and the notices it sends to gateways.

The scheduler is a pure state machine over these values (`Scheduler.handle(event, now) -> list[SchedulerCommand]`); the live shell turns gRPC
messages into events and commands into gRPC messages, and the simulator does the same with simulated ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceInfo, InstanceRef, Load, Role
from triptych.runtime.core.request import Request, SampleState
from triptych.runtime.core.tasks import HeldTask, StageTimes, TaskCommand, TaskReport

# ---- events -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorkerJoined:
    """A worker process registered these instances, which hold these tasks (of an earlier life of the scheduler or of this stream)."""

    worker: str
    instances: tuple[InstanceInfo, ...]
    held: tuple[HeldTask, ...] = ()


@dataclass(frozen=True)
class WorkerLost:
    """A worker's stream ended or its heartbeats stopped: all its instances are gone, whatever the reason."""

    worker: str
    reason: str


@dataclass(frozen=True)
class InstanceReset:
    """One instance lost its pool and goes on as `info` (new epoch); the worker process is fine."""

    worker: str
    old: InstanceRef
    info: InstanceInfo
    reason: str


@dataclass(frozen=True)
class InstanceLoad:
    """Occupancy of one instance."""

    ref: InstanceRef
    load: Load


@dataclass(frozen=True)
class Heartbeat:
    """A worker is alive. `loads` holds only what changed."""

    worker: str
    loads: tuple[InstanceLoad, ...] = ()


@dataclass(frozen=True)
class Reported:
    """An instance reported on a task."""

    ref: InstanceRef
    report: TaskReport


@dataclass(frozen=True)
class GatewayJoined:
    """A gateway connected."""

    gateway: str


@dataclass(frozen=True)
class GatewayLost:
    """A gateway's stream ended: its requests have no client any more."""

    gateway: str


@dataclass(frozen=True)
class Submit:
    """A gateway asks to run a request (request.gateway names it)."""

    request: Request


@dataclass(frozen=True)
class Declare:
    """A gateway that connected (again) has this request open, at this attempt. Instances that run it go on; else it is resumed."""

    request: Request


@dataclass(frozen=True)
class Resume:
    """A gateway asks to go on with a request under a new attempt (request.attempt), from `samples`: all that its client has seen.

    Answers Interrupted, or comes unasked when tokens were lost on their way to the gateway.
    """

    request: Request
    samples: tuple[SampleState, ...]


@dataclass(frozen=True)
class Cancel:
    """The client went away, aborted, or the gateway found the request's end itself."""

    request: str
    reason: str


@dataclass(frozen=True)
class SchedulerTick:
    """Time passed: heartbeats and deadlines are checked. Send one at least every 100 ms."""


SchedulerEvent = (
    WorkerJoined
    | WorkerLost
    | InstanceReset
    | Heartbeat
    | Reported
    | GatewayJoined
    | GatewayLost
    | Submit
    | Declare
    | Resume
    | Cancel
    | SchedulerTick
)

# ---- notices to gateways ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Directory:
    """The instances that exist now; gateways subscribe to the tokens of every worker address in it."""

    instances: tuple[InstanceInfo, ...]


@dataclass(frozen=True)
class Placed:
    """The request was placed. `queue` is the seconds it waited in the scheduler."""

    request: str
    prefill: InstanceRef
    decode: InstanceRef
    queue: float


@dataclass(frozen=True)
class Progress:
    """A stage of the request is done (prefill) or began (decode), with its times."""

    request: str
    role: Role
    times: StageTimes


@dataclass(frozen=True)
class Interrupted:
    """What ran the request is lost. From now on tokens of earlier attempts do not count; the answer is Resume under `attempt`."""

    request: str
    attempt: int
    reason: str


@dataclass(frozen=True)
class Failed:
    """The request's one terminal failure. Never sent after Completed, nor twice."""

    request: str
    status: Status
    reason: str
    retry_after: float | None = None


@dataclass(frozen=True)
class Completed:
    """Every task of the request ended well."""

    request: str
    preemptions: int = 0


GatewayNotice = Directory | Placed | Progress | Interrupted | Failed | Completed

# ---- commands -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ToInstance:
    """Send a task command to an instance. The shell drops it if that worker is no longer connected (the loss is an event of its own)."""

    worker: str
    ref: InstanceRef
    command: TaskCommand


@dataclass(frozen=True)
class ToGateway:
    """Send a notice to a gateway."""

    gateway: str
    notice: GatewayNotice


@dataclass(frozen=True)
class DropWorker:
    """Close this worker's stream: it missed its heartbeats or is not compatible; `reason` says which."""

    worker: str
    reason: str


SchedulerCommand = ToInstance | ToGateway | DropWorker
