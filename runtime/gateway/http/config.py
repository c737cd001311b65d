"""The HTTP server's limits and keys, in one frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.wire.rate import Rate
from triptych.runtime.wire.tls import Tls


@dataclass(frozen=True)
class TlsFiles:
    """PEM files. With `ca_certs`, clients must present a certificate that it signed (mTLS)."""

    certificate: Path
    key: Path
    ca_certs: Path | None = None


@dataclass(frozen=True)
class HttpConfig:
    """Every bound that keeps the server's memory and waiting times finite.

    Attributes:
        target: address of the gRPC gateway, host:port.
        token: bearer token for the gateway.
        target_tls: TLS to the gateway; None: plain text.
        tls: HTTPS with these files; None: HTTP.
        api_keys: what clients may present as bearer token; empty: none is asked for.
        max_body_bytes: largest request body; more is 413.
        max_bodies_bytes: bodies of all open requests together; more are 429, before they are read where they say how long they are.
        body_timeout: seconds that a body may take to arrive; more is 408.
        max_in_flight: requests that are generated at once; more are 429.
        max_prompts: prompts in one completion request.
        rate: how often one client (its API key, without one its address) may ask; None: as often as it likes. More is 429.
        request_timeout: seconds that a generation may take, its delivery included; more is 504.
        ready_ttl: seconds that one answer of the readiness probe is good for.
        ready_timeout: seconds that the probe's request may take.
        shutdown_timeout: seconds that running requests get at shutdown.
    """

    target: str
    host: str = "127.0.0.1"
    port: int = 0
    token: str | None = None
    api_keys: tuple[str, ...] = ()
    target_tls: Tls | None = None
    tls: TlsFiles | None = None
    max_body_bytes: int = 32 * 2**20
    max_bodies_bytes: int = 2**29
    body_timeout: float = 30.0
    max_in_flight: int = 512
    max_prompts: int = 64
    rate: Rate | None = None
    request_timeout: float = 600.0
    ready_ttl: float = 5.0
    ready_timeout: float = 5.0
    shutdown_timeout: float = 10.0

    def __post_init__(self) -> None:
        positive = ("max_body_bytes", "max_bodies_bytes", "body_timeout", "max_in_flight", "max_prompts", "request_timeout", "ready_ttl", "ready_timeout")  # fmt: skip
        for name in positive:
            if not getattr(self, name) > 0:
                raise ConfigError(f"http.{name} is {getattr(self, name)!r}; expected a positive number")
        if any(not key or not key.isascii() or not key.isprintable() or " " in key for key in self.api_keys):
            raise ConfigError("an API key must be printable ASCII without white space")
