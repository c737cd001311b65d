"""Messages between the gateway and a decoder process, over a socket: a JSON header, then raw bytes.

A decoder process handles hostile files and must be taken for hostile itself, so nothing that it sends is unpickled: a reply is numbers, strings and the
raw bytes of one array, and `array_of` checks that they agree.
"""

from __future__ import annotations

import asyncio
import json
import math
import socket
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

PREFIX = struct.Struct("<4sIQ")  # magic, bytes of the header, bytes of the payload
MAGIC = b"TMD1"
MAX_HEADER = 2**20
DTYPES = ("uint8", "float32", "int64")


class ChannelError(Exception):
    """The other side sent something that is no message, or nothing any more."""


def pack(header: Mapping[str, Any], payload_bytes: int) -> bytes:
    """Everything before the payload."""
    text = json.dumps(header, allow_nan=False).encode()
    if len(text) > MAX_HEADER:
        raise ChannelError(f"a header of {len(text)} bytes; expected at most {MAX_HEADER}")
    return PREFIX.pack(MAGIC, len(text), payload_bytes) + text


def unpack_prefix(prefix: bytes | bytearray, max_payload: int) -> tuple[int, int]:
    """(bytes of the header, bytes of the payload). Raises ChannelError."""
    magic, header, payload = PREFIX.unpack(prefix)
    if magic != MAGIC or header > MAX_HEADER or payload > max_payload:
        raise ChannelError(
            f"magic {magic!r}, header {header} bytes, payload {payload} bytes: not a message that is allowed"
        )
    return header, payload


def unpack_header(text: bytes | bytearray) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ChannelError(f"a header that is no JSON: {error}") from None
    if not isinstance(header, dict):
        raise ChannelError("a header that is no JSON object")
    return header


def array_of(header: Mapping[str, Any], payload: bytearray) -> np.ndarray:
    """The array of a reply, read-only, on the payload's memory. Raises ChannelError unless dtype, shape and size agree."""
    dtype, shape = header.get("dtype"), header.get("shape")
    if dtype not in DTYPES or not isinstance(shape, list) or len(shape) > 4:
        raise ChannelError(f"an array of dtype {dtype!r} and shape {shape!r}")
    if not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        raise ChannelError(f"an array of shape {shape!r}")
    if math.prod(shape) * np.dtype(dtype).itemsize != len(payload):
        raise ChannelError(f"{len(payload)} bytes for an array of dtype {dtype} and shape {shape}")
    array = np.frombuffer(payload, dtype).reshape(shape)
    array.flags.writeable = False
    return array


def send(sock: socket.socket, header: Mapping[str, Any], payload: bytes | bytearray | memoryview = b"") -> None:
    """Blocking; used by decoder processes."""
    sock.sendall(pack(header, len(payload)))
    sock.sendall(payload)


def receive(sock: socket.socket, max_payload: int) -> tuple[dict[str, Any], bytearray] | None:
    """Blocking; None when the other side has closed."""
    prefix = _read(sock, PREFIX.size)
    if not prefix:
        return None
    header, payload = unpack_prefix(prefix, max_payload)
    return unpack_header(_read(sock, header)), _read(sock, payload)


async def asend(sock: socket.socket, header: Mapping[str, Any], payload: bytes | bytearray | memoryview = b"") -> None:
    """The same for an event loop; `sock` does not block. Raises OSError when the other side is gone."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, pack(header, len(payload)))
    if len(payload):
        await loop.sock_sendall(sock, payload)


async def areceive(sock: socket.socket, max_payload: int) -> tuple[dict[str, Any], bytearray]:
    """The same for an event loop. Raises ChannelError, also when the other side has closed, or OSError."""
    header, payload = unpack_prefix(await _aread(sock, PREFIX.size), max_payload)
    return unpack_header(await _aread(sock, header)), await _aread(sock, payload)


def _read(sock: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    done = 0
    while done < size:
        n = sock.recv_into(view[done:])
        if n == 0:
            return bytearray() if done == 0 else _cut(done, size)
        done += n
    return data


async def _aread(sock: socket.socket, size: int) -> bytearray:
    loop = asyncio.get_running_loop()
    data = bytearray(size)
    view = memoryview(data)
    done = 0
    while done < size:
        n = await loop.sock_recv_into(sock, view[done:])
        if n == 0:
            _cut(done, size)
        done += n
    return data


def _cut(done: int, size: int) -> bytearray:
    raise ChannelError(f"the other side closed after {done} of {size} bytes")
