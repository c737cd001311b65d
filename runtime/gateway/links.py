"""What the streams to the scheduler and to the workers share: channels that reconnect quickly, and bounded exponential backoff."""

from __future__ import annotations

import random
from collections.abc import Callable

import grpc

from triptych.runtime.gateway.config import GatewayConfig
from triptych.runtime.wire.tls import Tls, open_channel

Connect = Callable[[str], grpc.aio.Channel]

MAX_MESSAGE_BYTES = 64 * 2**20  # prompt logprobs of a long prompt take tens of bytes a candidate

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # a peer whose host vanished without a reset is noticed after at most twice this; the servers allow it
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # gRPC's own backoff grows to two minutes; peers inside a cluster come back within seconds, and a refused connection costs little
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 250),
    ("grpc.use_local_subchannel_pool", 1),  # or a new channel inherits the backoff of a dead one to the same address
)


def connect_with(tls: Tls | None) -> Connect:
    """Makes channels inside the cluster; None: in plain text."""
    return lambda address: open_channel(address, tls, CHANNEL_OPTIONS)


class Backoff:
    """Growing, jittered waits (so that many gateways do not return in step); `reset` after a success."""

    def __init__(self, config: GatewayConfig, source: random.Random | None = None):
        self._initial, self._max = config.backoff_initial, config.backoff_max
        self._random = source or random.Random()
        self._next = self._initial

    def reset(self) -> None:
        self._next = self._initial

    def next(self) -> float:
        """Seconds to wait before the next attempt."""
        wait, self._next = self._next, min(self._max, self._next * 2)
        return wait * self._random.uniform(0.5, 1.0)


def describe(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {error.details() or 'no details'}"
