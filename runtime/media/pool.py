"""A bounded pool of decoder processes: jobs wait in order of arrival, and beyond a bound they are refused at once.

A process that crashes, hangs or is killed fails the one item that it had, and is replaced. A caller that is cancelled takes its job with it: out of the queue, or by
ending the process that works on it (a C library cannot be interrupted otherwise). Used from one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from triptych.runtime.core.errors import ConfigError, TriptychError
from triptych.runtime.media.errors import RAISED_BY_DECODERS, DecoderLostError, MediaPoolFullError
from triptych.runtime.media.process import DecoderProcess, Job, Reply

BACKOFF = (0.1, 5.0)  # seconds between attempts to start a process: the first, the longest
SMOOTHING = 0.2  # weight of the newest job in the mean time of a job


@dataclass(frozen=True)
class PoolConfig:
    """How many processes, and what they and their queue may hold.

    Attributes:
        processes: decoder processes.
        waiting_items: jobs that may wait for one, of all callers together; more are refused. A gateway takes as many requests, and each
            lets only a few of its media wait here.
        waiting_bytes: bytes of those jobs' files together.
        memory_bytes: address space of a process beyond what it has when idle; an image takes about 12 bytes a pixel while it is decoded.
        reply_bytes: largest result; a process that sends more is taken for broken.
        item_bytes: largest file that a process accepts.
        start_seconds: time that a process may take to start.
        jobs_per_process: jobs after which a process is replaced, against what libraries leak.
        retry_after: seconds, the least retry hint.
        operations: module:NAME of the table of operations; one's own may add what is done after decoding.
    """

    processes: int = 2
    waiting_items: int = 1024
    waiting_bytes: int = 512 * 2**20
    memory_bytes: int = 3 * 2**30
    reply_bytes: int = 2**30
    item_bytes: int = 2**30
    start_seconds: float = 60.0
    jobs_per_process: int = 1000
    retry_after: float = 0.5
    operations: str = "triptych.runtime.media.operations:OPERATIONS"

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "operations" and not value > 0:
                raise ConfigError(f"media_pool.{name} is {value!r}; expected a positive number")


@dataclass(frozen=True, eq=False)
class Ticket:
    """A job in the pool. `done` is the pool's: use `result` and `drop`."""

    job: Job
    done: asyncio.Future[Reply]


