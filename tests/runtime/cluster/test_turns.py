"""Calls of one caller are not refused for what the caller itself keeps busy."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from triptych.runtime.cluster.turns import in_turns
from triptych.runtime.core.errors import InvalidRequestError, OverloadedError


class Server:
    """Has room for `room` calls at once."""

    def __init__(self, room: int):
        self.room, self.running, self.most, self.refused = room, 0, 0, 0

    async def answer(self, number: int) -> int:
        if self.running >= self.room:
            self.refused += 1
            raise OverloadedError("full", retry_after=0.001)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0.001)
        finally:
            self.running -= 1
        return number * number


def test_what_there_is_no_room_for_waits_and_results_are_in_order():
    server = Server(room=3)
    results = asyncio.run(in_turns([partial(server.answer, number) for number in range(40)], 16))
    assert results == [number * number for number in range(40)]
    assert server.refused > 0 and server.most == 3


def test_no_more_than_asked_for_run_at_once():
    server = Server(room=100)
    asyncio.run(in_turns([partial(server.answer, number) for number in range(40)], 5))
    assert server.most == 5 and not server.refused


def test_a_refusal_that_has_nobody_to_wait_for_is_raised():
    with pytest.raises(OverloadedError, match="full"):
        asyncio.run(in_turns([partial(Server(room=0).answer, 1)] * 3, 2))


def test_other_failures_are_raised():
    async def fail() -> int:
        raise InvalidRequestError("no")

    async def broken() -> int:
        raise OverloadedError("the pool is too small for this request, now and ever")

    server = Server(room=2)
    for bad in (fail, broken):
        with pytest.raises((InvalidRequestError, OverloadedError)):
            asyncio.run(in_turns([partial(server.answer, 1), bad], 2))
