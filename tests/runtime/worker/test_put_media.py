"""Pixels come in whole or not at all: Worker.PutMedia over a real connection, against a device loop that the test plays."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import grpc
import jax
import numpy as np
import pytest

from tests.runtime.engine.toy_encoder import PATCH_DIM, ToyEncoder, pixels
from triptych.proto.v1 import common_pb2, worker_pb2
from triptych.runtime.core.instance import InstanceRef
from triptych.runtime.core.media import MediaItem, MediaKind
from triptych.runtime.engine.shelf import MediaShelf, Pixels
from triptych.runtime.wire.auth import bearer_interceptor, bearer_metadata
from triptych.runtime.wire.ended import CallEnd
from triptych.runtime.wire.handlers import service_handler
from triptych.runtime.worker import media_door
from triptych.runtime.worker.media_door import MediaDoor
from triptych.runtime.worker.outbox import TokenOutboxes
from triptych.runtime.worker.service import WorkerServicer
from triptych.sharding.mesh import make_mesh

WORKER = worker_pb2.DESCRIPTOR.services_by_name["Worker"]
REF = InstanceRef("e", 5)
CAT = pixels(1, 3, 4)
CAT_ITEM = MediaItem("cat", MediaKind.IMAGE, 0, 12, 12, (1, 3, 4))
SLOTS = 16


@dataclass
class Stage:
    """One encode instance's door behind a server. `told` are the items that its core heard of, `needless` those that it needs no more, `paged` those that
    have pages already."""

    shelf: MediaShelf
    ref: InstanceRef = REF
    lives: bool = True
    item: MediaItem = CAT_ITEM
    told: list[str] = field(default_factory=list)
    needless: set[str] = field(default_factory=set)
    paged: set[str] = field(default_factory=set)
    channel: grpc.aio.Channel = field(init=False)

    async def lacking(self, owner: InstanceRef, hash: str) -> MediaItem | None:
        return None if hash in self.shelf or hash in self.needless else replace(self.item, hash=hash)

    async def crowded(self, owner: InstanceRef, hash: str) -> bool:
        return hash in self.paged

    def store(self, owner: InstanceRef, hash: str, item: Pixels, told: Callable[[bool], object]) -> None:
        if self.lives:
            self.shelf.put(hash, item)
            self.told.append(hash)
        else:
            self.shelf.release(item.nbytes)
        asyncio.get_running_loop().call_soon(told, self.lives)

    def call(self, token: str | None = "secret") -> Any:
        make = self.channel.stream_stream(
            f"/{WORKER.full_name}/PutMedia",
            request_serializer=worker_pb2.PutMediaRequest.SerializeToString,
            response_deserializer=worker_pb2.PutMediaReply.FromString,
        )
        return make(metadata=bearer_metadata(token), timeout=60)

    def assert_empty(self) -> None:
        assert (len(self.shelf), self.shelf.nbytes, self.told) == (0, 0, [])


@asynccontextmanager
async def stage(limit: int = 1 << 20) -> AsyncIterator[Stage]:
    mesh = make_mesh(jax.devices()[:1], 1)
    here = Stage(MediaShelf(limit))
    door = MediaDoor(ToyEncoder(mesh), here.shelf, SLOTS, lambda: here.ref, here.lacking, here.store, here.crowded)
    instances = (
        SimpleNamespace(info=SimpleNamespace(ref=REF, roles={"encode"}), door=door),
        SimpleNamespace(info=SimpleNamespace(ref=InstanceRef("d", 6), roles={"decode"}), door=None),
    )
    server = grpc.aio.server(interceptors=[bearer_interceptor("secret")])
    servicer = WorkerServicer(TokenOutboxes(), lambda: cast(Any, instances))
    server.add_generic_rpc_handlers((service_handler(servicer, WORKER),))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as here.channel:
            yield here
    finally:
        await server.stop(None)


def header(item: Pixels = CAT, **change: Any) -> worker_pb2.PutMediaRequest:
    fields = {
        "owner": common_pb2.InstanceRef(id="e", epoch=5),
        "hash": "cat",
        "shape": item.patches.shape,
        "grid": item.grid,
        "checksum": zlib.crc32(item.patches.tobytes()),
    }
    return worker_pb2.PutMediaRequest(header=worker_pb2.MediaHeader(**(fields | change)))


def piece(data: bytes) -> worker_pb2.PutMediaRequest:
    return worker_pb2.PutMediaRequest(data=data)


async def put(call: Any, first: worker_pb2.PutMediaRequest, *pieces: bytes) -> tuple[bool, bool]:
    """(wanted, stored), as a gateway does it; grpc.aio.AioRpcError if it was refused."""
    await call.write(first)
    reply = await call.read()
    if not isinstance(reply, worker_pb2.PutMediaReply) or not reply.wanted:
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK or await call.read()
        return False, False
    for data in pieces:
        await call.write(piece(data))
    await call.done_writing()
    reply = await call.read()
    return True, isinstance(reply, worker_pb2.PutMediaReply) and reply.stored


async def status(call: Any, *messages: worker_pb2.PutMediaRequest) -> tuple[grpc.StatusCode, str]:
    """How a call ends that sends these and stops sending."""
    end = CallEnd(call)
    try:
        with contextlib.suppress(asyncio.InvalidStateError):  # it was refused: the read says how
            for message in messages:
                await call.write(message)
            await call.done_writing()
        while isinstance(await call.read(), worker_pb2.PutMediaReply):
            pass
    except grpc.aio.AioRpcError as raised:
        error = await end.error(raised)
        return error.code(), str(error.details())
    return await call.code(), await call.details()


def halves(item: Pixels = CAT) -> tuple[bytes, bytes]:
    data = item.patches.tobytes()
    return data[: len(data) // 2], data[len(data) // 2 :]


def test_an_item_is_stored_once_and_then_not_wanted_any_more() -> None:
    async def scenario() -> None:
        async with stage() as here:
            assert await put(here.call(), header(), *halves()) == (True, True)
            held = here.shelf.get("cat")
            assert held is not None and held.grid == CAT.grid
            np.testing.assert_array_equal(held.patches, CAT.patches)
            assert await put(here.call(), header()) == (False, False)
            assert (here.told, here.shelf.nbytes) == (["cat"], CAT.nbytes)
            here.shelf.drop("cat")
            here.needless.add("cat")  # it was encoded
            assert await put(here.call(), header()) == (False, False)
            assert here.shelf.nbytes == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("messages", "code", "words"),
    [
        ((header(), piece(halves()[0])), "INVALID_ARGUMENT", "after 36 of the item's 72 bytes"),
        ((header(), *map(piece, halves()), piece(b"x")), None, ""),  # nobody reads what comes after the end
        ((header(), piece(halves()[0]), piece(CAT.patches.tobytes())), "INVALID_ARGUMENT", "72 bytes by its header"),
        ((header(checksum=1), *map(piece, halves())), "DATA_LOSS", "checksum"),
        ((header(), header()), "INVALID_ARGUMENT", "come its pieces"),
        ((piece(b"x"),), "INVALID_ARGUMENT", "begins with the header"),
        ((), "INVALID_ARGUMENT", "begins with the header"),
        ((header(pixels(1, 5, 4)),), "INVALID_ARGUMENT", "20 slots of the encoder, which has 16"),
        ((header(grid=(1, 2**31, 2**31), shape=(2**31, PATCH_DIM)),), "INVALID_ARGUMENT", "slots"),
        ((header(grid=(1, 3, 3)),), "INVALID_ARGUMENT", "must have shape"),
        ((header(grid=(3, 4)),), "INVALID_ARGUMENT", "time, rows and columns"),
        ((header(grid=(0, 3, 4)),), "INVALID_ARGUMENT", "is empty"),
        ((header(hash=""),), "INVALID_ARGUMENT", "needs a hash"),
        ((header(hash="h" * 200),), "INVALID_ARGUMENT", "needs a hash"),
        ((header(owner=common_pb2.InstanceRef(id="e", epoch=4)),), "UNAVAILABLE", "epoch 4 is gone"),
        ((header(owner=common_pb2.InstanceRef(id="x", epoch=5)),), "NOT_FOUND", "no instance"),
        ((header(owner=common_pb2.InstanceRef(id="d", epoch=6)),), "INVALID_ARGUMENT", "does not encode"),
    ],
)
def test_what_is_not_the_whole_item_leaves_nothing(messages: Any, code: str | None, words: str) -> None:
    async def scenario() -> None:
        async with stage() as here:
            found, details = await status(here.call(), *messages)
            if code is None:
                assert found is grpc.StatusCode.OK
                return
            assert (found.name, words in details) == (code, True), details
            here.assert_empty()

    asyncio.run(scenario())


@pytest.mark.parametrize("change", [{"patches": 11}, {"tokens": 3}])
def test_an_item_that_is_not_what_its_task_has_planned_with_is_refused(change: dict[str, int]) -> None:
    async def scenario() -> None:
        async with stage() as here:
            here.item = replace(CAT_ITEM, **change)
            found, details = await status(here.call(), header(), *map(piece, halves()))
            assert found is grpc.StatusCode.INVALID_ARGUMENT
            assert "takes 12 slots and gives 12 embeddings" in details and str(*change.values()) in details
            here.assert_empty()
            here.item = CAT_ITEM
            assert await put(here.call(), header(), *halves()) == (True, True), "the right one is taken"

    asyncio.run(scenario())


def test_what_the_encoder_cannot_pack_is_refused_before_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    def square(self: ToyEncoder, items: Any, slots: int) -> Any:
        raise ValueError(f"this encoder takes 4 x 4 patches, got {items[0].grid[1]} x {items[0].grid[2]}")

    monkeypatch.setattr(ToyEncoder, "pack", square)

    async def scenario() -> None:
        async with stage() as here:
            found, details = await status(here.call(), header(), *map(piece, halves()))
            assert found is grpc.StatusCode.INVALID_ARGUMENT and "takes 4 x 4 patches, got 3 x 4" in details
            here.assert_empty()

    asyncio.run(scenario())


def test_a_client_that_goes_away_leaves_nothing() -> None:
    async def scenario() -> None:
        async with stage() as here:
            call = here.call()
            await call.write(header())
            assert (await call.read()).wanted
            await call.write(piece(halves()[0]))
            assert here.shelf.nbytes == CAT.nbytes, "its room is taken"
            call.cancel()
            async with asyncio.timeout(60):
                while here.shelf.nbytes:
                    await asyncio.sleep(0.01)
            here.assert_empty()
            assert await put(here.call(), header(), *halves()) == (True, True)

    asyncio.run(scenario())


def test_a_client_that_says_nothing_for_long_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_door, "IDLE", 0.5)

    async def scenario() -> None:
        async with stage() as here:
            call = here.call()
            await call.write(header())
            assert (await call.read()).wanted
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
            here.assert_empty()

    asyncio.run(scenario())


def test_a_stream_that_says_nothing_in_many_words_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty pieces without end: others who have the item must not wait for ever."""
    monkeypatch.setattr(media_door, "LASTS", 0.5)

    async def scenario() -> None:
        async with stage() as here:
            call = here.call()
            end = CallEnd(call)
            await call.write(header())
            assert (await call.read()).wanted
            began = asyncio.get_running_loop().time()
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                while not call.done() and asyncio.get_running_loop().time() < began + 60.0:
                    await call.write(piece(b""))
                    await asyncio.sleep(0.01)
                await call.read()
            error = await end.error(raised.value)
            assert error.code() is grpc.StatusCode.UNAVAILABLE and "0 of 72 bytes" in str(error.details())
            here.assert_empty()

    asyncio.run(scenario())


