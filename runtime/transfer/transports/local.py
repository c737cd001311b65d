"""Transport "local": `jax.device_put` between meshes of one process (NVLink, ICI, or a copy in host memory).

Producer and consumer share a hub, an object that the process makes once and hands to both.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Executor

import jax

from triptych.runtime.core.errors import NotFoundError, TransferError, TransferTimeoutError
from triptych.runtime.core.instance import TransportKind
from triptych.runtime.transfer.transports.base import OfferSpec, Peer
from triptych.sharding.devices import Device


class LocalHub:
    """The offers of one process, by id."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._offers: dict[int, tuple[jax.Array, ...]] = {}

    def put(self, offer_id: int, chunks: tuple[jax.Array, ...]) -> None:
        with self._lock:
            self._offers[offer_id] = chunks

    def get(self, offer_id: int) -> tuple[jax.Array, ...] | None:
        with self._lock:
            return self._offers.get(offer_id)

    def remove(self, offer_id: int) -> None:
        with self._lock:
            self._offers.pop(offer_id, None)

    def __len__(self) -> int:
        return len(self._offers)


class LocalTransport:
    """Both halves, over a hub."""

    kind = TransportKind.LOCAL

    def __init__(self, hub: LocalHub, threads: Executor):
        self._hub = hub
        self._threads = threads
        self._mine: set[int] = set()

    def endpoint(self) -> str:
        return ""

    def publish(self, offer_id: int, chunks: Sequence[jax.Array]) -> None:
        self._mine.add(offer_id)
        self._hub.put(offer_id, tuple(chunks))

    def withdraw(self, offer_id: int) -> None:
        self._mine.discard(offer_id)
        self._hub.remove(offer_id)

    async def fetch(
        self, peer: Peer, spec: OfferSpec, devices: Sequence[Device], timeout: float
    ) -> tuple[jax.Array, ...]:
        chunks = self._hub.get(spec.id)
        if chunks is None:
            raise NotFoundError(
                f"offer {spec.id:#x} of {peer.owner.id} is not in this process: withdrawn, or another process's"
            )

        def copy() -> tuple[jax.Array, ...]:
            arrived = tuple(jax.device_put(chunk, device) for chunk, device in zip(chunks, devices, strict=True))
            return jax.block_until_ready(arrived)

        try:
            async with asyncio.timeout(timeout):
                return await asyncio.get_running_loop().run_in_executor(self._threads, copy)
        except TimeoutError:
            raise TransferTimeoutError(
                f"offer {spec.id:#x} of {peer.owner.id} was not copied within {timeout:.3f} s"
            ) from None
        except jax.errors.JaxRuntimeError as error:
            raise TransferError(f"offer {spec.id:#x} of {peer.owner.id}: {error}") from error

    def close(self) -> None:
        for offer_id in tuple(self._mine):
            self.withdraw(offer_id)
