"""Messages of a study as flat tuples of numbers and strings, for the pipe between its two processes.

A request crosses as what it arrived with, and is made again on the other side (study_book.py). Only what a study without
failures says is known here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from triptych.runtime.core.control import Heartbeat, InstanceLoad, Reported
from triptych.runtime.core.errors import Status
from triptych.runtime.core.handle import Handle
from triptych.runtime.core.instance import Load, Role
from triptych.runtime.core.request import Continuation, Finish, FinishReason, PromptReport, Request, SampleState
from triptych.runtime.core.tasks import (
    AbortTask,
    Accepted,
    DecodeStarted,
    EncodeDone,
    EncodeStaged,
    FeedMedia,
    Granted,
    MediaWanted,
    PrefillDone,
    Refused,
    ReserveDecode,
    Staged,
    StageTimes,
    StartDecode,
    StartEncode,
    StartLocal,
    StartPrefill,
    TaskEnded,
)
from triptych.runtime.instance.messages import Command, LeaseExtended, MediaArrived, StagedReleased
from triptych.runtime.instance.plan import Pool
from triptych.runtime.simulation.study_book import Book
from triptych.runtime.simulation.study_fleet import Seat
from triptych.runtime.simulation.study_post import Sent
from triptych.runtime.simulation.study_transfer import Gone, Pages, PullOpened
from triptych.runtime.simulation.workload import Arrival, Image, Shape

Flat = tuple[Any, ...]
"""(when, key, target, name of the type, its fields)"""

_LOAD = attrgetter(
    "running", "waiting", "waiting_tokens", "free_pages", "free_slots", "staged", "share",
    "free_media_pages", "encoding",
)  # fmt: skip
_TIMES = attrgetter("queue", "compute", "transfer", "bytes_moved", "pages_pulled", "pages_skipped")
_HANDLE = attrgetter("owner.id", "owner.epoch", "address", "key", "digest")
_SHAPE = attrgetter("prompt_tokens", "output_tokens", "session", "blocks", "block_tokens")
_FIELDS = 8  # of a request: serial, time, shape and images


class Codec:
    """Both directions, for one process.

    Attributes:
        parties: how many there are in the cluster.
    """

    def __init__(self, book: Book, workers: Sequence[Sequence[Seat]]):
        """`book`: where requests are looked up, and opened; `workers`: all of the cluster."""
        self._book = book
        refs = [seat.info.ref for worker in workers for seat in worker]
        self._refs = {ref.id: ref for ref in refs}  # the scheduler looks at identity first
        self.parties = 1 + len(refs)
        self._encoders: dict[type, Callable[[Any], Flat]] = {
            ReserveDecode: lambda m: (*self._request(m), m.ttl),
            StartPrefill: lambda m: (*self._request(m), m.skip_tokens, m.lease),
            StartLocal: self._request,
            StartEncode: lambda m: (*self._request(m), m.items, m.ttl, m.lease),
            FeedMedia: lambda m: (m.request, m.items, m.attempt, *_HANDLE(m.source)),
            StartDecode: lambda m: (m.request, m.attempt, *_HANDLE(m.source)),
            AbortTask: lambda m: (m.request, int(m.status), m.reason, _plain(m.role), m.attempt),
            Granted: attrgetter("request", "cached_tokens", "attempt"),
            Refused: lambda m: (m.request, _plain(m.role), m.reason, m.permanent, m.attempt),
            Staged: lambda m: (m.request, m.attempt, *_HANDLE(m.handle)),
            Accepted: attrgetter("request", "attempt"),
            MediaWanted: attrgetter("request", "items", "attempt"),
            EncodeStaged: lambda m: (m.request, m.lacking, m.attempt, *_HANDLE(m.handle)),
            EncodeDone: lambda m: (m.request, m.encoded, m.attempt, *_TIMES(m.times)),
            PrefillDone: _prefill_done,
            DecodeStarted: lambda m: (m.request, m.attempt, *_TIMES(m.times)),
            TaskEnded: lambda m: (m.request, _plain(m.role), int(m.status), m.reason, m.preemptions, m.attempt),
            Heartbeat: lambda m: (m.worker, *((entry.ref.id, *_LOAD(entry.load)) for entry in m.loads)),
            PullOpened: lambda m: (m.puller, m.request, m.key, m.pages, m.bandwidth, str(m.pool)),
            Pages: _pages,
            Gone: attrgetter("request", "key"),
            MediaArrived: lambda m: (m.hash,),
            LeaseExtended: lambda m: (m.key, m.waiting),
            StagedReleased: lambda m: (m.key,),
        }
        self._decoders: dict[str, Callable[..., Any]] = {
            "ReserveDecode": lambda *f: Command(ReserveDecode(self._opened(*f[:_FIELDS]), f[_FIELDS])),
            "StartPrefill": lambda *f: Command(StartPrefill(self._opened(*f[:_FIELDS]), *f[_FIELDS:])),
            "StartLocal": lambda *f: Command(StartLocal(self._opened(*f))),
            "StartEncode": lambda *f: Command(StartEncode(self._opened(*f[:_FIELDS]), *f[_FIELDS:])),
            "FeedMedia": lambda request, items, attempt, *handle: Command(
                FeedMedia(request, self._handle(*handle), items, attempt)
            ),
            "StartDecode": lambda request, attempt, *handle: Command(
                StartDecode(request, self._handle(*handle), attempt)
            ),
            "AbortTask": lambda r, status, reason, role, a: Command(
                AbortTask(r, Status(status), reason, None if role is None else Role(role), a)
            ),
            "Granted": Granted,
            "Refused": lambda r, role, *rest: Refused(r, Role(role), *rest),
            "Staged": lambda request, attempt, *handle: Staged(request, self._handle(*handle), attempt),
            "Accepted": Accepted,
            "MediaWanted": MediaWanted,
            "EncodeStaged": lambda request, lacking, attempt, *handle: EncodeStaged(
                request, self._handle(*handle), lacking, attempt
            ),
            "EncodeDone": lambda r, encoded, attempt, *times: EncodeDone(r, encoded, StageTimes(*times), attempt),
            "PrefillDone": lambda r, prompt, cached, finished, attempt, *times: PrefillDone(
                r, PromptReport(prompt, cached), finished, StageTimes(*times), attempt
            ),
            "DecodeStarted": lambda r, attempt, *times: DecodeStarted(r, StageTimes(*times), attempt),
            "TaskEnded": lambda r, role, status, *rest: TaskEnded(r, Role(role), Status(status), *rest),
            "Heartbeat": lambda worker, *loads: Heartbeat(
                worker, tuple(InstanceLoad(self._refs[name], Load(*load)) for name, *load in loads)
            ),
            "PullOpened": lambda puller, request, key, pages, bandwidth, pool: PullOpened(
                puller, request, key, pages, bandwidth, Pool(pool)
            ),
            "Pages": self._arriving,
            "Gone": Gone,
            "MediaArrived": MediaArrived,
            "LeaseExtended": LeaseExtended,
            "StagedReleased": StagedReleased,
        }

    def encode(self, sent: Sent) -> Flat:
        when, key, target, message = sent
        if isinstance(message, Command):
            message = message.command
        elif isinstance(message, Reported):
            report = message.report
            fields = self._encoders[type(report)](report)
            return (when, key, target, type(report).__name__, message.ref.id, *fields)
        return (when, key, target, type(message).__name__, None, *self._encoders[type(message)](message))

    def decode(self, flat: Flat) -> Sent:
        when, key, target, name, ref, *fields = flat
        message = self._decoders[name](*fields)
        return when, key, target, message if ref is None else Reported(self._refs[ref], message)

    def _request(self, message: ReserveDecode | StartPrefill | StartLocal | StartEncode) -> Flat:
        request: Request = message.request
        resumed = not isinstance(message, StartEncode) and message.resumed
        assert request.attempt == 1 and not resumed, f"request {request.id} was resumed, but nothing fails here"
        arrival = self._book.arrival(request.id)
        return (arrival.serial, arrival.at, *_SHAPE(arrival.shape), tuple(map(tuple, arrival.shape.images)))

    def _opened(self, serial: int, at: float, *shape: Any) -> Request:
        prompt, output, session, blocks, block_tokens, images = shape
        pictures = tuple(Image(*image) for image in images)
        return self._book.open(Arrival(serial, at, Shape(prompt, output, session, blocks, block_tokens, pictures)))

    def _handle(self, owner: str, epoch: int, address: str, key: int, digest: str) -> Handle:
        ref = self._refs[owner]
        assert ref.epoch == epoch, f"{owner} has epoch {ref.epoch}, not {epoch}"
        return Handle(ref, address, key, digest)

    def _arriving(self, request: str, key: int, pages: int, seconds: float, last: bool, *final: Any) -> Pages:
        if not final:
            return Pages(request, key, pages, seconds, last, None)
        offset, *samples = final
        states = tuple(
            SampleState(number, outputs, None if end is None else Finish(FinishReason(end[0]), end[1]))
            for number, outputs, end in samples
        )
        return Pages(request, key, pages, seconds, last, Continuation(self._book.request(request), states, offset))


def _plain(role: Role | None) -> str | None:
    return None if role is None else str(role)


def _prefill_done(m: PrefillDone) -> Flat:
    assert not m.report.prompt_logprobs, "simulated requests ask for no log-probabilities"
    report = m.report
    return (m.request, report.prompt_tokens, report.cached_tokens, m.finished, m.attempt, *_TIMES(m.times))


def _pages(m: Pages) -> Flat:
    if m.final is None:
        return (m.request, m.key, m.pages, m.seconds, m.last)
    samples = (
        (s.sample, s.outputs, None if s.finish is None else (str(s.finish.reason), s.finish.matched))
        for s in m.final.samples
    )
    return (m.request, m.key, m.pages, m.seconds, m.last, m.final.position_offset, *samples)
