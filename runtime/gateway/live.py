"""A session on an event loop: wakes its RPC when there is something to send, tells the scheduler what it must hear, and fires the session's timers
even while the RPC is stuck in a write."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core.clock import Clock, remaining
from triptych.runtime.core.errors import DeadlineError, TriptychError
from triptych.runtime.core.standing import Told
from triptych.runtime.gateway.session import Session

Write = Callable[[pb.GenerateResponse], Awaitable[object]]

STILL = (
    1.0  # seconds; a timer so late means that the whole process stood still (a stopped process, a suspended machine)
)


class SchedulerPort(Protocol):
    """Where sessions' messages to the scheduler go."""

    @property
    def connected(self) -> bool: ...

    def send(self, told: Told) -> None: ...


class LiveRequest:
    """Couples one Session with one RPC. Every change of the session is followed by `changed`.

    Args:
        on_end: called once, when the session reaches a terminal state or is closed, whichever is first.
    """

    def __init__(
        self,
        session: Session,
        scheduler: SchedulerPort,
        clock: Clock,
        drain_grace: float,
        on_end: Callable[[Session], None],
    ):
        self.session = session
        self._scheduler = scheduler
        self._clock = clock
        self._drain_grace = drain_grace
        self._on_end: Callable[[Session], None] | None = on_end
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._failed: asyncio.Future[None] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self.changed()

    def changed(self) -> None:
        """The session was fed: wake the sender, tell the scheduler, move the timer."""
        self._wake.set()
        if self._scheduler.connected:
            for told in self.session.tell():
                self._scheduler.send(told)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.session.ended:
            self._end()
            if self.session.error is not None and not self._failed.done():
                self._failed.set_result(None)
            return
        wakes_at = self.session.wakes_at()
        if wakes_at is not None:
            self._timer = self._loop.call_later(max(0.0, wakes_at - self._clock.now()), self._tick, wakes_at)

    def introduce(self) -> None:
        """The scheduler is there (again)."""
        for told in self.session.introduce():
            self._scheduler.send(told)
        self.changed()

    def scheduler_lost(self) -> None:
        self.session.scheduler_lost(self._clock.now())
        self.changed()

    def fail(self, error: TriptychError) -> None:
        self.session.fail(error)
        self.changed()

    def close(self) -> None:
        """The RPC is over, whatever the session's state: no timer fires any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._end()

    async def deliver(self, write: Write) -> None:
        """Send everything until the session ends; raises the session's error.

        A write blocks while the client does not read. When the session fails meanwhile, or the deadline passes, what is queued gets
        `drain_grace` seconds, then the write is given up; with DeadlineError if all was there and only the client did not take it.
        """
        left = remaining(self.session.request.deadline, self._clock.now())
        sending = asyncio.ensure_future(self._send(write))
        try:
            await asyncio.wait((sending, self._failed), timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                await asyncio.wait((sending,), timeout=self._drain_grace)
            delivered = sending.done()
            if delivered:
                sending.result()
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        if self.session.error is not None:
            raise self.session.error
        if not delivered:
            raise DeadlineError("the deadline passed before the client had read everything")

    async def _send(self, write: Write) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            ended = self.session.ended
            for response in self.session.take():
                await write(response)
            if ended:
                return

    def _tick(self, due: float) -> None:
        self._timer = None
        now = self._clock.now()
        if now - due > STILL:
            self.session.stood_still(now)
        self.session.tick(now)
        self.changed()

    def _end(self) -> None:
        if self._on_end is not None:
            on_end, self._on_end = self._on_end, None
            on_end(self.session)