def test_of_two_who_bring_an_item_one_is_asked_for_it() -> None:
    async def scenario() -> None:
        async with stage() as here:
            first, second = here.call(), here.call()
            await first.write(header())
            assert (await first.read()).wanted
            waiting = asyncio.create_task(put(second, header()))
            await asyncio.sleep(0.1)
            assert not waiting.done()
            for data in halves():
                await first.write(piece(data))
            assert (await first.read()).stored
            assert await waiting == (False, False)
            assert here.told == ["cat"]

    asyncio.run(scenario())


def test_when_the_first_one_fails_the_next_is_asked() -> None:
    async def scenario() -> None:
        async with stage() as here:
            first, second = here.call(), here.call()
            await first.write(header())
            assert (await first.read()).wanted
            waiting = asyncio.create_task(put(second, header(), *halves()))
            await asyncio.sleep(0.05)
            first.cancel()
            assert await waiting == (True, True)
            assert (here.told, here.shelf.nbytes) == (["cat"], CAT.nbytes)

    asyncio.run(scenario())


def test_a_full_shelf_refuses_with_a_hint_and_takes_more_later() -> None:
    async def scenario() -> None:
        async with stage(limit=CAT.nbytes) as here:
            assert await put(here.call(), header(), *halves()) == (True, True)
            call = here.call()
            code, details = await status(call, header(hash="other"))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED and "0 of 72 bytes left" in details
            assert float(dict(await call.trailing_metadata())["retry-after"]) > 0
            here.shelf.drop("cat")
            assert await put(here.call(), header(hash="other"), *halves()) == (True, True)

    asyncio.run(scenario())


def test_what_has_pages_comes_although_the_shelf_is_full() -> None:
    """Or pixels that wait for pages would keep out those that the pages wait for."""

    async def scenario() -> None:
        async with stage(limit=CAT.nbytes) as here:
            here.paged = {"paged"}
            assert await put(here.call(), header(), *halves()) == (True, True)
            assert await put(here.call(), header(hash="paged"), *halves()) == (True, True)
            assert here.shelf.nbytes == 2 * CAT.nbytes
            code, details = await status(here.call(), header(hash="other"))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED and "0 of 72 bytes left" in details

    asyncio.run(scenario())


def test_an_epoch_that_ends_while_the_item_comes() -> None:
    async def scenario() -> None:
        async with stage() as here:
            here.lives = False
            code, details = await status(here.call(), header(), *map(piece, halves()))
            assert code is grpc.StatusCode.UNAVAILABLE and "ended while the item came" in details
            here.assert_empty()

    asyncio.run(scenario())


def test_the_token_is_asked_for() -> None:
    async def scenario() -> None:
        async with stage() as here:
            code, _ = await status(here.call(token="wrong"), header())
            assert code is grpc.StatusCode.UNAUTHENTICATED
            here.assert_empty()

    asyncio.run(scenario())
