"""Faults do to a process what they say, and leave it alone afterwards."""

from __future__ import annotations

import asyncio
import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from triptych.runtime.core.errors import ConfigError
from triptych.tools.trials.faults import Bounds, Fault, cut_connections, inflict

PEERS = """
import socket, sys
listening = socket.create_server(("127.0.0.1", 0))
here = socket.create_connection(listening.getsockname())
there, _ = listening.accept()
print("connected", flush=True)
print("ended", here.recv(1) == b"" and there.recv(1) == b"", flush=True)
print("listens", socket.create_connection(listening.getsockname()) is not None, flush=True)
"""
COUNTER = "import time\nwhile True:\n    print(time.monotonic(), flush=True)\n    time.sleep(0.01)"


@pytest.fixture
def peers() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", PEERS], stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_connections_break_and_listening_goes_on(peers: subprocess.Popen[str]) -> None:
    assert peers.stdout is not None and peers.stdout.readline() == "connected\n"
    try:
        assert cut_connections(peers.pid) >= 1
    except ConfigError as error:
        pytest.skip(error.message)
    assert peers.stdout.readline() == "ended True\n"
    assert peers.stdout.readline() == "listens True\n"


RING = """
import socket, sys
listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
for port in map(int, sys.stdin.readline().split()):
    mine = socket.create_connection(("127.0.0.1", port))
theirs, _ = listening.accept()
print("connected", flush=True)
sys.stdin.readline()
theirs.settimeout(0.5)
try:
    print("ended", theirs.recv(1) == b"", flush=True)
except TimeoutError:
    print("lives", flush=True)
sys.stdin.readline()
"""


def test_of_three_processes_only_the_connection_between_two_breaks() -> None:
    """a -> b -> c -> a: the one that b made to c."""
    processes = [
        subprocess.Popen([sys.executable, "-c", RING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]

    def line(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline().strip()

    try:
        ports = [line(process) for process in processes]
        for process, port in zip(processes, ports[1:] + ports[:1], strict=True):
            assert process.stdin is not None
            process.stdin.write(f"{port}\n")
            process.stdin.flush()
        assert [line(process) for process in processes] == ["connected"] * 3
        _, b, c = processes
        assert cut_connections(b.pid, c.pid) == 1
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("look\n")
            process.stdin.flush()
        assert [line(process) for process in processes] == ["lives", "lives", "ended True"]
    except ConfigError as error:
        pytest.skip(error.message)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_paused_process_stands_still_and_then_goes_on() -> None:
    with subprocess.Popen([sys.executable, "-c", COUNTER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = float(process.stdout.readline())
        asyncio.run(inflict(Fault.PAUSE, process.pid, Bounds(pause=0.5)))
        times = [first, *(float(process.stdout.readline()) for _ in range(100))]
        assert max(b - a for a, b in itertools.pairwise(times)) > 0.4
        process.kill()


def test_a_killed_process_is_gone_and_one_that_is_gone_ends_the_fault() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        asyncio.run(inflict(Fault.KILL, process.pid, Bounds()))
        assert process.wait(60) == -signal.SIGKILL
    began = time.monotonic()
    asyncio.run(inflict(Fault.FREEZE, 2**22 + 1, Bounds(freeze=60.0)))
    assert time.monotonic() - began < 30.0
