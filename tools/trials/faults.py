"""Faults that a process of a deployment may meet: it is killed, it stops for a while, its connections break.

Connections are broken from outside, without the process's help: pidfd_getfd(2) lends us its socket, and shutdown(2) ends it for both sides. That
needs the right to trace the process (same user, child of ours) and Linux 5.6.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from triptych.runtime.core.errors import ConfigError

_PIDFD_GETFD = 438  # the same on every architecture since Linux 5.6
_LIBC = ctypes.CDLL(None, use_errno=True)
CUT_EVERY = 0.02  # seconds: a connection that was made again meanwhile lives no longer than this


class Fault(StrEnum):
    """What happens to a process."""

    KILL = "kill"  # SIGKILL; it is started again by whoever supervises it
    PAUSE = "pause"  # SIGSTOP, then SIGCONT before anybody gives it up
    FREEZE = "freeze"  # SIGSTOP, then SIGCONT after everybody has given it up
    PARTITION = "partition"  # all its connections break, or those to one other process, and break again while it lasts


@dataclass(frozen=True)
class Bounds:
    """How long faults last, in seconds."""

    pause: float = 1.0  # half of the deployment's --heartbeat-timeout
    freeze: float = 5.0  # more than twice that
    partition: float = 3.0

    def of(self, fault: Fault) -> float:
        return {Fault.KILL: 0.0, Fault.PAUSE: self.pause, Fault.FREEZE: self.freeze, Fault.PARTITION: self.partition}[
            fault
        ]


async def inflict(fault: Fault, pid: int, bounds: Bounds, peer: int | None = None) -> None:
    """Do it and wait until it is over. A process that ends meanwhile ends the fault. A partition with a `peer` is between these two only."""
    try:
        if fault is Fault.KILL:
            os.kill(pid, signal.SIGKILL)
        elif fault is Fault.PARTITION:
            await _partition(pid, peer, bounds.partition)
        else:
            os.kill(pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(bounds.of(fault))
            finally:
                os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return


async def _partition(pid: int, peer: int | None, seconds: float) -> None:
    until = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < until:
        cut_connections(pid, peer)
        await asyncio.sleep(CUT_EVERY)


def cut_connections(pid: int, peer: int | None = None) -> int:
    """Break every TCP connection that the process has now, or has with `peer`; how many there were. Raises ConfigError where that is not permitted."""
    pidfd = os.pidfd_open(pid)
    try:
        mine = _connected(pid)
        if peer is not None:
            theirs = {(there, here) for here, there in _connected(peer).values()}
            mine = {number: ports for number, ports in mine.items() if ports in theirs}
        return sum(_shut(pidfd, number) for number in mine)
    finally:
        os.close(pidfd)


def _connected(pid: int) -> dict[int, tuple[str, str]]:
    """The process's TCP connections by file descriptor: the ports of both ends, which on one machine name a connection."""
    ports = {}
    for table in ("tcp", "tcp6"):
        path = Path(f"/proc/{pid}/net/{table}")
        rows = path.read_text().splitlines()[1:] if path.exists() else []
        for columns in map(str.split, rows):
            if columns[3] != "0A":  # it listens
                ports[columns[9]] = columns[1].rpartition(":")[2], columns[2].rpartition(":")[2]
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
        except FileNotFoundError:
            continue
        if target.startswith("socket:[") and target[8:-1] in ports:
            found[int(entry.name)] = ports[target[8:-1]]
    return found


def _shut(pidfd: int, number: int) -> bool:
    borrowed = _LIBC.syscall(_PIDFD_GETFD, pidfd, number, 0)
    if borrowed < 0:
        code = ctypes.get_errno()
        if code in (9, 3):  # EBADF, ESRCH: closed, or the process ended, since we looked
            return False
        raise ConfigError(f"connections of another process cannot be broken here (pidfd_getfd: {os.strerror(code)})")
    with socket.socket(fileno=borrowed) as connection:
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:  # it was broken already
            return False
    return True
