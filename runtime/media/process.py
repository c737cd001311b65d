"""One decoder process, seen from the gateway: started, asked, killed.

A new interpreter (nothing is inherited from the gateway but a socket), with an environment of three variables: no secret of the gateway is within its reach.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from triptych.runtime.media.channel import ChannelError, areceive, array_of, asend
from triptych.runtime.media.errors import RAISED_BY_DECODERS, DecoderCrashedError, DecoderLostError, DecodeTimeoutError

CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS}
RETRY = 1.0  # seconds; a process that was lost is replaced within about that
LAST_BREATH = 1.0  # seconds between the end of a process's socket and its own


@dataclass(frozen=True)
class Job:
    """One thing to decode.

    Attributes:
        operation: a name of the process's table (`operations.py`).
        data: the file, as the client sent it.
        options: plain JSON values.
        seconds: wall-clock time that it may take.
    """

    operation: str
    data: bytes
    options: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True)
class Reply:
    """What decoding gave: a read-only array and facts about it (plain JSON values)."""

    array: np.ndarray
    facts: Mapping[str, Any] = field(default_factory=dict)


class DecoderProcess:
    """Owns a process and its socket. One question at a time; after any error but those of `RAISED_BY_DECODERS` it must be stopped."""

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket, max_reply: int):
        self._process = process
        self._sock = sock
        self._max_reply = max_reply

    @classmethod
    async def start(
        cls, operations: str, memory: int, max_payload: int, max_reply: int, seconds: float
    ) -> DecoderProcess:
        """A process that is ready. Raises DecoderLostError if it is not within `seconds`."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(  # noqa: ASYNC220 - it returns within milliseconds
                [sys.executable, "-P", "-m", "triptych.runtime.media.child"]
                + [str(value) for value in (theirs.fileno(), memory, max_payload, operations)],
                env={
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                    "OMP_NUM_THREADS": "1",
                    "OPENBLAS_NUM_THREADS": "1",
                },
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # libraries print what a file makes them print
            )
        ours.setblocking(False)
        self = cls(process, ours, max_reply)
        try:
            async with asyncio.timeout(seconds):
                await areceive(ours, 0)
        except (ChannelError, OSError, TimeoutError) as error:
            code = await self.stop()
            raise DecoderLostError(
                f"a decoder process did not start ({error!r}, exit status {code}); retry later", retry_after=RETRY
            ) from None
        except BaseException:
            await self.stop()
            raise
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    async def ask(self, job: Job) -> Reply:
        """The process's answer.

        Raises what the process reports (`RAISED_BY_DECODERS`); DecodeTimeoutError after `job.seconds`; DecoderCrashedError, DecoderLostError when it dies.
        """
        header = {"operation": job.operation, "options": dict(job.options), "seconds": job.seconds}
        try:
            async with asyncio.timeout(job.seconds):
                await asend(self._sock, header, job.data)
                reply, payload = await areceive(self._sock, self._max_reply)
            if "error" not in reply:
                return Reply(array_of(reply, payload), dict(reply.get("facts", {})))
        except TimeoutError:
            raise _too_slow(job) from None
        except (ChannelError, OSError) as error:
            raise _loss(await self.stop(LAST_BREATH), error, job) from None
        name, message = str(reply["error"]), str(reply.get("message"))
        if name not in RAISED_BY_DECODERS:
            raise DecoderLostError(
                f"a decoder process reported {name[:80]!r}, which is no error that it may report", retry_after=RETRY
            )
        raise RAISED_BY_DECODERS[name](message)

    async def stop(self, patience: float = 0.0) -> int:
        """End the process, at once or after `patience` seconds, and return its exit status (negative: the signal that ended it)."""
        self._sock.close()
        try:
            return await asyncio.shield(asyncio.to_thread(_end, self._process, patience))
        except asyncio.CancelledError:
            self._process.kill()
            raise


def _end(process: subprocess.Popen[bytes], patience: float) -> int:
    try:
        return process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _too_slow(job: Job) -> DecodeTimeoutError:
    return DecodeTimeoutError(f"decoding the item took longer than {job.seconds:g} s, which is the most")


def _loss(status: int, error: Exception, job: Job) -> DecoderCrashedError | DecoderLostError | DecodeTimeoutError:
    """What an exit status says about the item."""
    if -status in CRASHES:
        return DecoderCrashedError(f"the item made its decoder crash ({signal.Signals(-status).name})")
    if -status == signal.SIGALRM:
        return _too_slow(job)
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
    return DecoderLostError(
        f"the decoder process {how} while it decoded the item ({error}); retry later", retry_after=RETRY
    )
