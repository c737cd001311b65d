"""Tokens for gateways: kept for one that comes late or again, forgotten for one that never does."""

from __future__ import annotations

import asyncio

import pytest

from triptych.runtime.core.clock import ManualClock
from triptych.runtime.core.errors import OverloadedError
from triptych.runtime.core.request import Logprobs, PromptReport, TokenOut
from triptych.runtime.core.tasks import StageTimes
from triptych.runtime.instance.messages import Emit, EmitPrompt
from triptych.runtime.worker.outbox import MAX_PENDING, UNREAD, TokenOutboxes


def emit(gateway: str) -> Emit:
    return Emit(gateway, (TokenOut("r", 0, 0, 4, 7, None, None),))


def test_a_gateway_that_subscribes_late_gets_everything_and_one_that_never_does_is_forgotten() -> None:
    async def scenario() -> None:
        clock = ManualClock()
        outboxes = TokenOutboxes(clock)
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


def prompt(scores: int) -> EmitPrompt:
    report = PromptReport(scores, 0, tuple((token % 50, Logprobs(-1.0)) for token in range(scores)))
    return EmitPrompt("gw", "r", 1, report, StageTimes())


def test_prompt_scores_count_as_tokens_and_a_message_of_any_size_may_wait_alone() -> None:
    async def scenario() -> None:
        outboxes = TokenOutboxes()
        outboxes.emit(prompt(30))
        assert outboxes.pending == 31
        reading = outboxes.of("gw").batches()
        await anext(reading)
        outboxes.emit(prompt(MAX_PENDING + 5))
        assert len((await anext(reading)).prompts[0].report.prompt_logprobs) == MAX_PENDING + 5
        outboxes.emit(prompt(MAX_PENDING))
        outboxes.emit(emit("gw"))
        with pytest.raises(OverloadedError, match="too slowly"):
            await anext(reading)

    asyncio.run(scenario())
