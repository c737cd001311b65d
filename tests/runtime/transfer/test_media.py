"""Embeddings travel as KV does: over every transport, between tensor-parallel sizes, checked, several pulls of a request at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.runtime.gateway.calls import until
from tests.runtime.transfer.harness import GRANULE, Host, Node, Pair
from tests.runtime.transfer.test_faults import always
from triptych.runtime.core.clock import MonotonicClock
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceRef, TransportKind
from triptych.runtime.engine.media_pool import EmbeddingPool
from triptych.runtime.engine.page_programs import PageMover
from triptych.runtime.instance.messages import KeepStaged, OpenStaging, StartPull
from triptych.runtime.instance.plan import Pool
from triptych.runtime.transfer.header import KvHeader, group_headers
from triptych.runtime.transfer.transports.faulty import Fault
from triptych.runtime.transfer.transports.local import LocalHub
from triptych.sharding.mesh import make_mesh
from triptych.sharding.rules import ShardingRules

HIDDEN, PAGES, PAGE_SIZE, DTYPE = 24, 12, 4, "bfloat16"
# Two items of a staging, and where the puller puts them.
SOURCE, TARGET = (3, 9, 1, 6, 2), (5, 8, 2, 11, 4)


@cache
def geometry(tp: int, first_device: int) -> tuple[EmbeddingPool, PageMover]:
    mesh = make_mesh(jax.devices()[first_device : first_device + tp], tp)
    pool = EmbeddingPool.of(ShardingRules(mesh), HIDDEN, DTYPE, PAGE_SIZE, PAGES)
    mover = PageMover(mesh, pool.layout, 1, PAGES, PAGE_SIZE, pool.group.head_dim, DTYPE, GRANULE)
    mover.compile()
    return pool, mover


class MediaNode(Node):
    """A node of the harness with a media pool instead of a KV pool. `rows` is what it holds, [pages, page_size, HIDDEN]."""

    def __init__(self, name: str, seed: int, *, tp: int, first_device: int, **options: Any):
        super().__init__(name, seed, **options)
        self.geometry, self.mover = geometry(tp, first_device)
        header = KvHeader("toy", "1", group_headers((self.geometry.group,)), DTYPE, PAGE_SIZE, GRANULE, ((0, 1),))
        self.header = header
        self.rows = np.random.default_rng(seed).standard_normal((PAGES, PAGE_SIZE, HIDDEN)).astype(DTYPE)
        shardings = jax.tree.map(lambda half: half.sharding, self.geometry.structs)
        empty = jax.tree.map(lambda half: np.zeros(half.shape, half.dtype), self.geometry.structs)
        write = jax.jit(self.geometry.write, out_shardings=shardings)
        self.pools = write(empty, self.rows.reshape(-1, HIDDEN), np.arange(PAGES * PAGE_SIZE, dtype=np.int32))

    def held(self) -> np.ndarray:
        """The pool read back as embeddings, by the function that programs use."""
        index = np.arange(PAGES * PAGE_SIZE, dtype=np.int32)
        zeros = np.zeros((PAGES * PAGE_SIZE, HIDDEN), np.float32)
        read = jax.jit(lambda pools, index: self.geometry.read(pools, index).into(0, jnp.asarray(zeros)))
        rows = self.on_device(lambda: np.asarray(read(self.pools, index)))
        return rows.reshape(PAGES, PAGE_SIZE, HIDDEN)


@asynccontextmanager
async def media_pair(kind: TransportKind, p_tp: int, d_tp: int, wrap: Any = None) -> AsyncIterator[Pair]:
    hub = LocalHub()
    p_host, d_host = Host(hub, tuple(TransportKind)), Host(hub, tuple(TransportKind))
    p, d = MediaNode("P", 1, tp=p_tp, first_device=0), MediaNode("D", 2, tp=d_tp, first_device=4)
    try:
        await p_host.start(p)
        await d_host.start(d, wrap={kind: wrap(d_host.transports[kind])} if wrap else None)
        yield Pair(p, d, p_host, d_host, kind)
    finally:
        await d_host.stop()
        await p_host.stop()


def stage(t: Pair, key: int, *items: tuple[int, ...]) -> None:
    """An encode task's staging: pages item after item, exported an item at a time."""
    pages = [page for item in items for page in item]
    t.p.producer.open_staging(OpenStaging("r", key, len(pages) * PAGE_SIZE, 0, len(pages), Pool.MEDIA))
    first = 0
    for item in items:
        t.p.producer.export(key, first, item)
        first += len(item)
    t.p.producer.complete(key, b"")


def pull(t: Pair, key: int, pages: tuple[int, ...]) -> None:
    source = (key, t.p_host.address, t.p.ref.id, t.p.ref.epoch, t.p.header.digest())
    deadline = MonotonicClock().now() + 60
    t.d.consumer.start(StartPull("r", 1, *source, len(pages) * PAGE_SIZE, 0, pages, deadline, Pool.MEDIA), t.kind)


