"""The transports by themselves: deadlines fire, unknown ids and dead peers are errors, bounds hold."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from triptych.proto.v1 import transfer_pb2
from triptych.runtime.core.errors import ConfigError, NotFoundError, TransferError, TransferTimeoutError
from triptych.runtime.core.instance import InstanceRef, TransportKind
from triptych.runtime.transfer.channels import PeerChannels
from triptych.runtime.transfer.transports import TransportConfig, open_transports
from triptych.runtime.transfer.transports.base import OfferSpec, Peer
from triptych.runtime.transfer.transports.device import DeviceTransport
from triptych.runtime.transfer.transports.grpc import PIECE_BYTES, GrpcTransport, _Assembly, pieces
from triptych.runtime.transfer.transports.local import LocalHub, LocalTransport

SHAPE = (3, 5)
OWNER = InstanceRef("P", 1)


def peer(endpoint: str) -> Peer:
    return Peer("nowhere", endpoint, OWNER, 7)


def chunks(count: int, start: int = 0) -> list[jax.Array]:
    return [jax.device_put(np.full(SHAPE, start + i, np.float32), jax.devices()[i]) for i in range(count)]


@pytest.fixture
def two() -> Iterator[tuple[DeviceTransport, DeviceTransport]]:
    sides = DeviceTransport(jax.devices()[0], "127.0.0.1"), DeviceTransport(jax.devices()[0], "127.0.0.1")
    yield sides
    for side in sides:
        side.close()


def test_device_moves_chunks_to_the_wanted_devices(two):
    async def scenario() -> None:
        producer, consumer = two
        producer.publish(5, chunks(2))
        spec, devices = OfferSpec(5, SHAPE, "float32", 2), jax.devices()[4:6]
        arrived = await consumer.fetch(peer(producer.endpoint()), spec, devices, 30)
        assert [a.devices() for a in arrived] == [{d} for d in devices]
        assert [float(np.asarray(a)[0, 0]) for a in arrived] == [0.0, 1.0]
        producer.withdraw(5)
        producer.withdraw(5)

    asyncio.run(scenario())


@pytest.mark.parametrize("endpoint", ["of the peer", "127.0.0.1:1"])
def test_device_watchdog_fires_where_the_library_would_wait_for_ever(two, endpoint):
    async def scenario() -> None:
        producer, consumer = two
        address = producer.endpoint() if endpoint == "of the peer" else endpoint
        began = time.monotonic()
        with pytest.raises(TransferTimeoutError, match=r"within 0.300 s"):
            await consumer.fetch(peer(address), OfferSpec(99, SHAPE, "float32", 1), jax.devices()[:1], 0.3)
        assert time.monotonic() - began < 30

    asyncio.run(scenario())


def test_device_fetches_in_time_survive_one_that_is_given_up(two):
    async def scenario() -> None:
        producer, consumer = two
        where, devices = peer(producer.endpoint()), jax.devices()[:1]
        slow = asyncio.create_task(consumer.fetch(where, OfferSpec(1, SHAPE, "float32", 1), devices, 60))
        await asyncio.sleep(0.05)
        with pytest.raises(TransferTimeoutError):
            await consumer.fetch(where, OfferSpec(99, SHAPE, "float32", 1), devices, 0.2)
        fresh = asyncio.create_task(consumer.fetch(where, OfferSpec(2, SHAPE, "float32", 1), devices, 60))
        await asyncio.sleep(0.05)
        producer.publish(1, chunks(1, 1))
        producer.publish(2, chunks(1, 2))
        assert [float(np.asarray((await task)[0])[0, 0]) for task in (slow, fresh)] == [1.0, 2.0]
        assert all(c.given_up == 0 and c.waiting == 0 for c in consumer._connections.values())

    asyncio.run(scenario())


def test_device_gives_an_error_for_what_was_withdrawn_during_the_fetch(two):
    async def scenario() -> None:
        producer, consumer = two
        offered = chunks(1)
        producer.publish(3, offered)
        producer.withdraw(3)
        assert offered[0].is_deleted(), "withdrawing frees the memory even if nobody ever came"
        with pytest.raises(TransferError, match="deleted"):
            await consumer.fetch(peer(producer.endpoint()), OfferSpec(3, SHAPE, "float32", 1), jax.devices()[:1], 30)

    asyncio.run(scenario())


def test_device_listens_on_one_named_interface_only():
    for interface in ("0.0.0.0", "::", "localhost", ""):
        with pytest.raises(ConfigError, match="interface"):
            DeviceTransport(jax.devices()[0], interface)


def test_device_is_refused_under_tls_unless_allowed():
    kinds = (TransportKind.DEVICE, TransportKind.GRPC)
    with pytest.raises(ConfigError, match="neither encrypted"):
        TransportConfig(kinds, tls=True)
    assert TransportConfig(kinds, tls=True, device_without_tls=True).kinds == kinds
    assert TransportConfig((TransportKind.GRPC,), tls=True).tls
    with pytest.raises(ConfigError, match="at least one"):
        TransportConfig(())


def test_local_knows_only_what_is_published_in_its_process():
    async def scenario() -> None:
        with ThreadPoolExecutor(1) as threads:
            hub = LocalHub()
            transport, other = LocalTransport(hub, threads), LocalTransport(LocalHub(), threads)
            transport.publish(1, chunks(1))
            spec, devices = OfferSpec(1, SHAPE, "float32", 1), jax.devices()[3:4]
            (arrived,) = await transport.fetch(peer(""), spec, devices, 30)
            assert arrived.devices() == set(devices)
            with pytest.raises(NotFoundError, match="not in this process"):
                await other.fetch(peer(""), spec, devices, 30)
            transport.close()
            assert len(hub) == 0

    asyncio.run(scenario())


def test_open_transports_keeps_the_configured_order():
    async def scenario() -> None:
        with ThreadPoolExecutor(1) as threads:
            config = TransportConfig((TransportKind.GRPC, TransportKind.LOCAL))
            opened = open_transports(
                config, hub=LocalHub(), channels=PeerChannels(), threads=threads, device=jax.devices()[0]
            )
            assert list(opened) == [TransportKind.GRPC, TransportKind.LOCAL]
            assert all(transport.kind is kind for kind, transport in opened.items())

    asyncio.run(scenario())


def test_grpc_pieces_rebuild_a_chunk_of_any_size():
    data = np.random.default_rng(0).integers(0, 256, 2 * PIECE_BYTES + 8, np.uint8)
    spec = OfferSpec(1, (data.size // 4,), "float32", 1)
    sent = list(pieces(0, data))
    assert [len(p.data) for p in sent] == [PIECE_BYTES, PIECE_BYTES, 8]
    whole = _Assembly(spec)
    for piece in sent:
        whole.add(piece)
    assert whole.finished()[0].tobytes() == data.tobytes()


def test_grpc_refuses_missing_repeated_and_foreign_pieces():
    data = np.zeros(PIECE_BYTES + 4, np.uint8)
    spec = OfferSpec(1, (data.size // 4,), "float32", 1)
    first, second = pieces(0, data)
    for wrong in (
        [first, first],
        [second],
        [transfer_pb2.FetchPiece(chunk=1, total=data.size)],
        [next(pieces(0, data[:8]))],
    ):
        assembly = _Assembly(spec)
        with pytest.raises(TransferError):
            for piece in wrong:
                assembly.add(piece)
    short = _Assembly(spec)
    short.add(first)
    with pytest.raises(TransferError, match="ended before"):
        short.finished()


def test_grpc_forgets_withdrawn_chunks():
    with ThreadPoolExecutor(1) as threads:
        transport = GrpcTransport(PeerChannels(), threads)
        transport.publish(1, chunks(1, 3))
        assert transport.read(1, 0).view(np.float32)[0] == 3
        with pytest.raises(NotFoundError, match="no chunk 1"):
            transport.read(1, 1)
        transport.withdraw(1)
        with pytest.raises(NotFoundError, match="no chunk 0"):
            transport.read(1, 0)
