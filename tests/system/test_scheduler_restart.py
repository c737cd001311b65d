"""The scheduler and the gateway are processes that may die: running streams do not notice the one, and the other's end frees everything."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.system.deployment import Deployment
from triptych.runtime.client import Client
from triptych.runtime.core.errors import TriptychError

STREAMS = 8
TOKENS = 700  # so that streams take seconds: longer than a scheduler needs to come back
LONG: dict[str, Any] = {"max_tokens": TOKENS, "ignore_eos": True, "timeout": 90}
SERVED_AGAIN = 5.0  # seconds after a death within which new requests must have begun to be served; on a machine that is not overloaded
TRIES = (
    5  # where all streams were over before the last one began, which a busy machine may bring about, they begin again
)
SLACK = 50.0  # because tests run on any machine, beside anything


@dataclass
class Seen:
    """What one stream has shown so far."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)


def stream(address: str, seed: int, seen: Seen) -> Seen:
    sampling = {"temperature": 0.0} if seed % 2 else {"temperature": 1.0, "seed": seed}
    with Client(address) as client, client.generate(token_ids=[1, 5, 7 + seed], **sampling, **LONG) as chunks:
        for chunk in chunks:
            seen.tokens += [token.id for token in chunk.tokens]
            seen.positions += [token.position for token in chunk.tokens]
    return seen


def start_streams(server: Deployment, threads: ThreadPoolExecutor) -> tuple[list[Seen], list[Future[Seen]]]:
    """STREAMS of them, all of which have shown something, and not all of which are done."""
    for _ in range(TRIES):
        seen = [Seen() for _ in range(STREAMS)]
        futures = [threads.submit(stream, server.address, seed, seen[seed]) for seed in range(STREAMS)]
        until = time.monotonic() + 60
        while not all(one.tokens for one in seen):
            assert time.monotonic() < until, "the streams did not begin"
            time.sleep(0.005)
        if not all(future.done() for future in futures):
            return seen, futures
    pytest.fail("too fast: the test would show nothing")


def wait_back(server: Deployment, old: int, seen: list[Seen]) -> None:
    """Until another scheduler has followed `old`. Streams outlive that: should they be faster, decode stands still at half of their tokens."""
    held: list[int] = []
    until = time.monotonic() + 120
    try:
        while server.processes["scheduler"] == old:
            assert time.monotonic() < until, "the scheduler was not started again"
            if not held and max(len(one.tokens) for one in seen) > TOKENS // 2:
                held = [server.processes[name] for name in ("decode-0", "decode-1")]
                for pid in held:
                    os.kill(pid, signal.SIGSTOP)
            time.sleep(0.005)
    finally:
        for pid in held:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.limit(300)
def test_streams_outlive_the_scheduler_and_new_requests_are_served_soon(server: Deployment):
    with ThreadPoolExecutor(STREAMS + 1) as threads, Client(server.address) as client:
        expected = list(threads.map(lambda seed: stream(server.address, seed, Seen()), range(STREAMS)))
        seen, futures = start_streams(server, threads)
        old = server.processes["scheduler"]
        server.kill("scheduler")
        killed = time.monotonic()
        new = threads.submit(client.complete, token_ids=[1, 2], max_tokens=3, timeout=60)
        wait_back(server, old, seen)
        assert new.result().usage is not None and time.monotonic() - killed < SERVED_AGAIN + SLACK
        for future, wanted in zip(futures, expected, strict=True):
            got = future.result()
            assert got.positions == list(range(3, 3 + TOKENS)), "a token was missing, or came twice"
            assert got.tokens == wanted.tokens
        assert server.wait_restarted("scheduler", old) != old
    server.wait_idle()
    cluster = server.cluster()
    assert cluster.active == 0 and cluster.queued == 0
    assert cluster.counters["adopted"] > 0, "the new scheduler took no running request over"


@pytest.mark.limit(300)
def test_a_gateway_that_is_stopped_for_a_while_loses_nothing(server: Deployment):
    with ThreadPoolExecutor(STREAMS) as threads:
        _, futures = start_streams(server, threads)
        os.kill(server.processes["gateway"], signal.SIGSTOP)
        try:
            time.sleep(3.0)
        finally:
            os.kill(server.processes["gateway"], signal.SIGCONT)
        for future in futures:
            assert future.result().positions == list(range(3, 3 + TOKENS))
    server.wait_idle()


@pytest.mark.limit(300)
def test_a_gateways_death_is_an_error_for_its_clients_and_frees_everything(server: Deployment):
    with ThreadPoolExecutor(STREAMS) as threads:
        _, futures = start_streams(server, threads)
        old = server.processes["gateway"]
        server.kill("gateway")
        killed = time.monotonic()
        ends = []
        for future in futures:
            try:
                assert future.result().positions == list(range(3, 3 + TOKENS)), "OK, but with less"
                ends.append("OK before that")
            except TriptychError as error:
                ends.append(error.status.name)
        assert "UNAVAILABLE" in ends and set(ends) <= {"UNAVAILABLE", "OK before that"}
        assert time.monotonic() - killed < SLACK
    server.wait_restarted("gateway", old)
    server.wait_idle()
    with Client(server.address) as client:
        client.wait_ready(60)
        assert client.complete(token_ids=[1, 2], max_tokens=3, timeout=60).usage is not None
    assert server.cluster().active == 0
