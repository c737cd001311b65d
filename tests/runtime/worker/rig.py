"""A worker without devices: real instances on real device loops around the fake device of the instance tests, in a real membership."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest

from tests.runtime.instance.fake_device import FakeDevice, TokenProbe
from tests.runtime.scheduler.world import info
from tests.runtime.worker.test_control_client import WELCOME, ToyScheduler
from triptych.proto.v1 import control_pb2_grpc
from triptych.runtime.core.clock import MonotonicClock
from triptych.runtime.core.instance import InstanceInfo, InstanceRef
from triptych.runtime.core.request import TokenOut
from triptych.runtime.core.tasks import TaskReport
from triptych.runtime.instance.config import InstanceConfig
from triptych.runtime.instance.core import InstanceCore
from triptych.runtime.instance.messages import Emit, EmitPrompt
from triptych.runtime.instance.plan import StepPlan, StepResult
from triptych.runtime.transfer.header import KvGroupHeader, KvHeader
from triptych.runtime.worker.build import InstanceParts, PoolParts
from triptych.runtime.worker.config import InstancePlan, WorkerConfig
from triptych.runtime.worker.instance import LiveInstance
from triptych.runtime.worker.membership import Membership
from triptych.runtime.worker.surroundings import Surroundings

INFO = info("i", "pd", worker="w")
HEADER = KvHeader("toy", "1", (KvGroupHeader("self", "full", 2, 8, (0,)),), "float32", 4, 2, ((0, 1),))


class FakeEngine:
    """The fake device; a step takes `seconds`, which may be changed at any time."""

    def __init__(self, config: InstanceConfig, seconds: float):
        self.config = SimpleNamespace(num_pages=config.num_pages, max_num_seqs=config.max_num_seqs)
        self.pools = ()
        self.params = ()
        self.media = self.draft = None
        self.seconds = seconds
        self.device = FakeDevice(config)

    def dispatch(self, plan: StepPlan) -> StepResult:
        return self.device.execute(plan)

    def collect(self, pending: StepResult) -> StepResult:
        time.sleep(self.seconds)
        return pending

    def rebuild(self) -> None:
        for page in self.device.pages:
            page[:] = [None] * len(page)


class Rig:
    """One live instance; what it reports goes to `membership` if there is one. `reports`, `tokens` and `resets` are all that it said."""

    def __init__(
        self,
        threads: ThreadPoolExecutor,
        info: InstanceInfo = INFO,
        *,
        seconds: float = 0.0,
        membership: Membership | None = None,
        engine: type[FakeEngine] = FakeEngine,
    ):
        self.reports: list[tuple[InstanceRef, TaskReport]] = []
        self.tokens: list[TokenOut] = []
        self.resets: list[InstanceInfo] = []
        self.refusals: list[str] = []
        self.membership = membership
        self.on_report: Callable[[TaskReport], object] = lambda report: None
        config = InstanceConfig(info.ref, info.address, "digest", info.roles, 64, 4, 8, 64)
        self.engine = engine(config, seconds)
        self.core = InstanceCore(config, stop_probe=TokenProbe, random=random.Random(1))
        mover = SimpleNamespace(layout=SimpleNamespace(head_unit=1))
        plan = InstancePlan(info.ref.id, info.roles)
        around = Surroundings(
            clock=MonotonicClock(),
            loop=asyncio.get_running_loop(),
            threads=threads,
            transports={},
            channels=lambda address: cast(Any, None),
            report=self._report,
            emit=self._emit,
            reset=self._reset,
            roles_refused=self._refuse,
            died=pytest.fail,
        )
        parts = InstanceParts(plan, *cast(Any, (None, self.engine, PoolParts(cast(Any, mover), HEADER))))
        self.live = LiveInstance(parts, self.core, info, around)

    @property
    def idle(self) -> bool:
        """Whether it holds no task; from any thread."""
        return not self.core._state.tasks

    def _report(self, ref: InstanceRef, report: TaskReport) -> None:
        self.reports.append((ref, report))
        self.on_report(report)
        if self.membership is not None:
            self.membership.report(ref, report)

    def _emit(self, message: Emit | EmitPrompt) -> None:
        if isinstance(message, Emit):
            self.tokens += message.tokens

    def _reset(self, old: InstanceRef, new: InstanceInfo, reason: str) -> None:
        self.resets.append(new)
        if self.membership is not None:
            self.membership.reset(old, new, reason)

    def _refuse(self, ref: InstanceRef, reason: str) -> None:
        self.refusals.append(reason)
        if self.membership is not None:
            self.membership.roles_refused(ref, reason)


@asynccontextmanager
async def registered(
    *, seconds: float = 0.0, orphan_seconds: float = 30.0, instances: tuple[InstanceInfo, ...] = (INFO,)
) -> AsyncIterator[tuple[ToyScheduler, list[Rig]]]:
    """A toy scheduler and the rigs of one worker that registers at it; `rig.membership` stays registered."""
    server = grpc.aio.server()
    scheduler = ToyScheduler(WELCOME)
    control_pb2_grpc.add_ControlServicer_to_server(scheduler, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    plans = tuple(InstancePlan(info.ref.id, info.roles) for info in instances)
    config = WorkerConfig("w", address, plans, "toy", Path("unused"), "toy", orphan_seconds=orphan_seconds)
    with ThreadPoolExecutor(4) as threads:
        rigs: list[Rig] = []
        retired: list[Rig] = []

        def retire(instance: LiveInstance, reason: str) -> None:
            (rig,) = (rig for rig in rigs if rig.live is instance)
            rigs.remove(rig)
            retired.append(rig)
            membership.left(instance.info.ref, reason)

        membership = Membership(config, lambda: [rig.live for rig in rigs], retire, MonotonicClock())
        rigs += [Rig(threads, info, seconds=seconds, membership=membership) for info in instances]
        for rig in rigs:
            rig.live.start()
        running = asyncio.create_task(membership.run())
        try:
            yield scheduler, rigs
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await membership.leave()
            for rig in [*rigs, *retired]:
                await rig.live.stop()
            await server.stop(None)
