"""A port that is kept for processes that come and go: bound here for as long as they may be restarted, listened on there.

A bound socket that does not listen takes no connections and does not hinder a server with SO_REUSEADDR (gRPC sets it), but the system gives
its port to nobody else: neither to a server that asks for any free one, nor to an outgoing connection.
"""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Self

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.wire.listening import endpoint, local_endpoint


class ReservedPort:
    """A context manager: inside it, the port is kept.

    Args:
        host: address that the servers will listen on.
        port: 0 lets the system choose.

    Raises ConfigError if the host is no address of this machine, or the port is taken.
    """

    def __init__(self, host: str, port: int):
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            self._socket = socket.socket(family, kind, protocol)
        except OSError as error:
            raise ConfigError(f"cannot listen on {endpoint(host, port)}: {error.strerror or error}") from error
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind(address)
        except OSError as error:
            self._socket.close()
            raise ConfigError(f"cannot listen on {endpoint(host, port)}: {error.strerror or error}") from error
        self.port: int = self._socket.getsockname()[1]
        self.address = local_endpoint(host, self.port)
        """How processes on this machine reach the server."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
