"""A decoder process is not believed: whatever it sends is an array of a known form, or an error."""

from __future__ import annotations

import asyncio
import os
import socket
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.runtime.media.channel import (
    MAX_HEADER,
    PREFIX,
    ChannelError,
    areceive,
    array_of,
    asend,
    pack,
    receive,
    send,
)


def test_both_ends_understand_each_other():
    data = os.urandom(2_000_000)

    async def ours(sock: socket.socket) -> None:
        sock.setblocking(False)
        await asend(sock, {"n": 1}, data)
        header, payload = await areceive(sock, len(data))
        assert header == {"n": 2} and payload == data

    def theirs(sock: socket.socket) -> None:
        message = receive(sock, len(data))
        assert message is not None
        send(sock, {"n": message[0]["n"] + 1}, message[1])

    a, b = socket.socketpair()
    with a, b:
        other = threading.Thread(target=theirs, args=(b,))
        other.start()
        asyncio.run(ours(a))
        other.join()


def test_an_end_between_messages_is_an_end_and_one_inside_is_an_error():
    a, b = socket.socketpair()
    with b:
        a.sendall(pack({}, 0))
        a.close()
        assert receive(b, 0) == ({}, bytearray())
        assert receive(b, 0) is None
    a, b = socket.socketpair()
    with b:
        a.sendall(pack({}, 5) + b"123")
        a.close()
        with pytest.raises(ChannelError, match="closed after 3 of 5"):
            receive(b, 5)


@pytest.mark.parametrize(
    "raw",
    [
        PREFIX.pack(b"HTTP", 2, 0) + b"{}",
        PREFIX.pack(b"TMD1", MAX_HEADER + 1, 0),
        PREFIX.pack(b"TMD1", 2, 2**60) + b"{}",
        PREFIX.pack(b"TMD1", 2, 0) + b"[]",
        PREFIX.pack(b"TMD1", 2, 0) + b"{x",
        PREFIX.pack(b"TMD1", 60000, 0) + b"[" * 60000,
        b"",
        b"TMD",
    ],
)
def test_what_is_no_message_is_an_error(raw: bytes):
    async def scenario() -> None:
        a, b = socket.socketpair()
        with b:
            b.setblocking(False)
            a.sendall(raw)
            a.close()
            with pytest.raises(ChannelError):
                await areceive(b, 1000)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"dtype": "uint8", "shape": None},
        {"dtype": "object", "shape": [1]},
        {"dtype": "O", "shape": [1]},
        {"dtype": "float64", "shape": [1]},
        {"dtype": ["uint8"], "shape": [8]},
        {"dtype": "uint8", "shape": [7]},
        {"dtype": "uint8", "shape": [-2, -4]},
        {"dtype": "uint8", "shape": [2, 2.0, 2]},
        {"dtype": "uint8", "shape": [True, 8]},
        {"dtype": "uint8", "shape": [2**63, 2**63]},
        {"dtype": "uint8", "shape": [1, 1, 1, 1, 8]},
        {"dtype": "float32", "shape": [8]},
    ],
)
def test_an_array_whose_form_is_not_that_of_its_bytes_is_an_error(header: dict):
    with pytest.raises(ChannelError):
        array_of(header, bytearray(8))


def test_an_array_comes_as_it_was_sent_and_cannot_be_written():
    array = array_of({"dtype": "float32", "shape": [2, 1]}, bytearray(np.array([1.5, -2], np.float32).tobytes()))
    np.testing.assert_array_equal(array, [[1.5], [-2]])
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0
    assert array_of({"dtype": "uint8", "shape": [0, 3]}, bytearray()).shape == (0, 3)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda x: st.lists(x, max_size=5),
    max_leaves=5,
)


@settings(max_examples=200)
@given(st.one_of(st.sampled_from(["uint8", "int64", "object"]), JSON), JSON, st.integers(0, 40))
def test_no_header_raises_anything_but_its_error(dtype: object, shape: object, size: int):
    try:
        assert array_of({"dtype": dtype, "shape": shape}, bytearray(size)).nbytes == size
    except ChannelError:
        pass
