"""Moments of a run that faults can wait for: the nth time that the scheduler hears or says something.

Random times rarely hit the few milliseconds between a grant and what follows from it; a fault that waits for the grant does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from triptych.runtime.core.control import (
    Declare,
    DrainRequested,
    InstanceReset,
    Reported,
    Resume,
    SchedulerCommand,
    SchedulerEvent,
    Submit,
    ToGateway,
    ToInstance,
    ToWorker,
    WorkerJoined,
    WorkerLost,
)
from triptych.runtime.core.tasks import ReserveDecode, StartEncode, StartLocal, StartPrefill

NAMES = (
    *("Submit", "WorkerJoined", "WorkerLost", "Declare", "Resume"),
    *("ReserveDecode", "StartPrefill", "StartDecode", "StartLocal", "AbortTask"),
    *("Granted", "Refused", "Staged", "Accepted", "PrefillDone", "DecodeStarted", "TaskEnded"),
    *("MediaWanted", "StartEncode", "EncodeStaged", "MediaNeeded", "FeedMedia", "EncodeDone"),
    *("Placed", "Interrupted", "Failed", "Completed"),
    *("DrainRequested", "SetRoles", "Retire", "InstanceReset"),
)
"""What can be waited for: types of events, reports, commands and notices."""

SUBJECT = "*"
"""As the target of a fault: whoever the moment was about."""


@dataclass(frozen=True)
class Moment:
    """The `nth` (from 1) time that something called `name` is heard or said by the scheduler, restarts not counted."""

    name: str
    nth: int

    def __str__(self) -> str:
        return f"{self.name} {self.nth}"


@dataclass(frozen=True)
class Subject:
    """Who something was about: a process, and where there are any an instance and a request."""

    process: str
    instance: str = ""
    request: str = ""


def told(
    event: SchedulerEvent, commands: Iterable[SchedulerCommand], worker_of: Callable[[str], str]
) -> Iterator[tuple[str, Subject]]:
    """What `event` and the `commands` that came of it are called, and who they are about."""
    match event:
        case Reported():
            subject = Subject(worker_of(event.ref.id), event.ref.id, event.report.request)
            yield type(event.report).__name__, subject
        case Submit() | Declare() | Resume():
            yield type(event).__name__, Subject(event.request.gateway, request=event.request.id)
        case WorkerJoined() | WorkerLost():
            yield type(event).__name__, Subject(event.worker)
        case DrainRequested():
            yield type(event).__name__, Subject(worker_of(event.instance), event.instance)
        case InstanceReset():
            yield type(event).__name__, Subject(event.worker, event.old.id)
    for command in commands:
        match command:
            case ToInstance():
                task = command.command
                named = isinstance(task, ReserveDecode | StartPrefill | StartLocal | StartEncode)
                request = task.request.id if named else str(task.request)
                yield type(task).__name__, Subject(command.worker, command.ref.id, request)
            case ToWorker():
                yield type(command.command).__name__, Subject(command.worker, command.command.ref.id)
            case ToGateway():
                request = getattr(command.notice, "request", "")
                yield type(command.notice).__name__, Subject(command.gateway, request=request)
