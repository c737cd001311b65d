"""A request leaves its place in bounded time even if its client stops reading after the last token was made."""

from __future__ import annotations

import asyncio

import pytest

from tests.runtime.gateway.test_session import REPORT, session, token
from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core.clock import MonotonicClock
from triptych.runtime.core.errors import DeadlineError
from triptych.runtime.core.standing import Told
from triptych.runtime.core.tasks import StageTimes
from triptych.runtime.gateway.live import LiveRequest
from triptych.runtime.gateway.session import State


class NoScheduler:
    """Nobody to tell anything."""

    connected = False

    def send(self, told: Told) -> None:
        raise AssertionError("not connected")


def test_a_client_that_never_reads_is_given_up_at_the_deadline_though_the_session_ended_well():
    async def body() -> None:
        async def stuck(response: pb.GenerateResponse) -> None:
            await asyncio.Event().wait()

        clock = MonotonicClock()
        s = session(deadline=clock.now() + 0.2)
        live = LiveRequest(s, NoScheduler(), clock, 0.1, lambda ended: None)
        s.prompt(1, REPORT, StageTimes(), clock.now())
        s.token(token(0, finish=True), clock.now())
        live.changed()
        assert s.state is State.DONE
        with pytest.raises(DeadlineError, match="before the client had read everything"):
            await asyncio.wait_for(live.deliver(stuck), 60)
        live.close()

    asyncio.run(body())
