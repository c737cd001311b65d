"""What a transport is: chunks go in under an id on one side and come out on chosen devices on the other.

A transport knows nothing of requests, pages or headers. Ids are random 63-bit numbers made afresh for every offer, so an id never means two
things. Shapes and dtypes were agreed before; integrity is checked after, by checksums computed on the devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import jax

from triptych.runtime.core.instance import InstanceRef, TransportKind
from triptych.sharding.devices import Device


@dataclass(frozen=True)
class Peer:
    """Who has the chunks: the owner's gRPC address, its transport's endpoint, and the key that gives the right to pull."""

    address: str
    endpoint: str
    owner: InstanceRef
    key: int


@dataclass(frozen=True)
class OfferSpec:
    """What is fetched: `chunks` arrays of this shape and dtype, published together under `id`."""

    id: int
    shape: tuple[int, ...]
    dtype: str
    chunks: int


class Transport(Protocol):
    """Both halves of one way to move chunks. Methods are safe to call from any thread; `fetch` runs on the event loop."""

    @property
    def kind(self) -> TransportKind: ...

    def endpoint(self) -> str:
        """What a peer's `fetch` needs to find this side, besides its gRPC address."""
        ...

    def publish(self, offer_id: int, chunks: Sequence[jax.Array]) -> None:
        """Makes single-device arrays available under an id, until `withdraw`. Does not wait for them to be computed."""
        ...

    def withdraw(self, offer_id: int) -> None:
        """Ends an offer and lets go of its arrays; an id that is not published is ignored."""
        ...

    async def fetch(
        self, peer: Peer, spec: OfferSpec, devices: Sequence[Device], timeout: float
    ) -> tuple[jax.Array, ...]:
        """Brings chunk i to `devices[i]` and waits for it. An offer may be fetched once.

        Raises:
            TransferTimeoutError: not everything arrived within `timeout` seconds.
            TriptychError: the peer is gone, does not know the id, or sent something else; its class and message say which.
        """
        ...

    def close(self) -> None:
        """Lets go of everything published and every connection."""
        ...