class DecoderPool:
    """Owns the processes. `start` before the first job, `close` after the last; or `async with`."""

    def __init__(self, config: PoolConfig):
        self._config = config
        self._queue: deque[Ticket] = deque()
        self._arrived = asyncio.Event()
        self._keepers: list[asyncio.Task[None]] = []
        self._ready: set[DecoderProcess] = set()
        self._mean_seconds = 0.0
        self._closed = False
        self.replaced = 0
        """Processes that were replaced because they failed, were too slow or were cancelled."""

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def start(self) -> None:
        """Begin to start the processes; jobs wait for them."""
        self._keepers = [asyncio.create_task(self._keep()) for _ in range(self._config.processes)]

    async def close(self) -> None:
        """End every process; jobs that wait or run fail with DecoderLostError."""
        self._closed = True
        self._fail_waiting(DecoderLostError("the media pool is closed"))
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    @property
    def processes(self) -> int:
        """How many jobs can run at once."""
        return self._config.processes

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that are ready."""
        return tuple(sorted(process.pid for process in self._ready))

    @property
    def waiting(self) -> int:
        return len(self._queue)

    async def run(self, job: Job) -> Reply:
        """The result of `job`. Raises MediaPoolFullError, and what `DecoderProcess.ask` raises."""
        return await self.result(self.submit([job])[0])

    def submit(self, jobs: Sequence[Job], *, follows: bool = False) -> list[Ticket]:
        """Take in all of `jobs`, or refuse them all. Each ticket must go to `result` or to `drop`.

        Args:
            follows: the jobs belong to an item of which an earlier job has run: they go first, and are never refused.

        Raises MediaPoolFullError, DecoderLostError when the pool is closed.
        """
        if self._closed:
            raise DecoderLostError("the media pool is closed")
        if not follows:
            self._admit(jobs)
        loop = asyncio.get_running_loop()
        tickets = [Ticket(job, loop.create_future()) for job in jobs]
        if follows:
            self._queue.extendleft(reversed(tickets))
        else:
            self._queue.extend(tickets)
        self._arrived.set()
        return tickets

    async def result(self, ticket: Ticket) -> Reply:
        """What the job gave. A caller that is cancelled takes the job along."""
        try:
            return await ticket.done
        finally:
            self.drop(ticket)

    def drop(self, ticket: Ticket) -> None:
        """Nobody wants the job's result any more. Nothing, where it is done; else it is not begun, or its process is ended."""
        ticket.done.cancel()  # the keeper that has it sees this
        if ticket in self._queue:
            self._queue.remove(ticket)

    def _admit(self, jobs: Sequence[Job]) -> None:
        """Whatever a request may hold fits an empty queue: its limits are others' business."""
        held = sum(len(waiting.job.data) for waiting in self._queue)
        items, size = len(self._queue) + len(jobs), held + sum(len(job.data) for job in jobs)
        if self._queue and (items > self._config.waiting_items or size > self._config.waiting_bytes):
            hint = max(self._config.retry_after, self._mean_seconds * len(self._queue) / self._config.processes)
            raise MediaPoolFullError(
                f"{len(self._queue)} media items of {held} bytes together wait to be decoded; {len(jobs)} more are refused; "
                f"retry in {hint:.1f} s",
                retry_after=hint,
            )

    async def _keep(self) -> None:
        """Keep one process working, one after the other."""
        failures = 0
        while True:
            try:
                process = await self._start()
            except (DecoderLostError, OSError) as error:
                if not self._ready:  # nobody would ever take what waits
                    self._fail_waiting(
                        DecoderLostError(f"no decoder process can be started: {error}", retry_after=BACKOFF[1])
                    )
                await asyncio.sleep(min(BACKOFF[1], BACKOFF[0] * 2**failures))
                failures += 1
                continue
            failures = 0
            self._ready.add(process)
            try:
                await self._work(process)
            finally:
                self._ready.discard(process)
                await process.stop()

    async def _start(self) -> DecoderProcess:
        config = self._config
        return await DecoderProcess.start(
            config.operations, config.memory_bytes, config.item_bytes, config.reply_bytes, config.start_seconds
        )

    async def _work(self, process: DecoderProcess) -> None:
        """Hand jobs to `process` until it must be replaced."""
        for _ in range(self._config.jobs_per_process):
            waiting = await self._next()
            if not process.alive():  # it died idle, which is not this item's fault
                self._queue.appendleft(waiting)
                self._arrived.set()
                self.replaced += 1
                return
            if not await self._serve(process, waiting):
                return

    async def _next(self) -> Ticket:
        while not self._queue:
            self._arrived.clear()
            await self._arrived.wait()
        return self._queue.popleft()

    async def _serve(self, process: DecoderProcess, waiting: Ticket) -> bool:
        """Answer one job. Returns whether the process can be asked again."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        asking = asyncio.create_task(process.ask(waiting.job))
        try:
            await asyncio.wait((asking, waiting.done), return_when=asyncio.FIRST_COMPLETED)
            if waiting.done.done():  # its caller was cancelled
                self.replaced += 1
                return False
            self._mean_seconds += SMOOTHING * (loop.time() - began - self._mean_seconds)
            error = asking.exception()
            if error is None:
                waiting.done.set_result(asking.result())
                return True
            usable = type(error).__name__ in RAISED_BY_DECODERS
            self.replaced += not usable
            if not isinstance(error, TriptychError):  # a fault of this file, not of the item: say so instead of hanging
                error = DecoderLostError(f"asking a decoder process failed: {error!r}")
            waiting.done.set_exception(error)
            return usable
        finally:
            if not waiting.done.done():
                waiting.done.set_exception(DecoderLostError("the media pool is closed"))
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    def _fail_waiting(self, error: DecoderLostError) -> None:
        while self._queue:
            done = self._queue.popleft().done
            if not done.done():
                done.set_exception(error)
