"""A decoder process: reads a message, decodes, writes the result, until its socket closes. Run by `process.py`.

It is confined before the first message: a bound on its address space, no files written, no core dumps. An alarm of the kernel ends it when it exceeds its time
even inside a C library, and even when the gateway that would kill it has died. What goes wrong in Python is reported by name and message.
"""

from __future__ import annotations

import importlib
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from triptych.runtime.media.channel import receive, send
from triptych.runtime.media.errors import RAISED_BY_DECODERS, CorruptMediaError, DecoderMemoryError

Operation = Callable[[bytearray, Mapping[str, Any]], tuple[np.ndarray, dict[str, Any]]]
"""(data, options) to (array, facts about it). Options and facts are plain JSON values."""

MESSAGE_CHARS = 500
NICE = 5  # gateway and device loops on the same cores go first: text must not wait for media
ALARM_GRACE = 2.0  # seconds beyond an item's time: the gateway kills first and knows why


def main() -> None:
    """Arguments: file descriptor of the socket, bytes of memory, largest payload, module:NAME of the operations."""
    descriptor, memory, max_payload, table = sys.argv[1:5]
    sock = socket.socket(fileno=int(descriptor))
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole process group; the gateway ends its decoders in order
    module, name = table.split(":")
    operations: dict[str, Operation] = getattr(importlib.import_module(module), name)
    confine(int(memory))
    send(sock, {"ready": True})
    while (message := receive(sock, int(max_payload))) is not None:
        header, data = message
        signal.setitimer(signal.ITIMER_REAL, header["seconds"] + ALARM_GRACE)
        reply, array = answer(operations[header["operation"]], data, header["options"])
        del message, data
        send(sock, reply, array.data.cast("B") if array.size else b"")
        signal.setitimer(signal.ITIMER_REAL, 0)
        del reply, array


def confine(memory: int) -> None:
    """At most `memory` bytes of address space beyond what is in use now; nothing written to files; no core dumps; other processes go first."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(NICE)


def answer(operation: Operation, data: bytearray, options: Mapping[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
    """(header, array) of the reply. An error that is none of the expected ones is the file's fault: only files differ between calls."""
    nothing = np.zeros(0, np.uint8)
    try:
        array, facts = operation(data, options)
        array = np.ascontiguousarray(array)
        return {"dtype": array.dtype.name, "shape": list(array.shape), "facts": facts}, array
    except MemoryError:
        return _failure(DecoderMemoryError, "decoding the item takes more memory than a decoder may have"), nothing
    except Exception as error:  # noqa: BLE001 - whatever it is, the next item is another
        known = RAISED_BY_DECODERS.get(type(error).__name__)
        if known is not None:
            return _failure(known, str(error)), nothing
        return _failure(CorruptMediaError, f"the item cannot be decoded: {error!r}"), nothing


def _failure(error: type, message: str) -> dict[str, Any]:
    return {"error": error.__name__, "message": message[:MESSAGE_CHARS]}


if __name__ == "__main__":
    main()
