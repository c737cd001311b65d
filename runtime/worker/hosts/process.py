"""The process of a follower: its share of an instance over several hosts, which does what the leader's process does, call by call.

It talks to nobody but its leader: the scheduler, gateways and peers know the leader only. When either ends, so does the other.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from triptych.proto.v1 import hosts_pb2
from triptych.runtime.core.errors import ConfigError, EngineError
from triptych.runtime.engine.compile_guard import compile_count
from triptych.runtime.engine.engine import Engine
from triptych.runtime.worker.build import InstanceParts, build_shared, open_worker_model
from triptych.runtime.worker.config import WorkerConfig
from triptych.runtime.worker.hosts.config import BLAME
from triptych.runtime.worker.hosts.follower import Follower
from triptych.runtime.worker.hosts.page_mover import SpreadPageMover
from triptych.runtime.worker.hosts.parts import FollowingHost
from triptych.runtime.worker.hosts.replay import Replay
from triptych.runtime.worker.hosts.settings import shared_settings
from triptych.runtime.worker.media_parts import WorkerModel

log = logging.getLogger(__name__)


class FollowerProcess:
    """One per process: `start`, then `wait`, then `stop`."""

    def __init__(self, config: WorkerConfig, *, progress: Callable[[str], None] = log.info):
        if config.hosts is None or config.hosts.leads:
            raise ConfigError("a follower is one of several hosts, and not the first")
        self._config, self._hosts, self._progress = config, config.hosts, progress
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="build")
        self._calls: queue.SimpleQueue[hosts_pb2.DeviceCall] = queue.SimpleQueue()
        self._follower: Follower | None = None
        self._listening: asyncio.Task[str] | None = None
        self._failed: asyncio.Future[str] | None = None
        self._compiled_before = 0

    async def start(self) -> None:
        """Until all hosts are ready, and the leader's calls are being made.

        Raises ConfigError and what loading and compiling raise, the leader's refusal, and InstanceLostError if it does not come, or goes.
        """
        loop = asyncio.get_running_loop()
        self._failed = loop.create_future()
        model = await loop.run_in_executor(self._threads, open_worker_model, self._config)
        settings = shared_settings(self._config, model)
        config = self._config
        self._follower = Follower(self._hosts, settings, self._calls.put, token=config.token, tls=config.tls)
        self._progress(f"host {self._hosts.index} of {self._hosts.count} joins {self._hosts.leader}")
        host = FollowingHost(self._hosts, self._follower, await self._follower.join())
        self._listening = asyncio.create_task(self._follower.listen(), name="leader")
        building = asyncio.ensure_future(loop.run_in_executor(self._threads, self._build, model, host))
        await asyncio.wait({building, self._listening}, return_when=asyncio.FIRST_COMPLETED)
        if self._listening.done():
            raise EngineError(f"the leader ended while the instance was built: {self._listening.result()}")
        (parts,) = building.result()
        self._compiled_before = compile_count()
        threading.Thread(target=self._follow, args=(parts, loop), name="device-follower", daemon=True).start()

    async def wait(self) -> str | None:
        """Until the leader says that the instance ends (None), or a call fails here: why. Raises InstanceLostError if the leader is lost."""
        assert self._listening is not None and self._failed is not None, "start first"
        await asyncio.wait({self._listening, self._failed}, return_when=asyncio.FIRST_COMPLETED)
        if self._failed.done():
            return self._failed.result()
        compiled = compile_count() - self._compiled_before
        log.info("the leader ends: %s; %d programs were compiled after ready", self._listening.result(), compiled)
        return None

    async def stop(self, reason: str) -> None:
        """Tell the leader why this host ends. Threads may go on: they wait for devices, and the process is to end."""
        if self._follower is not None:
            await self._follower.leave(reason)
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)

    def _build(self, model: WorkerModel, host: FollowingHost) -> list[InstanceParts]:
        return build_shared(self._config, model, self._progress, host)

    def _follow(self, parts: InstanceParts, loop: asyncio.AbstractEventLoop) -> None:
        """The device thread: makes calls until one fails."""
        assert isinstance(parts.engine, Engine) and parts.kv is not None and self._failed is not None
        mover = parts.kv.mover
        assert isinstance(mover, SpreadPageMover), "of a shared host"
        replay = Replay(parts.engine, mover)
        try:
            while True:
                replay.make(self._calls.get())
        except Exception as error:
            log.exception("a call of the leader failed")
            reason = f"{type(error).__name__}: {error}"
            loop.call_soon_threadsafe(loop.call_later, BLAME, self._failed.set_result, reason)
