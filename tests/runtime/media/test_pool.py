"""What one item does to its decoder process, others do not feel: it fails alone, with a typed error, and the process is replaced."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.media.pools import job, ready, with_pool
from triptych.runtime.core.errors import ConfigError, Status, TriptychError
from triptych.runtime.media.errors import (
    CorruptMediaError,
    DecoderCrashedError,
    DecoderLostError,
    DecoderMemoryError,
    DecodeTimeoutError,
    MediaPoolFullError,
)
from triptych.runtime.media.pool import DecoderPool, PoolConfig
from triptych.runtime.media.process import Job


def gone(pid: int) -> bool:
    """Whether it has ended, waited for or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def error_of(pool: DecoderPool, asked: Job) -> TriptychError:
    try:
        await pool.run(asked)
    except TriptychError as error:
        return error
    raise AssertionError("no error")


def test_data_go_there_and_come_back():
    async def body(pool: DecoderPool) -> None:
        data = os.urandom(3_000_001)
        reply = await pool.run(job("echo", data))
        assert reply.array.tobytes() == data and not reply.array.flags.writeable
        assert reply.facts == {"pid": pool.pids[0]}
        assert (await pool.run(job("echo"))).array.shape == (0,)

    with_pool(body)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def test_jobs_run_side_by_side():
    async def body(pool: DecoderPool) -> None:
        replies = await asyncio.gather(*(pool.run(job("echo", bytes([n]), sleep=0.2)) for n in range(4)))
        assert [int(reply.array[0]) for reply in replies] == [0, 1, 2, 3]
        assert len({reply.facts["pid"] for reply in replies}) == 2

    with_pool(body, processes=2)


def test_jobs_run_in_order_of_arrival(tmp_path: Path):
    gate = tmp_path / "gate"

    async def body(pool: DecoderPool) -> None:
        done: list[int] = []

        async def one(n: int, follows: bool) -> None:
            (ticket,) = pool.submit([job("echo")], follows=follows)
            await pool.result(ticket)
            done.append(n)

        busy = asyncio.create_task(pool.run(job("echo", gate=str(gate))))
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(one(n, follows)) for n, follows in enumerate((False, False, False, True))]
        await until(lambda: pool.waiting == 4)
        gate.touch()
        await asyncio.gather(busy, *waiting)
        assert done == [3, 0, 1, 2]  # what follows an admitted item goes first

    with_pool(body)


@pytest.mark.parametrize(
    ("asked", "error", "status"),
    [
        (job("fault"), DecoderCrashedError, Status.INVALID_ARGUMENT),
        (job("end", signal=int(signal.SIGABRT)), DecoderCrashedError, Status.INVALID_ARGUMENT),
        (
            job("end", signal=int(signal.SIGKILL)),
            DecoderLostError,
            Status.UNAVAILABLE,
        ),  # what the kernel does for want of memory
        (job("leave"), DecoderLostError, Status.UNAVAILABLE),
        (job("hang", seconds=0.3), DecodeTimeoutError, Status.DEADLINE_EXCEEDED),
        (job("odd"), DecoderLostError, Status.UNAVAILABLE),
    ],
    ids=["segfault", "abort", "killed", "exit", "hang", "odd reply"],
)
def test_a_process_that_dies_or_hangs_fails_its_item_and_is_replaced(asked: Job, error: type, status: Status):
    async def body(pool: DecoderPool) -> None:
        before = pool.pids[0]
        waiting = asyncio.create_task(pool.run(job("echo", b"next", sleep=0.1)))
        first, second = await asyncio.gather(error_of(pool, asked), error_of(pool, asked))
        assert type(first) is type(second) is error and first.status is status
        assert (await waiting).array.tobytes() == b"next"
        assert (await pool.run(job("echo", b"after"))).array.tobytes() == b"after"
        assert pool.pids[0] != before and not Path(f"/proc/{before}").exists()
        assert pool.replaced == 2

    with_pool(body)


