"""A limit on how often each client may call: one token bucket a client, in a bounded table.

A bucket that has filled up again is the same as none, so what is forgotten first is what was used longest ago; a newcomer never has to wait for
somebody else's bucket. Who many names has, has many buckets: the limit on requests in flight holds for all clients together.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from triptych.runtime.core.errors import ConfigError, OverloadedError

MAX_CLIENTS = 10_000  # buckets; under 2 MB


class RateLimitedError(OverloadedError):
    """This client calls too often; `retry_after` says when its next call is welcome."""


@dataclass(frozen=True)
class Rate:
    """`per_second` calls in the long run, up to `burst` at once. Raises ConfigError for what would let nobody in."""

    per_second: float
    burst: int

    def __post_init__(self) -> None:
        if not 0 < self.per_second < float("inf") or self.burst < 1:
            raise ConfigError(
                f"a rate of {self.per_second:g} calls a second, {self.burst} at once, lets nobody in; expected more than 0 and at least 1"
            )


class RateLimiter:
    """The buckets. Owned by one event loop; `now` is its caller's clock, in seconds."""

    def __init__(self, rate: Rate, max_clients: int = MAX_CLIENTS):
        self._rate = rate
        self._max_clients = max_clients
        self._buckets: OrderedDict[int, tuple[float, float]] = OrderedDict()  # by hash: calls left, as of when

    def __len__(self) -> int:
        return len(self._buckets)

    def admit(self, client: Hashable, now: float) -> None:
        """Count one call of `client`. Raises RateLimitedError, without counting, if it has none left."""
        key = hash(client)  # a name may be as long as a header, and it is the client who chooses it
        left, since = self._buckets.pop(key, (float(self._rate.burst), now))
        left = min(float(self._rate.burst), left + max(0.0, now - since) * self._rate.per_second)
        welcome = left >= 1.0
        self._buckets[key] = (left - 1.0 if welcome else left, max(since, now))
        if len(self._buckets) > self._max_clients:
            self._buckets.popitem(last=False)
        if not welcome:
            raise RateLimitedError(
                f"more than {self._rate.per_second:g} calls a second (and {self._rate.burst} at once) from this client; retry later",
                retry_after=(1.0 - left) / self._rate.per_second,
            )
