"""Binding a gRPC server to an address, with a typed error when it is taken."""

from __future__ import annotations

import grpc

from triptych.runtime.core.errors import ConfigError


def listen(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None = None) -> int:
    """The port that `server` is bound to (the system's choice for port 0). Raises ConfigError if it cannot be."""
    address = f"{host}:{port}"
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {address}: {error}") from error