def test_what_a_process_can_report_does_not_cost_it_its_life():
    async def body(pool: DecoderPool) -> None:
        before = pool.pids
        assert isinstance(await error_of(pool, job("fail", typed=True)), CorruptMediaError)
        untyped = await error_of(pool, job("fail", typed=False))
        assert isinstance(untyped, CorruptMediaError) and "LookupError" in untyped.message
        for _ in range(3):
            memory = await error_of(pool, job("grow", bytes=4 * 2**30))
            assert isinstance(memory, DecoderMemoryError) and memory.status is Status.INVALID_ARGUMENT
        assert len((await pool.run(job("grow", bytes=100))).array) == 100
        assert pool.pids == before and pool.replaced == 0

    with_pool(body, memory_bytes=2**29)


def test_a_reply_beyond_the_bound_is_not_read():
    async def body(pool: DecoderPool) -> None:
        error = await error_of(pool, job("grow", bytes=2**21))
        assert isinstance(error, DecoderLostError)
        assert (await pool.run(job("echo", b"x"))).array.tobytes() == b"x"

    with_pool(body, reply_bytes=2**20)


def test_a_full_queue_refuses_at_once_with_a_hint(tmp_path: Path):
    gate = tmp_path / "gate"

    async def body(pool: DecoderPool) -> None:
        await pool.run(job("echo", sleep=0.2))  # so that it knows how long a job takes
        running = asyncio.create_task(pool.run(job("echo", gate=str(gate))))
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(pool.run(job("echo", b"12345"))) for _ in range(3)]
        await until(lambda: pool.waiting == 3)
        error = await error_of(pool, job("echo"))  # while nothing can end
        assert isinstance(error, MediaPoolFullError) and error.status is Status.RESOURCE_EXHAUSTED
        assert error.retry_after is not None and 0.01 <= error.retry_after < 5
        assert pool.waiting == 3
        gate.touch()
        await asyncio.gather(running, *waiting)
        assert (await pool.run(job("echo", b"again"))).array.tobytes() == b"again"

    with_pool(body, waiting_items=3, retry_after=0.01)


def test_the_bytes_that_wait_are_bounded_but_one_item_always_fits(tmp_path: Path):
    gate = tmp_path / "gate"

    async def body(pool: DecoderPool) -> None:
        running = asyncio.create_task(pool.run(job("echo", bytes(5000), gate=str(gate))))
        await asyncio.sleep(0.05)
        waiting = asyncio.create_task(pool.run(job("echo", bytes(5000))))
        await until(lambda: pool.waiting == 1)
        assert isinstance(await error_of(pool, job("echo", b"x")), MediaPoolFullError)
        gate.touch()
        await asyncio.gather(running, waiting)

    with_pool(body, waiting_bytes=1000)


def test_jobs_that_belong_together_are_taken_in_together_or_not_at_all(tmp_path: Path):
    gate = tmp_path / "gate"

    async def body(pool: DecoderPool) -> None:
        running = asyncio.create_task(pool.run(job("echo", gate=str(gate))))
        await asyncio.sleep(0.05)
        (one,) = pool.submit([job("echo", b"0")])
        with pytest.raises(MediaPoolFullError):
            pool.submit([job("echo")] * 4)
        assert pool.waiting == 1
        three = pool.submit([job("echo", bytes([n])) for n in (1, 2, 3)])
        first = pool.submit([job("echo", bytes([n])) for n in (8, 9)], follows=True)
        assert [ticket.job.data[0] for ticket in pool._queue] == [8, 9, ord("0"), 1, 2, 3]
        pool.drop(three[1])
        assert pool.waiting == 5
        gate.touch()
        replies = await asyncio.gather(*(pool.result(ticket) for ticket in (*first, one, three[0], three[2])))
        assert [int(reply.array[0]) for reply in replies] == [8, 9, ord("0"), 1, 3]
        await running
        many = pool.submit([job("echo", b"x")] * 9)  # more than may wait: an empty queue takes any one request
        assert len(await asyncio.gather(*(pool.result(ticket) for ticket in many))) == 9
        assert pool.replaced == 0

    with_pool(body, waiting_items=4)


