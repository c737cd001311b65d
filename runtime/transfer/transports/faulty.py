"""A transport that fails on purpose, for tests: any transport, wrapped, with faults drawn from a seeded schedule.

Faults happen on the consumer's side of the wire, one draw a fetch, so that a run is repeated exactly by its seed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from enum import StrEnum

import jax
import numpy as np

from triptych.runtime.core.errors import TransferError, TransferTimeoutError
from triptych.runtime.transfer.transports.base import OfferSpec, Peer, Transport
from triptych.runtime.transfer.transports.wrapped import WrappedTransport
from triptych.sharding.devices import Device


class Fault(StrEnum):
    """What can go wrong with a fetch."""

    DROP = "drop"  # nothing ever arrives
    DELAY = "delay"  # it arrives late
    CORRUPT = "corrupt"  # one bit of one chunk is flipped
    DUPLICATE = "duplicate"  # it is fetched twice
    HALF_CLOSE = "half-close"  # the link breaks after some chunks


class FaultSchedule:
    """Which fault the next fetch meets: each with its probability, from one seed."""

    def __init__(self, seed: int, rates: Mapping[Fault, float]):
        if sum(rates.values()) > 1.0 + 1e-9 or any(rate < 0 for rate in rates.values()):
            raise ValueError(f"fault rates must be probabilities that sum to at most 1, got {dict(rates)}")
        self.random = random.Random(seed)
        self._rates = dict(rates)
        self.drawn: list[Fault | None] = []

    @classmethod
    def always(cls, fault: Fault, seed: int = 0) -> FaultSchedule:
        return cls(seed, {fault: 1.0})

    def draw(self) -> Fault | None:
        point = self.random.random()
        for fault, rate in self._rates.items():
            point -= rate
            if point < 0:
                self.drawn.append(fault)
                return fault
        self.drawn.append(None)
        return None


class FaultyTransport(WrappedTransport):
    """`inner`, with the faults of `schedule`; a delayed fetch waits `delay` seconds first."""

    def __init__(self, inner: Transport, schedule: FaultSchedule, delay: float = 0.1):
        super().__init__(inner)
        self.schedule = schedule
        self._delay = delay

    async def fetch(
        self, peer: Peer, spec: OfferSpec, devices: Sequence[Device], timeout: float
    ) -> tuple[jax.Array, ...]:
        fault = self.schedule.draw()
        if fault is Fault.DROP or (fault is Fault.DELAY and self._delay >= timeout):
            await asyncio.sleep(timeout)
            raise TransferTimeoutError(
                f"offer {spec.id:#x} of {peer.owner.id} did not arrive within {timeout:.3f} s ({fault})"
            )
        if fault is Fault.DELAY:
            await asyncio.sleep(self._delay)
            timeout -= self._delay
        chunks = await self._inner.fetch(peer, spec, devices, timeout)
        if fault is Fault.DUPLICATE:
            chunks = await self._inner.fetch(peer, spec, devices, timeout)
        if fault is Fault.HALF_CLOSE:
            raise TransferError(
                f"offer {spec.id:#x} of {peer.owner.id}: link broke after {len(chunks) // 2} of {len(chunks)} chunks"
            )
        if fault is Fault.CORRUPT:
            victim = self.schedule.random.randrange(len(chunks))
            flipped = _flip_a_bit(chunks[victim], self.schedule.random)
            chunks = (*chunks[:victim], jax.device_put(flipped, devices[victim]), *chunks[victim + 1 :])
        return chunks


def _flip_a_bit(chunk: jax.Array, source: random.Random) -> np.ndarray:
    array = np.array(chunk)
    view = array.reshape(-1).view(np.uint8)
    view[source.randrange(view.size)] ^= np.uint8(1 << source.randrange(8))
    return array
