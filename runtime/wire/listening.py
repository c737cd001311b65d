"""Addresses: binding a gRPC server to one, with a typed error when it is taken, and naming it for others."""

from __future__ import annotations

import grpc

from triptych.runtime.core.errors import ConfigError


def endpoint(host: str, port: int) -> str:
    """host:port, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def local_endpoint(host: str, port: int) -> str:
    """How a process on this machine reaches what listens on `host`: a wildcard address is none to connect to."""
    return endpoint({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)


def listen(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None = None) -> int:
    """The port that `server` is bound to (the system's choice for port 0). Raises ConfigError if it cannot be."""
    return listen_at(server, endpoint(host, port), credentials)


def listen_at(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
    """The same for host:port in one."""
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {address}: {error}") from error
