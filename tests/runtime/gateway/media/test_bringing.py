"""Pixels go to the encode instances that lack them: once for all requests, again after a failure, no longer than somebody needs them."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import grpc

from tests.runtime.gateway.calls import ask, finish, run, until
from tests.runtime.gateway.media.toys import PIECE_BYTES, ToyProcessor, image, vlm
from tests.runtime.gateway.toy_cluster import Cluster, Order, cluster, instance, serve_well
from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core.control import MediaNeeded
from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.core.media import MediaKind
from triptych.runtime.gateway.media.pieces import Piece, checksum

QUICK: dict[str, Any] = {"backoff_initial": 0.01, "backoff_max": 0.05}


def question(*numbers: int) -> pb.GenerateRequest:
    sampling = {"max_tokens": 3, "temperature": 0}
    return ask("what?", media=[pb.Media(data=image(number)) for number in numbers], sampling=sampling)


def stored(c: Cluster, order: Order, *items: int, encode: str = "e0") -> bool:
    return all((encode, order.request.media[item].hash) in c.prefill.media.stored for item in items)


async def encode_first(order: Order) -> None:
    """Needs all pixels, on two instances in turn, and goes on when they are there."""
    door, media = order.prefill.media, order.request.media
    for index in range(len(media)):
        order.need(index, encode=f"e{index % 2}")
    await until(lambda: all((f"e{i % 2}", item.hash) in door.stored for i, item in enumerate(media)))
    await serve_well(order)


def test_pixels_are_brought_to_the_instances_that_need_them_and_the_request_goes_on():
    async def body():
        async with cluster(vlm(), processor=ToyProcessor()) as c:
            c.scheduler.script = encode_first
            outcome = await finish(c.stub.Generate(question(3, 4, 5)))
            assert outcome.code is grpc.StatusCode.OK, outcome.details
            door, media = c.prefill.media, c.scheduler.last.request.media
            for index, number in enumerate((3, 4, 5)):
                assert door.stored[f"e{index % 2}", media[index].hash] == bytes([number]) * PIECE_BYTES
            header = door.headers[0]
            assert (header.owner.epoch, list(header.shape), list(header.grid)) == (9, [16, 48], [1, 4, 4])
            assert c.gateway.courier.counts.brought == 3 and c.gateway.courier.counts.bytes == 3 * PIECE_BYTES

    run(body())


def test_fifty_requests_about_one_image_bring_it_once():
    async def body():
        processor = ToyProcessor()
        async with cluster(vlm(), processor=processor) as c:
            c.scheduler.script = encode_first
            c.prefill.media.gate.clear()
            calls = [asyncio.create_task(finish(c.stub.Generate(question(3)))) for _ in range(50)]
            await until(lambda: len(c.scheduler.orders) == 50 and len(c.prefill.media.headers) == 1)
            c.prefill.media.gate.set()
            outcomes = await asyncio.gather(*calls)
            assert {outcome.code for outcome in outcomes} == {grpc.StatusCode.OK}
            assert len(c.prefill.media.headers) == 1 and processor.calls == [image(3)]

    run(body())


def test_what_the_instance_has_is_not_sent():
    async def body():
        async with cluster(vlm(), processor=ToyProcessor()) as c:

            async def script(order: Order) -> None:
                c.prefill.media.stored["e0", order.request.media[0].hash] = b"brought by another"
                order.need(0)
                await until(lambda: c.gateway.courier.counts.not_wanted == 1)
                await serve_well(order)

            c.scheduler.script = script
            assert (await finish(c.stub.Generate(question(3)))).code is grpc.StatusCode.OK
            assert c.gateway.courier.counts.bytes == 0

    run(body())


def test_a_push_that_fails_is_tried_again_while_the_request_lives():
    async def body():
        async with cluster(vlm(), processor=ToyProcessor(), **QUICK) as c:
            c.prefill.media.failures = [
                (0, grpc.StatusCode.RESOURCE_EXHAUSTED),
                (1, grpc.StatusCode.UNAVAILABLE),
                (0, grpc.StatusCode.INTERNAL),
                (1, grpc.StatusCode.CANCELLED),
            ]
            c.scheduler.script = encode_first
            assert (await finish(c.stub.Generate(question(3)))).code is grpc.StatusCode.OK
            counts = c.gateway.courier.counts
            assert len(c.prefill.media.headers) == 5 and (counts.crowded, counts.failed) == (1, 3)

    run(body())


class _CutOnce:
    """Calls to workers, the first over a channel that is being closed: grpc then cancels whoever waits for it."""

    def __init__(self, calls: Any):
        self._calls, self.cut = calls, 0

    def put_media(self, address: str, timeout: float) -> Any:
        self.cut += 1
        return self if self.cut == 1 else self._calls.put_media(address, timeout)

    async def write(self, message: Any) -> None:
        raise asyncio.CancelledError()

    def add_done_callback(self, callback: Any) -> None:
        pass

    def cancel(self) -> None:
        pass


def test_a_push_whose_channel_is_closed_is_tried_again():
    async def body():
        async with cluster(vlm(), processor=ToyProcessor(), **QUICK) as c:
            calls = c.gateway.courier._calls = _CutOnce(c.gateway.courier._calls)
            c.scheduler.script = encode_first
            assert (await finish(c.stub.Generate(question(3)))).code is grpc.StatusCode.OK
            assert calls.cut == 2 and c.gateway.courier.counts.failed == 1

    run(body())


def test_what_would_be_refused_again_is_not_tried_again_until_it_is_asked_for_again():
    async def body():
        async with cluster(vlm(), processor=ToyProcessor(), **QUICK) as c:

            async def script(order: Order) -> None:
                c.prefill.media.failures = [(0, grpc.StatusCode.NOT_FOUND)]
                order.need(0)
                await until(lambda: c.gateway.courier.counts.failed == 1 and c.gateway.courier.active == 0)
                await asyncio.sleep(0.1)
                assert len(c.prefill.media.headers) == 1
                order.need(0, encode="e1")
                await until(lambda: stored(c, order, 0, encode="e1"))
                await serve_well(order)

            c.scheduler.script = script
            assert (await finish(c.stub.Generate(question(3)))).code is grpc.StatusCode.OK

    run(body())


def test_a_push_ends_with_the_last_request_that_needs_it():
    async def body():
        async with cluster(vlm(), processor=ToyProcessor(), **QUICK) as c:

            async def script(order: Order) -> None:
                order.need(0)

            c.scheduler.script = script
            c.prefill.media.failures = [(0, grpc.StatusCode.UNAVAILABLE)] * 1000
            first, second = c.stub.Generate(question(3)), c.stub.Generate(question(3))
            await until(lambda: len(c.scheduler.orders) == 2 and len(c.prefill.media.headers) >= 2)
            assert c.gateway.courier.active == 1
            first.cancel()
            await until(lambda: c.gateway.open_requests == 1)
            tries = len(c.prefill.media.headers)
            await until(lambda: len(c.prefill.media.headers) > tries)
            second.cancel()
            await until(lambda: c.gateway.courier.active == 0)
            tries = len(c.prefill.media.headers)
            await asyncio.sleep(0.3)
            assert len(c.prefill.media.headers) <= tries + 1, "one may have been on its way"

    run(body())


def test_a_new_attempt_ends_the_pushes_of_the_last_one_and_has_its_media_still():
    async def body():
        processor = ToyProcessor()
        async with cluster(vlm(), processor=processor, **QUICK) as c:

            async def script(order: Order) -> None:
                if order.request.attempt == 1:
                    c.prefill.media.failures = [(0, grpc.StatusCode.UNAVAILABLE)] * 1000
                    order.need(0)
                    await until(lambda: len(c.prefill.media.headers) >= 1)
                    order.interrupt(2)
                    return
                order.need(0, encode="e9", attempt=1)  # late news of the attempt that is over
                await until(lambda: c.gateway.courier.active == 0)
                c.prefill.media.failures = []
                order.need(0, encode="e1")
                await until(lambda: stored(c, order, 0, encode="e1"))
                await serve_well(order)

            c.scheduler.script = script
            outcome = await finish(c.stub.Generate(question(3)))
            assert outcome.code is grpc.StatusCode.OK and outcome.timings.attempts == 2
            (resume,) = c.scheduler.resumed
            assert len(resume.request.media) == 1 and processor.calls == [image(3)]
            assert not any(header.owner.id == "e9" for header in c.prefill.media.headers)

    run(body())


def test_a_new_scheduler_is_told_of_the_media_and_may_ask_for_them():
    async def body():
        async with cluster(vlm(), processor=ToyProcessor(), **QUICK) as c:

            async def script(order: Order) -> None:
                order.place()

            c.scheduler.script = script
            call = asyncio.create_task(finish(c.stub.Generate(question(3))))
            await until(lambda: len(c.scheduler.orders) == 1)
            (order,) = c.scheduler.orders.values()
            await c.restart_scheduler()
            await until(lambda: len(c.scheduler.declared) == 1)
            assert c.scheduler.declared[0].media == order.request.media
            again = Order(order.request, c.scheduler, c.prefill, c.decode)
            again.need(0)
            await until(lambda: stored(c, again, 0))
            await serve_well(again)
            assert (await call).code is grpc.StatusCode.OK

    run(body())


def test_a_push_to_an_instance_that_began_anew_is_given_up():
    async def body():
        async with cluster(vlm(), processor=ToyProcessor(), **QUICK) as c:

            async def script(order: Order) -> None:
                c.prefill.media.failures = [(0, grpc.StatusCode.UNAVAILABLE)] * 1000  # what a stale epoch is answered
                order.need(0)
                await until(lambda: len(c.prefill.media.headers) >= 2)
                again = instance("e0", c.scheduler.instances[0].address, Role.ENCODE)  # at epoch 7; the push is for 9
                c.scheduler.announce([*c.scheduler.instances, again])
                await until(lambda: c.gateway.courier.active == 0)
                c.prefill.media.failures = []
                order.need(0, encode="e1")
                await until(lambda: stored(c, order, 0, encode="e1"))
                await serve_well(order)

            c.scheduler.script = script
            assert (await finish(c.stub.Generate(question(3)))).code is grpc.StatusCode.OK

    run(body())


def test_tokens_come_while_pixels_are_brought():
    async def body():
        async with cluster(vlm(), processor=ToyProcessor()) as c:
            c.prefill.media.gate.clear()  # the push of the first request waits

            async def script(order: Order) -> None:
                if order.request.media:
                    order.need(0)
                    return
                await serve_well(order)

            c.scheduler.script = script
            stuck = c.stub.Generate(question(3))
            await until(lambda: len(c.prefill.media.headers) == 1)
            for _ in range(5):
                assert (await finish(c.stub.Generate(question()))).code is grpc.StatusCode.OK
            stuck.cancel()
            await until(lambda: c.gateway.open_requests == 0)
            c.prefill.media.gate.set()

    run(body())


def test_items_that_a_request_does_not_have_and_unknown_requests_are_ignored():
    async def body():
        async with cluster(vlm(), processor=ToyProcessor()) as c:

            async def script(order: Order) -> None:
                order.need(5, 0)
                await until(lambda: stored(c, order, 0))
                await serve_well(order)

            c.scheduler.script = script
            assert (await finish(c.stub.Generate(question(3)))).code is grpc.StatusCode.OK
            c.scheduler.last.need(0, encode="e7")
            await asyncio.sleep(0.05)
            assert len(c.prefill.media.headers) == 1

    run(body())


def test_who_asks_right_after_the_last_one_has_gone_is_served():
    async def body():
        async with cluster(vlm(), processor=ToyProcessor(), **QUICK) as c:
            courier, door = c.gateway.courier, c.prefill.media

            async def script(order: Order) -> None:
                await serve_well(order)

            c.scheduler.script = script
            await finish(c.stub.Generate(question(3)))
            await until(lambda: c.gateway.open_requests == 0)
            address, owner = c.scheduler.instances[0].address, InstanceRef("e0", 9)
            (item,) = c.scheduler.last.request.media
            content = bytes([3]) * PIECE_BYTES
            piece = Piece(item.hash, item.kind, 4, 17, (1, 2, 2), (1, 4, 4), (16, 48), content, checksum(content))
            door.gate.clear()
            courier.bring(MediaNeeded("a", owner, address, (0,)), [piece], lambda: True)
            await until(lambda: len(door.headers) == 1)
            courier.forget("a")
            courier.bring(MediaNeeded("b", owner, address, (0,)), [piece], lambda: True)
            door.gate.set()
            await until(lambda: ("e0", item.hash) in door.stored and courier.active == 0)

    run(body())


class _ThereAtFirst(dict[tuple[str, str], bytes]):
    """What a door has stored: the first call finds everything there (it looks twice), later ones only what came."""

    looks = 0

    def __contains__(self, key: object) -> bool:
        self.looks += 1
        return self.looks <= 2 or super().__contains__(key)


def test_who_asks_while_the_answer_is_on_its_way_that_nobody_wants_it_is_asked_for_again():
    async def body():
        async with cluster(vlm(), processor=ToyProcessor(), **QUICK) as c:
            courier, door = c.gateway.courier, c.prefill.media
            address, owner = c.scheduler.instances[0].address, InstanceRef("e0", 9)
            content = bytes([3]) * PIECE_BYTES
            piece = Piece("h", MediaKind.IMAGE, 4, 17, (1, 2, 2), (1, 4, 4), (16, 48), content, checksum(content))
            needed = MediaNeeded("a", owner, address, (0,))
            door.gate.clear()
            door.stored = _ThereAtFirst()
            courier.bring(needed, [piece], lambda: True)
            await until(lambda: len(door.headers) == 1)
            courier.bring(dataclasses.replace(needed, request="b"), [piece], lambda: True)
            door.gate.set()
            await until(lambda: door.stored.get(("e0", "h")) == content and courier.active == 0)
            assert courier.counts.not_wanted == 1

    run(body())


def test_who_asks_after_the_last_byte_is_asked_for_again():
    async def body():
        async with cluster(vlm(), processor=ToyProcessor(), **QUICK) as c:
            courier, door = c.gateway.courier, c.prefill.media
            address, owner = c.scheduler.instances[0].address, InstanceRef("e0", 9)
            content = bytes([3]) * PIECE_BYTES
            piece = Piece("h", MediaKind.IMAGE, 4, 17, (1, 2, 2), (1, 4, 4), (16, 48), content, checksum(content))
            needed = MediaNeeded("a", owner, address, (0,))

            async def drop_it_again() -> None:
                await until(lambda: ("e0", "h") in door.stored)
                courier.bring(dataclasses.replace(needed, request="b"), [piece], lambda: True)
                del door.stored["e0", "h"]  # encoded for the first one, and gone from the shelf
                door.answer.set()

            door.answer.clear()
            courier.bring(needed, [piece], lambda: True)
            await drop_it_again()
            await until(lambda: ("e0", "h") in door.stored and courier.active == 0)
            assert len(door.headers) == 2

    run(body())
