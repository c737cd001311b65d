"""A worker that nobody can stand in for dies mid-request, or stops answering: its clients get an error in time or, if it is back soon enough,
every token. Never a hang, never OK with less."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.system.deployment import HEARTBEAT_TIMEOUT, Deployment, deployed
from triptych.runtime.client import Client
from triptych.runtime.core.errors import InstanceLostError

pytestmark = pytest.mark.slow

CLIENTS = 12
TOKENS = 150
PATIENCE = 3.0
SLACK = 8.0  # a loaded machine


@pytest.fixture(scope="module")
def server() -> Iterator[Deployment]:
    with deployed("--topology=1P1D", "--max-num-seqs=4", f"--patience={PATIENCE:g}") as running:
        yield running


@pytest.mark.limit(300)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
@pytest.mark.parametrize("victim", ["decode-0", "prefill-0"])
def test_clients_of_a_lost_worker_get_an_error_in_time(server: Deployment, victim: str, how: signal.Signals) -> None:
    pid = server.processes[victim]
    try:
        with ThreadPoolExecutor(CLIENTS) as threads:
            futures = [threads.submit(_run, server.address, seed) for seed in range(CLIENTS)]
            time.sleep(0.3)
            os.kill(pid, how)
            lost_at = time.monotonic()
            outcomes = [future.result() for future in futures]
    finally:
        if how == signal.SIGSTOP:
            os.kill(pid, signal.SIGCONT)
    failed = [ended for ok, ended in outcomes if not ok]
    assert failed or how == signal.SIGKILL or victim == "prefill-0", "nobody was hurt: the test shows nothing"
    assert all(ended - lost_at < HEARTBEAT_TIMEOUT + PATIENCE + SLACK for ended in failed)
    if how == signal.SIGKILL:
        server.wait_restarted(victim, pid, limit=120)
    _wait_served(server)
    server.wait_idle()


def _run(address: str, seed: int) -> tuple[bool, float]:
    """(whether it finished with every token, when it ended); a failure must be UNAVAILABLE."""
    with Client(address) as client:
        try:
            result = client.complete(token_ids=[seed, 5, 7], max_tokens=TOKENS, ignore_eos=True, seed=seed, timeout=60)
        except InstanceLostError:
            return False, time.monotonic()
    assert len(result.samples[0].tokens) == TOKENS
    return True, time.monotonic()


def _wait_served(server: Deployment) -> None:
    """Until the server answers again."""
    until = time.monotonic() + 60
    with Client(server.address) as client:
        while True:
            try:
                assert client.complete(token_ids=[1, 2], max_tokens=3, timeout=60).usage is not None
                return
            except InstanceLostError:
                assert time.monotonic() < until
