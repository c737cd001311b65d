"""An outbox keeps order, never grows past its limit, and ends the stream it belongs to in one way."""

from __future__ import annotations

import asyncio

import pytest

from triptych.runtime.core.errors import InstanceLostError, OverloadedError
from triptych.runtime.wire.outbox import Outbox


async def forever() -> None:
    await asyncio.Event().wait()


def test_messages_are_written_in_order_until_the_listener_is_done() -> None:
    async def scenario() -> None:
        outbox: Outbox[int] = Outbox("toy", limit=10)
        written: list[int] = []

        async def write(message: int) -> None:
            await asyncio.sleep(0)
            written.append(message)

        async def listen() -> str:
            for n in range(8):
                outbox.put(n)
            while len(written) < 8:
                await asyncio.sleep(0.001)
            return "done"

        assert await outbox.converse(write, listen()) == "done"
        assert written == list(range(8))

    asyncio.run(scenario())


def test_a_peer_that_does_not_read_is_given_up_although_the_write_never_returns() -> None:
    async def scenario() -> None:
        outbox: Outbox[int] = Outbox("worker w", limit=3)

        async def write(message: int) -> None:
            await forever()

        async def flood() -> None:
            while True:
                outbox.put(0)
                await asyncio.sleep(0)

        async with asyncio.timeout(60):
            with pytest.raises(OverloadedError, match="worker w reads too slowly: 3 messages"):
                await outbox.converse(write, flood())
        assert outbox.closed
        outbox.put(1)  # dropped

    asyncio.run(scenario())


def test_closing_ends_the_conversation_with_the_first_reason_given() -> None:
    async def scenario() -> None:
        async def write(message: int) -> None: ...

        for error in (InstanceLostError("gone"), None):
            outbox: Outbox[int] = Outbox("toy", limit=3)
            asyncio.get_running_loop().call_later(0.01, outbox.close, error)
            asyncio.get_running_loop().call_later(0.01, outbox.close, OverloadedError("too late"))
            if error is None:
                assert await outbox.converse(write, forever()) is None
            else:
                with pytest.raises(InstanceLostError, match="gone"):
                    await outbox.converse(write, forever())

    asyncio.run(scenario())


def test_what_the_writer_or_listener_raises_is_raised() -> None:
    async def scenario() -> None:
        async def broken(*_: object) -> None:
            raise ZeroDivisionError

        async def write(message: int) -> None: ...

        outbox: Outbox[int] = Outbox("toy", limit=3)
        with pytest.raises(ZeroDivisionError):
            await outbox.converse(write, broken())
        outbox = Outbox("toy", limit=3)
        outbox.put(1)
        with pytest.raises(ZeroDivisionError):
            await outbox.converse(broken, forever())

    asyncio.run(scenario())
