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
    """A worker's stream ended without a good-bye. The process may be dead, or back in a moment with the same epochs and what it held."""

    worker: str
    reason: str


@dataclass(frozen=True)
class WorkerLeft:
    """A worker said good-bye: all its instances are gone, and with them what they held."""

    worker: str
    reason: str


@dataclass(frozen=True)
class InstanceReset:
    """One instance lost its pool, or took on other roles (SetRoles), and goes on as `info` (new epoch) without tasks; its worker is fine."""

    worker: str
    old: InstanceRef
    info: InstanceInfo
    reason: str


@dataclass(frozen=True)
class InstanceLeft:
    """One instance is gone for good, in answer to Retire; its worker goes on. A worker whose last instance it was leaves instead."""

    worker: str
    ref: InstanceRef
    reason: str


@dataclass(frozen=True)
class RolesRefused:
    """Answer to SetRoles: the instance stays as it is, with the roles and the epoch that it has."""

    worker: str
    ref: InstanceRef
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
    """A gateway's stream ended without a good-bye. It may be back in a moment and declare what it has open."""

    gateway: str


@dataclass(frozen=True)
class GatewayLeft:
    """A gateway said good-bye: its requests have no client any more."""

    gateway: str


@dataclass(frozen=True)
class Submit:
    """A gateway asks to run a request (request.gateway names it)."""

    request: Request


@dataclass(frozen=True)
class Declare:
    """A gateway that connected (again) has this request open, at this attempt. Instances that run it go on; else it is resumed.

    `unheard`: nothing has been heard of this attempt, so it may never have reached a scheduler. One that does not find it either need not wait
    for an instance that runs it.
    """

    request: Request
    unheard: bool = False


@dataclass(frozen=True)
class Resume:
    """A gateway asks to go on with a request under a new attempt (request.attempt), from `samples`: all that its client has seen.

    `samples` names every sample in order, or is empty if the client has seen nothing: the request then begins afresh.

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
class DrainRequested:
    """Take an instance out of service: it gets no new work, what it has ends (or, after a grace, goes on elsewhere), then it changes.

    Attributes:
        ticket: chosen by whoever asks; the one DrainEnded that answers carries it.
        instance: its name, whatever its epoch.
        roles: what it does afterwards; None: it leaves the cluster for good.
        force: also if no other instance is left for a role that it gives up.
    """

    ticket: str
    instance: str
    roles: frozenset[Role] | None
    force: bool = False


@dataclass(frozen=True)
class SchedulerTick:
    """Time passed: heartbeats and deadlines are checked. Send one at least every 100 ms."""


SchedulerEvent = (
    WorkerJoined
    | WorkerLost
    | WorkerLeft
    | InstanceReset
    | InstanceLeft
    | RolesRefused
    | Heartbeat
    | Reported
    | GatewayJoined
    | GatewayLost
    | GatewayLeft
    | Submit
    | Declare
    | Resume
    | Cancel
    | DrainRequested
    | SchedulerTick
)

# ---- notices to gateways ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Directory:
    """The instances that exist now; gateways subscribe to the tokens of every worker address in it."""

    instances: tuple[InstanceInfo, ...]


@dataclass(frozen=True)
class Placed:
    """This attempt of the request was placed. `queue` is the seconds it waited in the scheduler."""

    request: str
    prefill: InstanceRef
    decode: InstanceRef
    queue: float
    attempt: int = 1


@dataclass(frozen=True)
class Progress:
    """A stage of this attempt of the request is done (encode, prefill) or began (decode), with its times. `encoded`: media items that
    an encode task encoded; the others were in its instance's store."""

    request: str
    role: Role
    times: StageTimes
    attempt: int = 1
    encoded: int = 0


@dataclass(frozen=True)
class MediaNeeded:
    """Bring the pixels of `items` of this attempt to `encode` (Worker.PutMedia of the worker at its address), which lacks them."""

    request: str
    encode: InstanceRef
    address: str
    items: tuple[int, ...]
    attempt: int = 1


@dataclass(frozen=True)
class Interrupted:
    """What ran the request is lost. From now on tokens of earlier attempts do not count; the answer is Resume under `attempt`.

    A gateway that has begun `attempt` or a later one already (its own Resume crossed this) ignores it; one that does not know the request
    (any more) answers Cancel.
    """

    request: str
    attempt: int
    reason: str


@dataclass(frozen=True)
class Failed:
    """The request's one terminal failure. Never sent after Completed; sent again only in answer to a Declare or Resume that came too late."""

    request: str
    status: Status
    reason: str
    retry_after: float | None = None


@dataclass(frozen=True)
class Completed:
    """Every task of this attempt of the request ended well."""

    request: str
    preemptions: int = 0
    attempt: int = 1


GatewayNotice = Directory | Placed | MediaNeeded | Progress | Interrupted | Failed | Completed

# ---- commands to workers ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SetRoles:
    """Take on other roles: each is one that the instance has or may switch to (InstanceInfo.switchable), and it holds no task.

    Weights, programs and pool stay. Answered by InstanceReset(old, info with these roles and a new epoch), or by RolesRefused.
    """

    ref: InstanceRef
    roles: frozenset[Role]


@dataclass(frozen=True)
class SetShare:
    """From the next step on, compute at most `prefill_tokens` prompt tokens a step (at least 1; more than its programs hold means all of that).

    How an instance that holds both stages splits its compute between them. Not answered: the load shows it.
    """

    ref: InstanceRef
    prefill_tokens: int


@dataclass(frozen=True)
class Retire:
    """End an instance that holds no task. Answered by InstanceLeft or, by a worker that has no other, by leaving (exit status 0)."""

    ref: InstanceRef
    reason: str


# ---- commands -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ToInstance:
    """Send a task command to an instance. The shell drops it if that worker is no longer connected (the loss is an event of its own)."""

    worker: str
    ref: InstanceRef
    command: TaskCommand


@dataclass(frozen=True)
class ToWorker:
    """Send a command about one of its instances to a worker."""

    worker: str
    command: SetRoles | SetShare | Retire


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


@dataclass(frozen=True)
class DrainEnded:
    """The one answer to DrainRequested: `status` OK after `seconds`, or why not (the instance then goes on as it was, if it lives)."""

    ticket: str
    status: Status
    reason: str = ""
    seconds: float = 0.0


SchedulerCommand = ToInstance | ToWorker | ToGateway | DropWorker | DrainEnded
