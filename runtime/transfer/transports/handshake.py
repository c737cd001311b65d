"""A transport on which every offer costs a hand-shake, for measuring: any transport, wrapped, and each fetch written down.

Offers cross one at a time, as over one link whose sender and receiver agree on each before its bytes move. Without a hand-shake it only
writes down what the wrapped transport does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax

from triptych.runtime.transfer.transports.base import OfferSpec, Peer, Transport
from triptych.runtime.transfer.transports.wrapped import WrappedTransport
from triptych.sharding.devices import Device


@dataclass(frozen=True)
class Fetched:
    """One offer that came across: the key that it was staged under, its bytes, and when it began and ended (seconds, monotonic clock)."""

    key: int
    nbytes: int
    begin: float
    end: float


class HandshakeTransport(WrappedTransport):
    """`inner`; a fetch waits for those before it, then `seconds()`, then for its bytes, and `told` hears of it."""

    def __init__(self, inner: Transport, seconds: Callable[[], float], told: Callable[[Fetched], object]):
        super().__init__(inner)
        self._seconds = seconds
        self._told = told
        self._link = asyncio.Lock()

    async def fetch(
        self, peer: Peer, spec: OfferSpec, devices: Sequence[Device], timeout: float
    ) -> tuple[jax.Array, ...]:
        async with self._link:
            begin = time.monotonic()
            await asyncio.sleep(self._seconds())
            chunks = await self._inner.fetch(peer, spec, devices, timeout)
            self._told(Fetched(peer.key, sum(chunk.nbytes for chunk in chunks), begin, time.monotonic()))
            return chunks
