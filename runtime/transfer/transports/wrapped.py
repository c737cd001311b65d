"""A transport around another one: everything is the other one's, but for what a subclass changes."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from triptych.runtime.core.instance import TransportKind
from triptych.runtime.transfer.transports.base import OfferSpec, Peer, Transport
from triptych.sharding.devices import Device


class WrappedTransport:
    """`inner`, as it is."""

    def __init__(self, inner: Transport):
        self._inner = inner

    @property
    def kind(self) -> TransportKind:
        return self._inner.kind

    def endpoint(self) -> str:
        return self._inner.endpoint()

    def publish(self, offer_id: int, chunks: Sequence[jax.Array]) -> None:
        self._inner.publish(offer_id, chunks)

    def withdraw(self, offer_id: int) -> None:
        self._inner.withdraw(offer_id)

    async def fetch(
        self, peer: Peer, spec: OfferSpec, devices: Sequence[Device], timeout: float
    ) -> tuple[jax.Array, ...]:
        return await self._inner.fetch(peer, spec, devices, timeout)

    def close(self) -> None:
        self._inner.close()