def test_a_cancelled_caller_takes_its_job_along():
    async def body(pool: DecoderPool) -> None:
        before = pool.pids[0]
        running = asyncio.create_task(pool.run(job("hang")))
        queued = asyncio.create_task(pool.run(job("echo", b"never")))
        later = asyncio.create_task(pool.run(job("echo", b"later")))
        await asyncio.sleep(0.1)
        queued.cancel()
        await asyncio.sleep(0)
        assert pool.waiting == 1 and pool.replaced == 0
        running.cancel()
        assert (await later).array.tobytes() == b"later"
        assert pool.pids[0] != before and not Path(f"/proc/{before}").exists()
        for task in (running, queued):
            with pytest.raises(asyncio.CancelledError):
                await task

    with_pool(body)


def test_a_process_that_dies_idle_costs_no_item():
    async def body(pool: DecoderPool) -> None:
        (pid,) = pool.pids
        os.kill(pid, signal.SIGKILL)
        await until(lambda: gone(pid))
        assert (await pool.run(job("echo", b"x"))).array.tobytes() == b"x"

    with_pool(body)


def test_a_process_is_renewed_after_so_many_jobs():
    async def body(pool: DecoderPool) -> None:
        pids = [(await pool.run(job("echo"))).facts["pid"] for _ in range(5)]
        assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]
        assert pool.replaced == 0

    with_pool(body, jobs_per_process=2)


def test_closing_fails_what_waits_and_runs():
    async def body(pool: DecoderPool) -> None:
        tasks = [asyncio.create_task(error_of(pool, job("hang"))) for _ in range(3)]
        await asyncio.sleep(0.1)
        await pool.close()
        for error in await asyncio.gather(*tasks):
            assert isinstance(error, DecoderLostError) and error.status is Status.UNAVAILABLE
        assert isinstance(await error_of(pool, job("echo")), DecoderLostError)

    with_pool(body)


def test_processes_that_cannot_start_fail_jobs_instead_of_keeping_them():
    async def scenario() -> None:
        async with DecoderPool(PoolConfig(processes=1, operations="no.such.module:TABLE")) as pool:
            error = await asyncio.wait_for(error_of(pool, job("echo")), 100)
            assert isinstance(error, DecoderLostError) and "started" in error.message

    asyncio.run(scenario())


def test_a_process_sees_no_secret_and_writes_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("SECRET_TOKEN", "x")

    async def body(pool: DecoderPool) -> dict[str, Any]:
        target = tmp_path / "written"
        error = await error_of(pool, job("write_a_file", path=str(target)))
        assert isinstance(error, CorruptMediaError) and "File too large" in error.message
        assert not target.exists() or target.stat().st_size == 0
        return dict((await pool.run(job("surroundings"))).facts)

    facts = with_pool(body, operations="tests.runtime.media.rough_and_real:OPERATIONS")
    assert "SECRET_TOKEN" not in facts["environment"]
    assert {"PIL", "av", "soundfile"} <= set(facts["modules"])
    assert not {"jax", "grpc"} & set(facts["modules"])


def test_a_process_whose_gateway_is_gone_ends_itself():
    """Nobody kills it: an alarm does, in the middle of what hangs."""

    async def body(pool: DecoderPool) -> None:
        (process,) = pool._ready
        asking = asyncio.create_task(process.ask(job("hang", seconds=1.0)))
        await asyncio.sleep(0.1)
        asking.cancel()
        end = time.monotonic() + 60
        while process.alive():
            assert time.monotonic() < end
            await asyncio.sleep(0.05)
        assert process._process.returncode == -signal.SIGALRM

    with_pool(body)


def test_a_pool_whose_numbers_make_no_sense_is_refused():
    contradictions: tuple[dict[str, Any], ...] = ({"processes": 0}, {"waiting_items": 0}, {"memory_bytes": -1})
    for bad in contradictions:
        with pytest.raises(ConfigError):
            PoolConfig(**bad)


def test_results_are_arrays_of_the_declared_form():
    async def body(pool: DecoderPool) -> None:
        await ready(pool)
        reply = await pool.run(job("grow", bytes=12))
        np.testing.assert_array_equal(reply.array, np.ones(12, np.uint8))

    with_pool(body)
