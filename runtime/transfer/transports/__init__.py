"""The transports, and the one place that makes them."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import TransportKind
from triptych.runtime.transfer.transports.base import Transport
from triptych.runtime.transfer.transports.device import DeviceTransport
from triptych.runtime.transfer.transports.grpc import Channels, GrpcTransport
from triptych.runtime.transfer.transports.local import LocalHub, LocalTransport
from triptych.sharding.devices import Device

Transports = Mapping[TransportKind, Transport]


@dataclass(frozen=True)
class TransportConfig:
    """Which transports a process serves and uses, best first.

    Attributes:
        interface: literal IP address that the "device" transport listens on.
        tls: whether gRPC is encrypted here; then "device", which cannot be, is refused...
        device_without_tls: ...unless this says that the network between the instances is trusted.
    """

    kinds: tuple[TransportKind, ...]
    interface: str = "127.0.0.1"
    tls: bool = False
    device_without_tls: bool = False

    def __post_init__(self) -> None:
        if not self.kinds:
            raise ConfigError("name at least one KV transport: " + ", ".join(TransportKind))
        if TransportKind.DEVICE in self.kinds and self.tls and not self.device_without_tls:
            raise ConfigError(
                "TLS is on, but KV transport 'device' is neither encrypted nor authenticated: use 'grpc', or allow 'device' explicitly"
            )


def open_transports(
    config: TransportConfig, *, hub: LocalHub, channels: Channels, threads: Executor, device: Device
) -> dict[TransportKind, Transport]:
    """One transport object per configured kind, shared by all instances of the process."""
    makers = {
        TransportKind.LOCAL: lambda: LocalTransport(hub, threads),
        TransportKind.DEVICE: lambda: DeviceTransport(device, config.interface),
        TransportKind.GRPC: lambda: GrpcTransport(channels, threads),
    }
    return {kind: makers[kind]() for kind in config.kinds}
