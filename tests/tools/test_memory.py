"""A server process gives back what it frees, also when large blocks lay between small ones that live on."""

from __future__ import annotations

import subprocess
import sys

import pytest

from triptych.tools.memory import LIMITS, keep_level

CHURN = """
from concurrent.futures import ThreadPoolExecutor
from triptych.tools.memory import keep_level
from triptych.tools.trials.watch import look
import os
assert keep_level()
kept = []
def work(number):
    for size in (3_000_000, 700_000, 200_000):
        blocks = [bytearray(size) for _ in range(4)]
        kept.append(bytearray(60_000))
        del blocks
with ThreadPoolExecutor(8) as pool:
    list(pool.map(work, range(16)))
before = look(os.getpid()).rss
with ThreadPoolExecutor(8) as pool:
    list(pool.map(work, range(64)))
print(look(os.getpid()).rss - before - 64 * 3 * 60_000)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_holes_are_given_back():
    child = subprocess.run([sys.executable, "-c", CHURN], capture_output=True, text=True, timeout=60, check=True)
    assert int(child.stdout) < 4_000_000


def test_what_the_environment_sets_stays():
    assert keep_level(dict.fromkeys(LIMITS, "1")) in (True, False)
