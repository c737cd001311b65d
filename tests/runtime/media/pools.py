"""Pools for tests: one event loop, one pool, a body."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from triptych.runtime.media.pool import DecoderPool, PoolConfig
from triptych.runtime.media.process import Job

T = TypeVar("T")
OPERATIONS = "tests.runtime.media.rough:OPERATIONS"


def with_pool(body: Callable[[DecoderPool], Awaitable[T]], **config: Any) -> T:
    """What `body` returns, run with a pool that is ready; afterwards none of its processes is left."""

    async def scenario() -> T:
        async with DecoderPool(PoolConfig(**{"operations": OPERATIONS, "processes": 1, **config})) as pool:
            await ready(pool)
            result = await body(pool)
            pids = pool.pids
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()], "processes outlived their pool"
        return result

    return asyncio.run(scenario())


async def ready(pool: DecoderPool, count: int | None = None) -> None:
    """Until all processes are."""
    end = time.monotonic() + 100
    while len(pool.pids) < (pool.processes if count is None else count):
        assert time.monotonic() < end, "the pool does not become ready"
        await asyncio.sleep(0.01)


def job(operation: str, data: bytes = b"", seconds: float = 60.0, **options: Any) -> Job:
    return Job(operation, data, options, seconds)


def processor_seconds(pid: int) -> float:
    """Processor time that the process has had, of its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def peak_bytes(pid: int) -> int:
    """The most memory that the process ever had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
