"""Handles to staged data, and the leases that bound how long it is kept."""

from __future__ import annotations

from dataclasses import dataclass

from triptych.runtime.core.instance import InstanceRef


@dataclass(frozen=True)
class Handle:
    """A typed reference to KV staged on an instance.

    `key` is 64 random bits: knowing it is the right to pull. `digest` is the header's digest, so the puller knows that the header it is
    shown is the one that was meant.
    """

    owner: InstanceRef
    address: str
    key: int
    digest: str


@dataclass(frozen=True)
class Lease:
    """How long the owner keeps something with nobody's help: until `expires` (seconds, owner's clock)."""

    key: int
    expires: float

    def extended(self, now: float, seconds: float) -> Lease:
        return Lease(self.key, max(self.expires, now + seconds))

    def expired(self, now: float) -> bool:
        return now >= self.expires
