"""Transport "device": `jax.experimental.transfer` between processes.

What was measured of that library, and what follows here:

- its deadlines do not fire, an unknown id waits for ever and `connect` to a dead address never fails: every fetch has a watchdog of ours;
- poisoning a connection is the only way to end its waiting pulls, and ends all of them: a connection on which a fetch was given up takes no new
  ones and is poisoned as soon as only given-up fetches are left on it, so one request's deadline does not fail another request;
- a buffer stays in the server until it is fetched, and can be fetched once: withdrawing an offer deletes its arrays, which frees the memory
  and gives a late puller an error instead of data;
- it is neither authenticated nor encrypted: it binds to one named address and ids are secret. `transports.open_transports` refuses it under TLS.

A peer is known to live before we connect: its address comes on the open `Transfer.Open` stream.
"""

from __future__ import annotations

import asyncio
import ipaddress
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import transfer
from jax.sharding import SingleDeviceSharding

from triptych.runtime.core.errors import ConfigError, TransferError, TransferTimeoutError
from triptych.runtime.core.instance import TransportKind
from triptych.runtime.transfer.transports.base import OfferSpec, Peer
from triptych.sharding.devices import Device

WAITERS = 32  # threads that wait for arriving arrays; they sleep in C++ and hold nothing else
TRANSFER_SIZE = 32 << 20  # bytes of one staging copy; the library's 256 MiB would map 6 GiB of host memory a process
PARALLEL_COPIES = 4
SOCKETS = 1  # more did not make a difference between two processes of one host


@dataclass
class _Connection:
    """A link to one peer, and how many fetches wait on it, given-up ones included."""

    link: Any
    waiting: int = 0
    given_up: int = 0
    retired: bool = False


class DeviceTransport:
    """Both halves, over the one transfer server of this process, which starts at first use.

    Args:
        device: any device of the backend whose arrays are moved.
        interface: literal IP address of the interface to listen on.

    Raises:
        ConfigError: `interface` is not one address of one interface.
    """

    kind = TransportKind.DEVICE

    def __init__(self, device: Device, interface: str):
        try:
            address = ipaddress.ip_address(interface)
        except ValueError:
            raise ConfigError(
                f"transport 'device' needs the literal IP address of one interface, got {interface!r}"
            ) from None
        if address.is_unspecified:
            raise ConfigError(
                f"transport 'device' is not authenticated and must not listen on every interface ({interface}); name one"
            )
        self._bind = f"[{interface}]:0" if address.version == 6 else f"{interface}:0"
        self._device = device
        self._lock = threading.Lock()
        self._server: Any = None
        self._published: dict[int, tuple[jax.Array, ...]] = {}
        self._connections: dict[str, _Connection] = {}
        self._waiters = ThreadPoolExecutor(WAITERS, thread_name_prefix="device-pull")

    def endpoint(self) -> str:
        return self._started().address()

    def publish(self, offer_id: int, chunks: Sequence[jax.Array]) -> None:
        server = self._started()
        with self._lock:
            self._published[offer_id] = tuple(chunks)
        server.await_pull(offer_id, list(chunks))

    def withdraw(self, offer_id: int) -> None:
        with self._lock:
            chunks = self._published.pop(offer_id, ())
        for chunk in chunks:
            chunk.delete()

    async def fetch(
        self, peer: Peer, spec: OfferSpec, devices: Sequence[Device], timeout: float
    ) -> tuple[jax.Array, ...]:
        dtype = np.dtype(spec.dtype)
        wanted = [jax.ShapeDtypeStruct(spec.shape, dtype, sharding=SingleDeviceSharding(device)) for device in devices]
        connection = self._enter(peer.endpoint)
        given_up = False
        try:
            arrays = connection.link.pull(spec.id, wanted)
            waiting = asyncio.get_running_loop().run_in_executor(self._waiters, jax.block_until_ready, arrays)
            waiting.add_done_callback(_look_at_outcome)
            given_up = True  # unless it ends below: a cancelled or late fetch stays behind in the library
            done, _ = await asyncio.wait({waiting}, timeout=timeout)
            given_up = not done
            if given_up:
                raise TransferTimeoutError(
                    f"offer {spec.id:#x} of {peer.owner.id} did not arrive from {peer.endpoint} within {timeout:.3f} s: "
                    "the peer withdrew it, or its transfer port cannot be reached"
                )
            return tuple(waiting.result())
        except jax.errors.JaxRuntimeError as error:
            self._retire(connection)
            raise TransferError(f"offer {spec.id:#x} of {peer.owner.id} from {peer.endpoint}: {error}") from error
        finally:
            self._leave(connection, given_up)

    def close(self) -> None:
        for offer_id in tuple(self._published):
            self.withdraw(offer_id)
        for connection in tuple(self._connections.values()):
            self._retire(connection)
            connection.link._poison_connection()
        self._waiters.shutdown(wait=False)

    def _started(self) -> Any:
        with self._lock:
            if self._server is None:
                self._server = transfer.start_transfer_server(
                    self._device.client,
                    self._bind,
                    [self._bind] * SOCKETS,
                    max_num_parallel_copies=PARALLEL_COPIES,
                    transfer_size=TRANSFER_SIZE,
                )
            return self._server

    def _enter(self, endpoint: str) -> _Connection:
        server = self._started()
        with self._lock:
            connection = self._connections.get(endpoint)
            if connection is None:
                connection = self._connections[endpoint] = _Connection(server.connect(endpoint))
            connection.waiting += 1
            return connection

    def _leave(self, connection: _Connection, given_up: bool) -> None:
        """Ends one fetch's use of a connection; a given-up fetch keeps counting as waiting."""
        with self._lock:
            if given_up:
                connection.given_up += 1
            else:
                connection.waiting -= 1
        if given_up:
            self._retire(connection)
        with self._lock:
            poison = connection.given_up > 0 and connection.waiting == connection.given_up
        if poison:
            connection.link._poison_connection()

    def _retire(self, connection: _Connection) -> None:
        """No new fetch uses this connection."""
        with self._lock:
            connection.retired = True
            for endpoint, known in tuple(self._connections.items()):
                if known is connection:
                    del self._connections[endpoint]


def _look_at_outcome(waiting: asyncio.Future[Any]) -> None:
    """A fetch that nobody waits for any more ends with an error once its connection is poisoned; asyncio would report it as lost."""
    if not waiting.cancelled():
        waiting.exception()
