"""Two instances with real device loops, movers, producers and consumers; tests read like a transfer.

`Node` is an instance: a thread that owns pools and runs gathers and scatters in order, as the worker's device loop does. `Host` is a
process: a gRPC server, channels and transports shared by its nodes.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import grpc
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from triptych.proto.v1 import transfer_pb2
from triptych.runtime.core.clock import MonotonicClock
from triptych.runtime.core.errors import EngineError, Status
from triptych.runtime.core.instance import InstanceRef, TransportKind
from triptych.runtime.engine.page_programs import PageMover
from triptych.runtime.instance.messages import OpenStaging, StartPull
from triptych.runtime.transfer.channels import SERVER_OPTIONS, PeerChannels
from triptych.runtime.transfer.consumer import TransferConsumer
from triptych.runtime.transfer.delivery import Delivery
from triptych.runtime.transfer.header import KvGroupHeader, KvHeader
from triptych.runtime.transfer.producer import TransferProducer, serve_gather
from triptych.runtime.transfer.pull import PullLimits, PullStats
from triptych.runtime.transfer.service import TransferServicer
from triptych.runtime.transfer.transports import TransportConfig, open_transports
from triptych.runtime.transfer.transports.base import Transport
from triptych.runtime.transfer.transports.grpc import GrpcTransport
from triptych.runtime.transfer.transports.local import LocalHub
from triptych.runtime.wire.handlers import service_handler
from triptych.sharding.heads import HeadLayout, head_layout

LAYERS, PAGES, PAGE_SIZE, HEAD_DIM, GRANULE, HEADS = 2, 12, 4, 8, 2, 4
WHOLE = ((0, LAYERS),)
BY_LAYER = tuple((layer, layer + 1) for layer in range(LAYERS))
PROMPT_PAGES = 5  # not a multiple of the granule: the last chunk is padded
FINAL = b"the rest of the generation"
PATIENCE = 60.0  # seconds until a wait counts as a hang, on any machine
SOURCE = (3, 9, 1, 6, 2)
TARGET = (5, 8, 2, 11, 4)


@cache
def mover_for(layout: HeadLayout, first_device: int, dtype: str, groups: tuple[tuple[int, int], ...]) -> PageMover:
    mesh = Mesh(np.array(jax.devices()[first_device : first_device + layout.tp]), ("tp",))
    mover = PageMover(mesh, layout, LAYERS, PAGES, PAGE_SIZE, HEAD_DIM, dtype, GRANULE, groups)
    mover.compile()
    return mover


def header_for(heads: int, dtype: str, groups: tuple[tuple[int, int], ...]) -> KvHeader:
    group = KvGroupHeader("self", "full", heads, HEAD_DIM, tuple(range(LAYERS)))
    return KvHeader("toy", "1", (group,), dtype, PAGE_SIZE, GRANULE, groups)


def logical_content(heads: int, dtype: str, seed: int) -> np.ndarray:
    """[layers, 2, pages, page_size, heads, head_dim], different everywhere."""
    values = np.random.default_rng(seed).standard_normal((LAYERS, 2, PAGES, PAGE_SIZE, heads, HEAD_DIM))
    return (values * 50).astype(np.dtype(dtype))


@dataclass
class Outcome:
    """What a consumer reported."""

    done: list[tuple[str, bytes, PullStats]] = field(default_factory=list)
    failed: list[tuple[str, Status, str]] = field(default_factory=list)
    withdrawn: list[tuple[str, str]] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.done) + len(self.failed) + len(self.withdrawn)


class Node:
    """One instance: both ends of transfers, and the thread that owns its pools."""

    def __init__(
        self,
        name: str,
        seed: int,
        *,
        tp: int = 1,
        first_device: int = 0,
        heads: int = HEADS,
        dtype: str = "float32",
        groups: tuple[tuple[int, int], ...] = WHOLE,
        limits: PullLimits | None = None,
        staging_limit: int = 1 << 20,
        header: Callable[[KvHeader], KvHeader] = lambda header: header,
    ):
        self.ref = InstanceRef(name, 1000 + seed)
        self.mover = mover_for(head_layout(heads * 2, heads, tp), first_device, dtype, groups)
        self.header = header(header_for(heads, dtype, groups))
        self.logical = logical_content(heads, dtype, seed)
        self.pools = self._make_pools()
        self.limits = limits or PullLimits(fetch_seconds=30, idle_seconds=30, release_seconds=5)
        self.staging_limit = staging_limit
        self.outcome = Outcome()
        self.reported = asyncio.Event()
        self.released_keys: list[int] = []
        self.alive_count = 0
        self.awaited_keys: list[int] = []
        self.held_deliveries: list[Delivery] | None = None
        self.peak_staged = 0
        self.lost: list[EngineError] = []
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name=f"device-{name}", daemon=True)
        self._thread.start()
        self.producer: TransferProducer
        self.consumer: TransferConsumer

    def _make_pools(self) -> Any:
        slots = [head for row in self.mover.layout.slots for head in row]
        spread = np.zeros((*self.logical.shape[:4], len(slots), HEAD_DIM), self.logical.dtype)
        for slot, head in enumerate(slots):
            if head is not None:
                spread[..., slot, :] = self.logical[..., head, :]
        sharding = NamedSharding(Mesh(np.array(self.mover.devices), ("tp",)), PartitionSpec(None, None, "tp"))
        return tuple(tuple(jax.device_put(spread[layer, kv], sharding) for kv in range(2)) for layer in range(LAYERS))

    def _loop(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except EngineError as error:
                self.lost.append(error)

    def on_device(self, job: Callable[[], Any]) -> Any:
        """Runs on the device loop after what is queued; waits."""
        box: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._jobs.put(lambda: box.put(job()))
        return box.get(timeout=60)

    def stop(self) -> None:
        self._jobs.put(None)
        self._thread.join(10)

    def page_bytes(self) -> np.ndarray:
        """Pool content as logical heads, read from the last holder of each."""
        slots = [head for row in self.mover.layout.slots for head in row]
        pools = self.on_device(lambda: np.stack([np.stack([np.asarray(a) for a in pair]) for pair in self.pools]))
        out = np.zeros_like(self.logical)
        for slot, head in enumerate(slots):
            if head is None:
                assert not pools[..., slot, :].astype(np.float32)[:, :, 1:].any(), "a padding slot was written"
            else:
                out[..., head, :] = pools[..., slot, :]
        return out

    # ---- ProducerEvents
    def request_gather(self, key: int) -> None:
        self._jobs.put(lambda: self._gather(key))

    def _gather(self, key: int) -> None:
        serve_gather(self.producer, self.mover, self.pools, key)
        self.peak_staged = max(self.peak_staged, self.producer.stats.staged_bytes)

    def alive(self, key: int) -> None:
        self.alive_count += 1

    def awaited(self, key: int) -> None:
        self.awaited_keys.append(key)

    def released(self, key: int) -> None:
        self.released_keys.append(key)

    # ---- ConsumerEvents
    def deliver(self, delivery: Delivery) -> None:
        if self.held_deliveries is not None:
            self.held_deliveries.append(delivery)
        else:
            self.write(delivery)

    def write(self, delivery: Delivery) -> None:
        def scatter() -> None:
            self.pools = delivery.scatter(self.mover, self.pools)

        self._jobs.put(scatter)

    def done(self, pull: StartPull, final: bytes, stats: PullStats) -> None:
        self.outcome.done.append((pull.request, final, stats))
        self.reported.set()

    def withdrawn(self, pull: StartPull, reason: str) -> None:
        self.outcome.withdrawn.append((pull.request, reason))
        self.reported.set()

    def failed(self, pull: StartPull, status: Status, reason: str) -> None:
        self.outcome.failed.append((pull.request, status, reason))
        self.reported.set()


class Host:
    """One process: a server on a free port and what its nodes share."""

    def __init__(self, hub: LocalHub, kinds: tuple[TransportKind, ...]):
        self.threads = ThreadPoolExecutor(8, thread_name_prefix="transfer")
        self.channels = PeerChannels()
        config = TransportConfig(kinds)
        self.transports: dict[TransportKind, Transport] = open_transports(
            config, hub=hub, channels=self.channels, threads=self.threads, device=jax.devices()[0]
        )
        self.server = grpc.aio.server(options=SERVER_OPTIONS)
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.nodes: list[Node] = []

    async def start(self, *nodes: Node, wrap: Mapping[TransportKind, Transport] | None = None) -> None:
        loop = asyncio.get_running_loop()
        transports = {**self.transports, **(wrap or {})}
        for node in nodes:
            node.producer = TransferProducer(
                node.ref,
                node.header,
                node.mover.layout.head_unit,
                self.transports,
                node,
                threads=self.threads,
                loop=loop,
                staging_limit=node.staging_limit,
                alive_interval=0.1,
            )
            node.consumer = TransferConsumer(
                node.header,
                node.mover,
                transports,
                self.channels,
                node,
                clock=MonotonicClock(),
                threads=self.threads,
                loop=loop,
                limits=node.limits,
            )
        self.nodes.extend(nodes)
        by_grpc = self.transports.get(TransportKind.GRPC)
        assert by_grpc is None or isinstance(by_grpc, GrpcTransport)
        servicer = TransferServicer([node.producer for node in self.nodes], by_grpc, self.threads)
        service = transfer_pb2.DESCRIPTOR.services_by_name["Transfer"]
        self.server.add_generic_rpc_handlers((service_handler(servicer, service),))
        await self.server.start()

    async def stop(self) -> None:
        for node in self.nodes:
            await node.consumer.close()
        await self.channels.close()
        await self.server.stop(None)
        for node in self.nodes:
            node.stop()
        for transport in self.transports.values():
            transport.close()
        self.threads.shutdown(wait=False)


def stage_on(producer: TransferProducer, key: int, first_page: int) -> None:
    producer.open_staging(OpenStaging("r", key, PROMPT_PAGES * PAGE_SIZE - 1, first_page, PROMPT_PAGES - first_page))


@dataclass
class Pair:
    """A producer P and a consumer D in hosts of their own (with "local": a common hub)."""

    p: Node
    d: Node
    p_host: Host
    d_host: Host
    kind: TransportKind

    def stage(self, key: int = 7, first_page: int = 0) -> None:
        stage_on(self.p.producer, key, first_page)

    def export(self, first_page: int, *pages: int, key: int = 7) -> None:
        self.p.producer.export(key, first_page, pages)

    def pull(
        self, pages: tuple[int, ...], key: int = 7, request: str = "r", deadline: float | None = None, **change: Any
    ) -> None:
        seconds = None if deadline is None else MonotonicClock().now() + deadline
        source: dict[str, Any] = {
            "source_key": key,
            "source_address": self.p_host.address,
            "source_instance": self.p.ref.id,
            "source_epoch": self.p.ref.epoch,
            "source_digest": self.p.header.digest(),
            "prompt_tokens": PROMPT_PAGES * PAGE_SIZE - 1,
            "first_page": PROMPT_PAGES - len(pages),
        }
        self.d.reported.clear()
        self.d.consumer.start(
            StartPull(request=request, attempt=1, pages=pages, deadline=seconds, **(source | change)), self.kind
        )

    def stage_everything(self, key: int = 7) -> None:
        self.stage(key)
        self.export(0, *SOURCE, key=key)
        self.p.producer.complete(key, FINAL)

    def expected_content(self, source: tuple[int, ...] = SOURCE, target: tuple[int, ...] = TARGET) -> np.ndarray:
        content = self.d.logical.copy()
        content[:, :, list(target)] = self.p.logical[:, :, list(source)]
        return content

    def assert_pulled(self, source: tuple[int, ...] = SOURCE, target: tuple[int, ...] = TARGET) -> None:
        """One pull, of "r", and D's pools are exactly what they should be, everywhere."""
        assert self.d.outcome.failed == []
        ((request, final, stats),) = self.d.outcome.done
        assert (request, final, stats.pages_pulled) == ("r", FINAL, len(target))
        assert self.d.page_bytes().tobytes() == self.expected_content(source, target).tobytes()

    async def ended(self, seconds: float = PATIENCE) -> Outcome:
        async with asyncio.timeout(seconds):
            await self.d.reported.wait()
        return self.d.outcome

    async def settled(self) -> None:
        """Waits until neither side holds anything of any transfer."""
        async with asyncio.timeout(PATIENCE):
            while self.p.producer.stats.keys or self.p.producer.stats.staged_bytes or self.d.consumer.pulls:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def pair(
    kind: TransportKind,
    p: Mapping[str, Any] | None = None,
    d: Mapping[str, Any] | None = None,
    *,
    wrap: Callable[[Transport], Transport] | None = None,
) -> AsyncIterator[Pair]:
    """P on the first devices, D from device 4 on; `wrap` makes D's transport a faulty one."""
    hub = LocalHub()
    p_host, d_host = Host(hub, tuple(TransportKind)), Host(hub, tuple(TransportKind))
    p_node = Node("P", 1, **{"first_device": 0, **(p or {})})
    d_node = Node("D", 2, **{"first_device": 4, **(d or {})})
    try:
        await p_host.start(p_node)
        await d_host.start(d_node, wrap={kind: wrap(d_host.transports[kind])} if wrap else None)
        yield Pair(p_node, d_node, p_host, d_host, kind)
    finally:
        await d_host.stop()
        await p_host.stop()
