"""A time limit for every test, so that a hang is a failure with a stack trace and not a silent CI job.

Two stages. When a test's limit has passed, SIGALRM raises in the main thread: the test fails, teardown runs, the rest goes on. Code that never
returns to the interpreter (a wait inside a C++ runtime) cannot be interrupted that way, so `GRACE` seconds later faulthandler prints the
stacks of all threads and ends the process.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Iterator
from types import FrameType

import pytest

DEFAULT_LIMIT = 240.0  # seconds; a first compile of a toy model on two busy cores stays well below
SLOW_LIMIT = 600.0
GRACE = 30.0

_STDERR = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """Keep the real stderr: output is not captured here, but is while a test runs."""
    config.stash[_STDERR] = os.dup(2)


def pytest_unconfigure(config: pytest.Config) -> None:
    os.close(config.stash[_STDERR])


def limit_for(item: pytest.Item) -> float:
    """Seconds that `item` may take: @pytest.mark.limit(seconds), else by whether it is marked slow or real_model."""
    marker = item.get_closest_marker("limit")
    if marker is not None:
        return float(marker.args[0])
    slow = item.get_closest_marker("slow") or item.get_closest_marker("real_model")
    return SLOW_LIMIT if slow else DEFAULT_LIMIT


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Arm both stages around setup, call and teardown together."""
    seconds = limit_for(item)
    stderr = item.config.stash[_STDERR]

    def expire(signum: int, frame: FrameType | None) -> None:
        faulthandler.dump_traceback(stderr, all_threads=True)
        pytest.fail(f"{item.nodeid} took longer than its limit of {seconds:g} s (stacks of all threads are on stderr)")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=stderr)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
