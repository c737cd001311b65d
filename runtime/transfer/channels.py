"""gRPC channels between worker processes, and the settings that make a vanished peer a failed call instead of a wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from triptych.runtime.wire.tls import Tls, open_channel

PING_MS = 5_000
"""Interval of HTTP/2 pings while a call is open; a host that vanished without a reset is noticed after twice this."""

CLIENT_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", PING_MS),
    ("grpc.keepalive_timeout_ms", PING_MS),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", PING_MS),
    ("grpc.keepalive_timeout_ms", PING_MS),
    ("grpc.http2.max_pings_without_data", 0),
    (
        "grpc.http2.min_ping_interval_without_data_ms",
        PING_MS // 2,
    ),  # or the server takes its own clients' pings for an attack
    ("grpc.so_reuseport", 0),  # a port that is taken is an error, not a coin toss
)


class PeerChannels:
    """One channel an address, opened at first use and shared by all pulls of the process. Used on the event loop only."""

    def __init__(self, tls: Tls | None = None, interceptors: Sequence[Any] = ()):
        self._tls = tls
        self._interceptors = list(interceptors)
        self._channels: dict[str, grpc.aio.Channel] = {}

    def __call__(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.get(address)
        if channel is None:
            channel = open_channel(address, self._tls, CLIENT_OPTIONS, self._interceptors)
            self._channels[address] = channel
        return channel

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()
