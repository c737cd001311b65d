"""What both clients know about channels, authentication, deadlines and health."""

from __future__ import annotations

from triptych.runtime.core.errors import Status

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", 64 * 2**20),  # prompt logprobs of a long prompt pass gRPC's 4 MiB
    ("grpc.max_send_message_length", -1),  # the server's limit decides, and its error says what it is
    (
        "grpc.keepalive_time_ms",
        20_000,
    ),  # a server whose host vanished without a reset is noticed after at most twice this
    ("grpc.keepalive_timeout_ms", 20_000),
)

DEADLINE_MARGIN = 2.0
"""Seconds that the call's own deadline lies behind the request's timeout: the server's error, which says more, arrives first."""

SERVICE = "triptych.v1.Inference"

# grpc.health.v1 by hand, so that the client needs no package besides grpcio and protobuf: HealthCheckRequest{string service = 1} and
# HealthCheckResponse{ServingStatus status = 1} with SERVING = 1.
HEALTH_METHOD = "/grpc.health.v1.Health/Check"
HEALTH_REQUEST = b"\x0a" + bytes([len(SERVICE)]) + SERVICE.encode()
HEALTH_SERVING = b"\x08\x01"

FATAL = (Status.UNAUTHENTICATED, Status.PERMISSION_DENIED)
"""Answers to a health check that waiting does not change."""

HEALTH_INTERVAL = 0.1
"""Seconds between looks while waiting for a server to become ready."""


def call_timeout(timeout: float | None) -> float | None:
    return None if timeout is None else max(0.0, timeout) + DEADLINE_MARGIN
