"""A cluster in this process: front and workers on one background event loop, on loopback ports that the system picks.

The same classes as in a deployment, with real gRPC between them; only the process boundaries are missing. Each worker is a `WorkerProcess`
with devices of its own, so KV can move by any transport. Device loops share this interpreter's lock with everything else here: good for scripts and
tests, not for speed.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from triptych.runtime.cluster.front import Front, FrontConfig
from triptych.runtime.worker.config import WorkerConfig
from triptych.runtime.worker.process import WorkerProcess
from triptych.runtime.worker.service import InstanceSnapshot

T = TypeVar("T")


class LocalCluster:
    """A context manager: inside it, `address` answers.

    Args:
        front: its port may be 0.
        workers: their `scheduler` is filled in. Each takes the first devices of this process that are its own: see `first_device`.
        ready_timeout: seconds after the workers registered until the gateway must see them.
    """

    def __init__(
        self,
        front: FrontConfig,
        workers: Sequence[WorkerConfig],
        *,
        progress: Callable[[str], None] = lambda text: None,
        ready_timeout: float = 30.0,
    ):
        self._front_config = front
        self._worker_configs = tuple(workers)
        self._progress = progress
        self._ready_timeout = ready_timeout
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cluster", daemon=True)
        self.front = Front(front)
        self.workers: list[WorkerProcess] = []
        self.address = ""

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self.run(self._start())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the cluster's loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def snapshots(self) -> list[InstanceSnapshot]:
        """Every instance's occupancy and counters, by instance id."""

        async def take() -> list[InstanceSnapshot]:
            return [await instance.snapshot() for worker in self.workers for instance in worker.instances]

        return sorted(self.run(take()), key=lambda snapshot: snapshot.info.ref.id)

    def close(self) -> None:
        """End everything. Running requests fail with CANCELLED."""
        if not self._thread.is_alive():
            return
        try:
            self.run(self._stop())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _start(self) -> None:
        await self.front.start()
        self.address = self.front.address
        first = 0
        for config in self._worker_configs:
            placed = WorkerConfig(**{**vars(config), "scheduler": self.address, "first_device": first})
            first += config.devices
            self.workers.append(WorkerProcess(placed, progress=self._progress))
        for worker in self.workers:
            await worker.start()
        await self.front.wait_serving(self._ready_timeout)

    async def _stop(self) -> None:
        if self.address:
            await self.front.close_gateway(grace=0.2)
        for worker in self.workers:
            await worker.stop(grace=0.2)
        if self.address:
            await self.front.close()
        pending = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