def assert_arrived(t: Pair, source: tuple[int, ...], target: tuple[int, ...]) -> None:
    assert isinstance(t.p, MediaNode) and isinstance(t.d, MediaNode)
    expected = t.d.rows.copy()
    expected[list(target)] = t.p.rows[list(source)]
    np.testing.assert_array_equal(t.d.held(), expected.astype(np.float32))


@pytest.mark.parametrize("kind", list(TransportKind))
@pytest.mark.parametrize(("p", "d"), [(1, 2), (2, 1), (4, 3)])
def test_embeddings_arrive_at_any_tensor_parallel_size(kind: TransportKind, p: int, d: int) -> None:
    async def scenario() -> None:
        async with media_pair(kind, p, d) as t:
            stage(t, 7, SOURCE[:3], SOURCE[3:])
            pull(t, 7, TARGET)
            await t.ended()
            assert [(request, final) for request, final, _ in t.d.outcome.done] == [("r", b"")]
            assert_arrived(t, SOURCE, TARGET)
            await t.settled()
            assert t.p.released_keys == [7]

    asyncio.run(scenario())


def test_pulls_of_one_request_are_told_apart_by_their_keys() -> None:
    async def scenario() -> None:
        async with media_pair(TransportKind.GRPC, 1, 2) as t:
            stage(t, 7, SOURCE[:3])
            t.p.producer.open_staging(OpenStaging("r", 8, PAGE_SIZE, 0, 1, Pool.MEDIA))  # nothing is exported
            pull(t, 8, TARGET[3:4])
            pull(t, 7, TARGET[:3])
            await t.ended()
            assert t.d.consumer.pulls == 1
            assert not t.d.consumer.cancel("r", 7) and not t.d.consumer.cancel("r")
            assert t.d.consumer.cancel("r", 8)
            assert (len(t.d.outcome.done), t.d.outcome.count) == (1, 1)
            assert_arrived(t, SOURCE[:3], TARGET[:3])
            await t.settled()

    asyncio.run(scenario())


def test_a_puller_without_room_extends_leases_and_never_those_of_another_incarnation() -> None:
    async def scenario() -> None:
        async with media_pair(TransportKind.GRPC, 1, 1) as t:
            stage(t, 7, SOURCE[:1])
            stage(t, 8, SOURCE[1:2])
            pull(t, 8, TARGET[:1])
            await t.ended()
            old = InstanceRef(t.p.ref.id, t.p.ref.epoch - 1)
            for owner in (old, InstanceRef("nobody", 1), t.p.ref):
                t.d.consumer.keep(KeepStaged(t.p_host.address, owner, (7, 8, 99)))
            t.d.consumer.keep(KeepStaged("127.0.0.1:1", t.p.ref, (7,)))
            await until(lambda: bool(t.p.awaited_keys))
            assert t.p.awaited_keys == [7], "what is pulled, gone or unknown is passed over"

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", list(TransportKind))
def test_damage_is_found(kind: TransportKind) -> None:
    async def scenario() -> None:
        async with media_pair(kind, 1, 2, always(Fault.CORRUPT)) as t:
            stage(t, 7, SOURCE)
            pull(t, 7, TARGET)
            outcome = await t.ended()
            assert [status for _, status, _ in outcome.failed] == [Status.DATA_LOSS]
            await t.settled()

    asyncio.run(scenario())


def test_an_instance_serves_kv_and_embeddings_under_one_name() -> None:
    """Two producers of one instance behind one service: a key finds its own."""

    async def scenario() -> None:
        hub = LocalHub()
        p_host, d_host = Host(hub, tuple(TransportKind)), Host(hub, tuple(TransportKind))
        media, kv = MediaNode("P", 1, tp=1, first_device=0), Node("P", 3)
        kv.ref = media.ref = InstanceRef("P", 5)
        d = MediaNode("D", 2, tp=1, first_device=4)
        try:
            await p_host.start(kv, media)
            await d_host.start(d)
            t = Pair(media, d, p_host, d_host, TransportKind.GRPC)
            kv.producer.open_staging(OpenStaging("r", 6, 4, 0, 1))
            stage(t, 7, SOURCE)
            pull(t, 6, TARGET[:1])
            assert "KV headers differ" in (await t.ended()).failed[0][2]
            t.d.reported.clear()
            pull(t, 7, TARGET)
            await t.ended()
            assert len(t.d.outcome.done) == 1
            t.d.reported.clear()
            pull(t, 9, TARGET)
            await t.ended()
            assert "never staged" in t.d.outcome.failed[1][2]
        finally:
            await d_host.stop()
            await p_host.stop()

    asyncio.run(scenario())
