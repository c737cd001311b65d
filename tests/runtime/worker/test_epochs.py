"""A new epoch is known to the scheduler whenever it begins, and no command for the old one has an effect in it."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import cast

from tests.runtime.scheduler.live import eventually
from tests.runtime.scheduler.world import request
from tests.runtime.worker.rig import FakeEngine, Rig
from triptych.runtime.core.errors import EngineError
from triptych.runtime.core.tasks import Granted, ReserveDecode
from triptych.runtime.instance.config import InstanceConfig


class SlowEngine(FakeEngine):
    """Takes its time to come back from a failure."""

    def __init__(self, config: InstanceConfig, seconds: float):
        super().__init__(config, seconds)
        self.rebuilding, self.go_on = threading.Event(), threading.Event()

    def rebuild(self) -> None:
        self.rebuilding.set()
        assert self.go_on.wait(60)


def _broken() -> None:
    raise EngineError("the device is gone")


def test_a_declaration_comes_between_what_was_reported_before_it_and_after_it() -> None:
    async def scenario() -> None:
        with ThreadPoolExecutor(2) as threads:
            rig = Rig(threads)
            go_on = threading.Event()
            order: list[object] = []
            rig.live.start()

            def hold() -> None:
                go_on.wait(60)

            rig.live._loop.call(hold)  # what follows is handled in one turn of the loop
            rig.on_report = lambda report: order.append(type(report))
            rig.live.command(ReserveDecode(request("before"), ttl=60.0))
            rig.live.declare(lambda info, held: order.append([task.request for task in held]))
            rig.live.command(ReserveDecode(request("after"), ttl=60.0))
            go_on.set()
            await eventually(lambda: len(order) == 3)
            assert order == [Granted, ["before"], Granted]
            await rig.live.stop()

    asyncio.run(scenario())


def test_a_command_for_the_old_epoch_has_no_effect_in_the_new_one() -> None:
    async def scenario() -> None:
        with ThreadPoolExecutor(2) as threads:
            rig = Rig(threads, engine=SlowEngine)
            engine = cast(SlowEngine, rig.engine)
            rig.live.start()
            rig.live._loop.call(_broken)
            assert await asyncio.to_thread(engine.rebuilding.wait, 60)
            rig.live.command(ReserveDecode(request("r"), ttl=60.0))  # the scheduler knows no better yet
            engine.go_on.set()
            await eventually(lambda: bool(rig.resets))
            assert (await rig.live.snapshot()).resources["tasks"] == 0
            assert rig.reports == []
            rig.live.command(ReserveDecode(request("r"), ttl=60.0))
            await eventually(lambda: bool(rig.reports))
            ((ref, report),) = rig.reports
            assert ref == rig.resets[0].ref and isinstance(report, Granted)
            await rig.live.stop()

    asyncio.run(scenario())
