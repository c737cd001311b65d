"""Operations that do to their process what hostile files might. A table of its own: the real one has no such thing."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from triptych.runtime.media.child import Operation
from triptych.runtime.media.errors import CorruptMediaError

Result = tuple[np.ndarray, dict[str, Any]]


def echo(data: bytearray, options: Mapping[str, Any]) -> Result:
    """The data, and who had them. With `gate`, the path of a file: not before it exists."""
    time.sleep(options.get("sleep", 0.0))
    while "gate" in options and not os.path.exists(options["gate"]):
        time.sleep(0.01)
    return np.frombuffer(data, np.uint8), {"pid": os.getpid()}


def fault(data: bytearray, options: Mapping[str, Any]) -> Result:
    ctypes.string_at(0)
    raise AssertionError("unreachable")


def end(data: bytearray, options: Mapping[str, Any]) -> Result:
    os.kill(os.getpid(), options["signal"])
    time.sleep(60)
    raise AssertionError("unreachable")


def leave(data: bytearray, options: Mapping[str, Any]) -> Result:
    os._exit(7)


def hang(data: bytearray, options: Mapping[str, Any]) -> Result:
    """Deaf to signals that Python handles, as a C library would be."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    time.sleep(60)
    raise AssertionError("unreachable")


def grow(data: bytearray, options: Mapping[str, Any]) -> Result:
    return np.ones(options["bytes"], np.uint8), {}


def write_a_file(data: bytearray, options: Mapping[str, Any]) -> Result:
    with open(options["path"], "wb") as file:
        file.write(b"x")
    return np.zeros(1, np.uint8), {}


def surroundings(data: bytearray, options: Mapping[str, Any]) -> Result:
    return np.zeros(1, np.uint8), {"environment": sorted(os.environ), "modules": sorted(sys.modules)}


def fail(data: bytearray, options: Mapping[str, Any]) -> Result:
    if options["typed"]:
        raise CorruptMediaError("typed")
    raise LookupError("untyped")


def odd(data: bytearray, options: Mapping[str, Any]) -> Result:
    return np.zeros(3, np.complex128), {}


OPERATIONS: dict[str, Operation] = {
    "echo": echo,
    "fault": fault,
    "end": end,
    "leave": leave,
    "hang": hang,
    "grow": grow,
    "write_a_file": write_a_file,
    "surroundings": surroundings,
    "fail": fail,
    "odd": odd,
}
