"""What the commands that speak to the scheduler share: where it is, and its answers as typed errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from triptych.proto.v1 import control_pb2, control_pb2_grpc
from triptych.runtime.core.errors import ConfigError, TriptychError
from triptych.runtime.core.instance import Role
from triptych.runtime.wire.auth import bearer_metadata
from triptych.runtime.wire.status import error_from_call
from triptych.tools.connection import TlsSettings
from triptych.tools.settings import setting, split_secrets


@dataclass(frozen=True)
class ControlConnection(TlsSettings):
    """Where the scheduler is, the token that the processes of the deployment share, certificates, and how long to wait."""

    scheduler: str | None = setting(None, "scheduler to call, host:port (`serve` prints it)", group="connection")
    api_key: str | None = setting(None, "bearer token (better in the environment)", secret=True, group="connection")
    cluster_token: str | None = setting(
        None, "bearer token of the deployment's processes (auto: --api-key)", secret=True, group="connection"
    )
    timeout: float = setting(120.0, "seconds that the change may take", group="connection")

    @property
    def token(self) -> str | None:
        return self.cluster_token or next(iter(split_secrets(self.api_key)), None)

    def channel(self, address: str) -> grpc.Channel:
        """To the scheduler, or to any other process of its deployment."""
        tls = self.tls
        if tls is None:
            return grpc.insecure_channel(address)
        return grpc.secure_channel(address, tls.credentials(), options=tls.channel_options())

    def __post_init__(self) -> None:
        host, _, port = (self.scheduler or "").rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(
                f"scheduler is {self.scheduler!r}; expected host:port, as `triptych serve` prints it when it is ready"
            )
        if not self.timeout > 0:
            raise ConfigError(f"timeout is {self.timeout}; expected seconds")


def drain(connection: ControlConnection, instance: str, *, force: bool) -> float:
    """Take an instance out of the cluster; returns the seconds that took. Raises the scheduler's refusal."""
    request = control_pb2.DrainRequest(instance=instance, force=force)
    return _call(connection, request, lambda stub: stub.Drain)


def switch_role(connection: ControlConnection, instance: str, roles: frozenset[Role], *, force: bool) -> float:
    """Give an instance these roles; returns the seconds that took. Raises the scheduler's refusal."""
    request = control_pb2.SwitchRoleRequest(instance=instance, roles=sorted(role.value for role in roles), force=force)
    return _call(connection, request, lambda stub: stub.SwitchRole)


def scheduler_error(error: grpc.RpcError, address: str) -> TriptychError:
    """The typed error of a call that failed at `address`, where a scheduler was expected."""
    assert isinstance(error, grpc.Call)
    details = error.details()
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:  # most likely a gateway, whose address is the better known one
        details = f"what listens at {address} does not answer as a scheduler; `triptych serve` prints the scheduler's address after the gateway's"
    return error_from_call(error.code(), details, error.trailing_metadata())


def _call(
    connection: ControlConnection, request: Any, method: Callable[[control_pb2_grpc.ControlStub], Callable[..., Any]]
) -> float:
    assert connection.scheduler is not None, "validated"
    with connection.channel(connection.scheduler) as channel:
        call = method(control_pb2_grpc.ControlStub(channel))
        try:
            return call(request, timeout=connection.timeout, metadata=bearer_metadata(connection.token)).seconds
        except grpc.RpcError as error:
            raise scheduler_error(error, connection.scheduler) from error
