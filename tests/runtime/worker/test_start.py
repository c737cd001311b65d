"""A worker that the scheduler refuses for good says so and ends; it does not wait for a change of mind."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from tests.system.toy import ToySetup
from triptych.runtime.core.errors import IncompatibleError, Status, TriptychError
from triptych.runtime.worker.process import WorkerProcess


@pytest.mark.limit(300)
def test_a_worker_of_another_page_size_is_refused_with_a_readable_difference() -> None:
    setup = ToySetup("1P1D", processes="two", transport="grpc", max_num_seqs=2, max_model_len=64, num_pages=17)
    _, second = setup.workers()
    with ToySetup("PD", max_num_seqs=2, max_model_len=64, num_pages=17).cluster() as cluster:
        other = dataclasses.replace(second, name="other", scheduler=cluster.address, page_size=8)
        with pytest.raises(IncompatibleError, match="page_size"):
            cluster.run(_start(other))


@pytest.mark.limit(300)
def test_a_worker_with_a_wrong_token_is_refused() -> None:
    setup = ToySetup("PD", max_num_seqs=2, max_model_len=64, num_pages=17)
    with setup.cluster(token="right") as cluster:
        (worker,) = setup.workers()
        wrong = dataclasses.replace(worker, name="other", scheduler=cluster.address, token="wrong")
        with pytest.raises(TriptychError) as caught:
            cluster.run(_start(wrong))
        assert caught.value.status is Status.UNAUTHENTICATED


async def _start(config) -> None:  # type: ignore[no-untyped-def]
    process = WorkerProcess(config)
    try:
        async with asyncio.timeout(200):
            await process.start()
    finally:
        await process.stop(grace=0)
