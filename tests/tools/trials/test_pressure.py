"""What the trial of back-pressure does to a process, and what it reads of one."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.metrics.registry import Metrics
from triptych.runtime.metrics.server import MetricsServer
from triptych.tools.trials import pressure
from triptych.tools.trials.deployment import Deployment
from triptych.tools.trials.pressure import slowed
from triptych.tools.trials.scrape import scrape

SPINNER = "while True:\n    pass"


def state_of(pid: int) -> str:
    """R, S, T, ..., as in proc(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_slowed_process_is_stopped_again_and_again_and_runs_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pressure, "PERIOD", 0.1)

    async def scenario(pid: int) -> set[str]:
        seen: set[str] = set()
        async with slowed([pid], 0.5):
            until = time.monotonic() + 60.0
            while not {"T", "R"} <= seen and time.monotonic() < until:
                seen.add(state_of(pid))
                await asyncio.sleep(0.007)
        return seen

    with subprocess.Popen([sys.executable, "-c", SPINNER]) as process:
        try:
            assert {"T", "R"} <= asyncio.run(scenario(process.pid))
            assert state_of(process.pid) != "T"
        finally:
            process.kill()


def test_one_that_ends_while_it_is_slowed_is_left_alone() -> None:
    async def scenario() -> None:
        async with slowed([2**22 + 1], 0.0):  # beyond the largest pid
            await asyncio.sleep(0.01)

    asyncio.run(scenario())


def test_samples_are_read_by_name() -> None:
    async def scenario() -> dict[str, float]:
        metrics = Metrics()
        counter = metrics.counter("things", "Things", ("kind",))
        counter.labels("a").inc(2)
        counter.labels("b").inc(3)
        server = MetricsServer(metrics, "127.0.0.1", 0)
        await server.start()
        try:
            return await scrape(server.port)
        finally:
            await server.stop()

    assert asyncio.run(scenario())["triptych_things_total"] == 5


def test_pressure_needs_an_instance_that_only_encodes() -> None:
    with pytest.raises(ConfigError, match=r"topology EP-D has none"):
        asyncio.run(pressure.trial(Deployment("", ""), "EP-D", [], 1.0, 0.1, 1, 0))
