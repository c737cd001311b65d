"""Media are processed once for all requests that bring them, held as long as one needs them, and every failure names its part."""

from __future__ import annotations

import asyncio

import pytest

from tests.runtime.gateway.calls import run, until
from tests.runtime.gateway.media.toys import PIECE_BYTES, TOKENS, ToyProcessor, image
from triptych.runtime.core.errors import DeadlineError, InvalidRequestError, NotFoundError, OverloadedError
from triptych.runtime.gateway.media.asking import Asked
from triptych.runtime.gateway.media.desk import AT_ONCE, MediaDesk
from triptych.runtime.gateway.media.keep import PixelKeep


def desk(processor: ToyProcessor, limit: int = 10**6, spare: int = 10**6) -> MediaDesk:
    return MediaDesk(processor, PixelKeep(limit, spare, 1.0))


def asked(*numbers: int) -> list[Asked]:
    return [Asked(f"media[{index}]", image(number), "", "") for index, number in enumerate(numbers)]


def test_media_come_in_the_order_of_the_prompt_and_are_held_to_the_end():
    async def body():
        processor = ToyProcessor(pieces=2)
        d = desk(processor)
        with d.holding() as holding:
            await d.fill(holding, asked(3, 1, 3), "me", 5.0)
            assert [medium.field for medium in holding.media] == ["media[0]", "media[1]", "media[2]"]
            assert [piece.data[0] for piece in holding.pieces] == [3, 3, 1, 1, 3, 3]
            assert holding.media[0].tokens == 2 * TOKENS
            assert len({piece.hash for piece in holding.pieces}) == 4
            assert d.keep.held_bytes == 4 * PIECE_BYTES
        assert d.keep.held_bytes == 0 and sorted(processor.calls) == [image(1), image(3)]
        with d.holding() as holding:
            await d.fill(holding, asked(1), "me", 5.0)
        assert len(processor.calls) == 2, "what was processed before is still here"

    run(body())


def test_many_requests_at_once_with_the_same_image_process_it_once():
    async def body():
        processor = ToyProcessor()
        d = desk(processor)
        processor.gate.clear()

        async def one() -> bytes:
            with d.holding() as holding:
                await d.fill(holding, asked(5), "me", 5.0)
                return holding.pieces[0].data

        tasks = [asyncio.create_task(one()) for _ in range(20)]
        await until(lambda: len(processor.calls) == 1)
        tasks[0].cancel()
        await asyncio.sleep(0.02)
        processor.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert all(data == bytes([5]) * PIECE_BYTES for data in results[1:])
        assert len(processor.calls) == 1 and processor.cancelled == 0 and d.keep.held_bytes == 0

    run(body())


def test_processing_that_nobody_waits_for_is_given_up_and_the_next_one_begins_anew():
    async def body():
        processor = ToyProcessor()
        d = desk(processor)
        processor.gate.clear()
        with pytest.raises(DeadlineError, match="media were being processed"), d.holding() as holding:
            await d.fill(holding, asked(1), "me", 0.05)
        await until(lambda: processor.cancelled == 1)
        processor.gate.set()
        with d.holding() as holding:
            await d.fill(holding, asked(1), "me", 5.0)
        assert len(processor.calls) == 2

    run(body())


def test_media_of_one_request_wait_in_line_within_its_time():
    async def body():
        processor = ToyProcessor()
        processor.max_items = 40
        d = desk(processor)
        processor.gate.clear()
        numbers = tuple(range(1, 31))
        with d.holding() as holding:
            filling = asyncio.create_task(d.fill(holding, asked(*numbers), "me", 5.0))
            await until(lambda: len(processor.calls) == AT_ONCE)
            await asyncio.sleep(0.02)
            assert len(processor.calls) == AT_ONCE, "the others wait here, and keep nobody's place"
            with d.holding() as other:
                second = asyncio.create_task(d.fill(other, asked(99), "you", 5.0))
                await until(lambda: image(99) in processor.calls)
                processor.gate.set()
                await second
            await filling
            assert [piece.data[0] for piece in holding.pieces] == list(numbers)

    run(body())


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (Asked("media[1]", b"what", "", ""), InvalidRequestError, "media[1]: the item is of an unknown type"),
        (Asked("media[1]", image(1), "", "audio/wav"), InvalidRequestError, "media[1]: the item is declared as"),
        (Asked("media[1]", image(666), "", ""), InvalidRequestError, "media[1]: this image cannot be decoded"),
        (Asked("media[1]", b"", "media-1", ""), NotFoundError, "media[1]: this server keeps no uploads"),
    ],
)
def test_a_bad_medium_is_named_and_the_others_are_given_back(bad: Asked, error: type, message: str):
    async def body():
        d = desk(ToyProcessor())
        with pytest.raises(error) as caught, d.holding() as holding:
            await d.fill(holding, [*asked(1), bad], "me", 5.0)
        assert caught.value.message.startswith(message)
        assert d.keep.held_bytes == 0

    run(body())


def test_one_failure_of_a_shared_medium_names_the_part_of_each_request():
    async def body():
        processor = ToyProcessor()
        d = desk(processor)
        processor.gate.clear()

        async def one(field: str) -> str:
            with pytest.raises(InvalidRequestError) as caught, d.holding() as holding:
                await d.fill(holding, [Asked(field, image(666), "", "")], "me", 5.0)
            return caught.value.message

        tasks = [asyncio.create_task(one(field)) for field in ("media[0]", "chat.messages[3].parts[1]")]
        await until(lambda: len(processor.calls) == 1)
        processor.gate.set()
        assert await asyncio.gather(*tasks) == [
            "media[0]: this image cannot be decoded",
            "chat.messages[3].parts[1]: this image cannot be decoded",
        ]

    run(body())


def test_when_open_requests_hold_too_much_the_next_is_refused_before_work_is_spent_on_it():
    async def body():
        processor = ToyProcessor()
        d = desk(processor, limit=PIECE_BYTES)
        with d.holding() as first:
            await d.fill(first, asked(1), "me", 5.0)
            with (
                pytest.raises(OverloadedError, match=r"^media\[0\]: open requests hold") as caught,
                d.holding() as more,
            ):
                await d.fill(more, asked(2), "me", 5.0)
            assert caught.value.retry_after == 1.0 and len(processor.calls) == 1
        with d.holding() as more:
            await d.fill(more, asked(2), "me", 5.0)

    run(body())
