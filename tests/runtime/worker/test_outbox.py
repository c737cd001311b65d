"""Tokens for gateways: kept for one that comes late or again, forgotten for one that never does."""

from __future__ import annotations

import asyncio

from triptych.runtime.core.clock import ManualClock
from triptych.runtime.core.request import TokenOut
from triptych.runtime.instance.messages import Emit
from triptych.runtime.worker.outbox import UNREAD, Outboxes


def emit(gateway: str) -> Emit:
    return Emit(gateway, (TokenOut("r", 0, 0, 4, 7, None, None),))


def test_a_gateway_that_subscribes_late_gets_everything_and_one_that_never_does_is_forgotten() -> None:
    async def scenario() -> None:
        clock = ManualClock()
        outboxes = Outboxes(clock)
        outboxes.emit(emit("late"))
        outboxes.emit(emit("never"))
        reading = outboxes.of("late").batches()
        assert len((await anext(reading)).tokens) == 1
        clock.advance(2 * UNREAD)
        outboxes.emit(emit("new"))
        assert outboxes.pending == 1, "what waits for the gateway that never came must be gone"
        outboxes.emit(emit("late"))
        assert len((await anext(reading)).tokens) == 1, "a subscribed gateway is never forgotten"

        await reading.aclose()
        outboxes.emit(emit("late"))
        clock.advance(UNREAD / 2)
        outboxes.of("other")
        again = outboxes.of("late").batches()
        assert len((await anext(again)).tokens) == 1, "a gateway that comes back in time misses nothing"
        await again.aclose()

    asyncio.run(scenario())
