"""The control plane of a study: arrivals, the real scheduler, and a gateway that only takes times.

Nothing fails here, so streams, journals and recovery are left out (runtime/simulation/world.py has them).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from triptych.runtime.core.control import (
    Cancel,
    Completed,
    Failed,
    GatewayJoined,
    Interrupted,
    MediaNeeded,
    Placed,
    Progress,
    SchedulerCommand,
    SchedulerEvent,
    SchedulerTick,
    Submit,
    ToGateway,
    ToInstance,
    WorkerJoined,
)
from triptych.runtime.core.instance import Role
from triptych.runtime.core.request import Request
from triptych.runtime.instance.messages import Command, MediaArrived
from triptych.runtime.scheduler.scheduler import Scheduler
from triptych.runtime.simulation.events import EventLoop
from triptych.runtime.simulation.metrics import Requests
from triptych.runtime.simulation.study_book import GATEWAY, Book
from triptych.runtime.simulation.study_fleet import SAMPLES, Delays, Seat
from triptych.runtime.simulation.study_post import CONTROL, Post
from triptych.runtime.simulation.workload import Arrival

SCHEDULER_TICK = 0.1  # seconds; what SchedulerTick asks for
LAST = ("encoded", "gathered")  # of what is heard more than once, the last counts


class _Open:
    """A request under way."""

    __slots__ = (
        "arrival", "cached", "encode", "encode_wait", "encoded", "first", "gathered", "last", "prefill", "prompt", "queue",
        "transfer", "wait", "wanted",
    )  # fmt: skip

    def __init__(self, arrival: Arrival, prompt: int):
        self.arrival, self.prompt = arrival, prompt
        self.first = self.last = self.queue = self.wait = self.prefill = self.transfer = 0.0
        self.cached = 0.0
        self.wanted = self.encoded = self.gathered = self.encode_wait = self.encode = math.nan


class Control:
    """Party 0. Built idle, with every worker registered.

    Attributes:
        requests: those that have ended.
        counts: (time, requests that wait in the scheduler, requests that are placed), now and then.
        submitted: requests so far.
        ended: names of requests that ended since the list was last emptied, by whoever gives the list.
    """

    def __init__(
        self,
        loop: EventLoop,
        post: Post,
        scheduler: Scheduler,
        workers: Sequence[Sequence[Seat]],
        delays: Delays,
        book: Book,
        ended: list[str] | None = None,
    ):
        self.requests = Requests()
        self.counts: list[tuple[float, int, int]] = []
        self.submitted = 0
        self.ended = ended
        self._loop, self._post, self._scheduler, self._delays, self._book = loop, post, scheduler, delays, book
        self._numbers = {seat.info.ref.id: seat.number for worker in workers for seat in worker}
        self._open: dict[str, _Open] = {}
        self._arrivals: Iterator[Arrival] = iter(())
        self._more = False
        post.attach(CONTROL, self.tell)
        self.tell(GatewayJoined(GATEWAY))
        for worker in workers:
            self.tell(WorkerJoined(worker[0].info.worker, tuple(seat.info for seat in worker)))
        loop.at(SCHEDULER_TICK, None, self._tick)

    @property
    def open(self) -> list[str]:
        """Requests under way."""
        return list(self._open)

    @property
    def going(self) -> bool:
        """Whether requests are still to come, or under way."""
        return self._more or bool(self._open)

    def begin(self, arrivals: Iterator[Arrival], interval: float | None) -> None:
        """Let the first request come, and count now and then."""
        self._arrivals, self._more = arrivals, True
        self._next_arrival(None)
        if interval is not None:
            self._count(interval)

    def _next_arrival(self, due: Arrival | None) -> None:
        if due is not None:
            self._submit(due)
        arrival = next(self._arrivals, None)
        if arrival is None:
            self._more = False
        else:
            self._loop.at(arrival.at, None, self._next_arrival, arrival)

    def _submit(self, arrival: Arrival) -> None:
        self.submitted += 1
        request: Request = self._book.open(arrival)
        self._open[request.id] = _Open(arrival, len(request.prompt))
        self._loop.after(self._delays.admit, None, self.tell, Submit(request))

    def _count(self, interval: float) -> None:
        now = self._loop.now()
        self.counts.append((now, self._scheduler.queued, self._scheduler.placed))
        if self.going:
            self._loop.after(max(interval, now / SAMPLES), None, self._count, interval)

    # ---- the scheduler

    def tell(self, event: SchedulerEvent) -> None:
        now = self._loop.now()
        for command in self._scheduler.handle(event, now):
            if isinstance(command, ToInstance):
                target, when = self._numbers[command.ref.id], now + self._delays.command
                self._post.send(CONTROL, target, when, Command(command.command))
            else:
                self._notice(command)

    def _tick(self, _: object) -> None:
        self.tell(SchedulerTick())
        self._loop.after(SCHEDULER_TICK, None, self._tick)

    # ---- the gateway

    def hear(self, request: str, what: str, value: float) -> None:
        """What the instances said of a request (study_post.Hear)."""
        entry = self._open.get(request)
        if entry is None:
            return
        before = getattr(entry, what)
        if (what in LAST and before > value) or (what == "wanted" and before < value):
            return  # processes tell of such things in an order of their own
        setattr(entry, what, value)

    def _notice(self, command: SchedulerCommand) -> None:
        notice = command.notice if isinstance(command, ToGateway) else None
        match notice:
            case Placed():
                self._open[notice.request].queue = notice.queue
            case Progress():
                entry = self._open[notice.request]
                times = notice.times
                if notice.role is Role.PREFILL:
                    entry.wait, entry.prefill = times.queue, times.compute
                elif notice.role is Role.ENCODE:
                    entry.encode_wait = max(times.queue, entry.encode_wait)  # in this order: NaN is what it begins as
                    entry.encode = max(times.compute, entry.encode)
                else:
                    entry.transfer = times.transfer
            case MediaNeeded():
                self._bring(notice)
            case Interrupted():  # a prompt with media was preempted where it only decodes: live, it would be resumed
                self.tell(Cancel(notice.request, notice.reason))
            case Completed():
                self._end(self._close(notice.request), notice.preemptions)
            case Failed():
                self.requests.fail(self._close(notice.request).arrival.at, notice.status.name)

    def _bring(self, notice: MediaNeeded) -> None:
        """The pixels of some items go to the encode instance that lacks them."""
        when, media = self._loop.now() + self._delays.pixels, self._book.request(notice.request).media
        for item in notice.items:
            self._post.send(CONTROL, self._numbers[notice.encode.id], when, MediaArrived(media[item].hash))

    def _close(self, request: str) -> _Open:
        self._book.close(request)
        if self.ended is not None:
            self.ended.append(request)
        return self._open.pop(request)

    def _end(self, entry: _Open, preemptions: int) -> None:
        at, shape = entry.arrival.at, entry.arrival.shape
        ttft = entry.first - at
        gather = 0.0 if math.isnan(entry.gathered) else entry.gathered - entry.wanted
        # Where the prompt is computed by the instance that encodes, it is queued as soon as the encode is planned.
        ready = 0.0 if math.isnan(entry.gathered) else max(entry.gathered - entry.wanted, entry.encoded - entry.wanted)
        tpot = (entry.last - entry.first) / (shape.output_tokens - 1) if shape.output_tokens > 1 else float("nan")
        self.requests.add(
            at=at, ttft=ttft, tpot=tpot, e2e=entry.last - at, queue=entry.queue, wait=entry.wait - gather,
            prefill=entry.prefill, transfer=entry.transfer, prompt=entry.prompt, output=shape.output_tokens, cached=entry.cached,
            preemptions=preemptions, encode_wait=entry.encode_wait, encode=entry.encode,
            gather=gather if shape.images else math.nan, share=ready / ttft if shape.images else math.nan,
            feed=max(0.0, entry.gathered - entry.encoded) if entry.encode == entry.encode else math.nan,
        )  # fmt: skip
