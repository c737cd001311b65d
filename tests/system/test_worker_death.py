"""A worker process that dies mid-request, or stops answering, gives its clients an error within the heartbeat bound: never a hang, never OK."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.system.deployment import deployed
from triptych.runtime.client import Client
from triptych.runtime.core.errors import InstanceLostError

HEARTBEAT_BOUND = 2.0  # --heartbeat-timeout of these deployments
SLACK = 8.0  # a loaded machine


@pytest.mark.limit(300)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
@pytest.mark.parametrize("victim", ["decode-0", "prefill-0"])
def test_clients_of_a_lost_worker_get_an_error_in_time(victim: str, how: signal.Signals) -> None:
    with deployed("--topology=1P2D" if victim == "decode-0" else "--topology=2P1D", "--max-num-seqs=4") as server:
        pid = server.processes[victim]
        try:
            with ThreadPoolExecutor(12) as threads:
                futures = [threads.submit(_run, server.address, seed) for seed in range(12)]
                time.sleep(0.3)
                os.kill(pid, how)
                lost_at = time.monotonic()
                outcomes = [future.result() for future in futures]
        finally:
            if how == signal.SIGSTOP:
                os.kill(pid, signal.SIGCONT)
        failed = [ended for ok, ended in outcomes if not ok]
        assert failed or victim == "prefill-0", "the worker was lost too late to hurt anybody: the test shows nothing"
        assert all(ended - lost_at < HEARTBEAT_BOUND + SLACK for ended in failed)
        with Client(server.address) as client:  # what is left goes on serving
            assert client.complete(token_ids=[1, 2], max_tokens=3, timeout=60).usage is not None


def _run(address: str, seed: int) -> tuple[bool, float]:
    """(whether it finished with every token, when it ended); a failure must be UNAVAILABLE."""
    with Client(address) as client:
        try:
            result = client.complete(token_ids=[seed, 5, 7], max_tokens=150, ignore_eos=True, seed=seed, timeout=60)
        except InstanceLostError:
            return False, time.monotonic()
    assert len(result.samples[0].tokens) == 150
    return True, time.monotonic()
