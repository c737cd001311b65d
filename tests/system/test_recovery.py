"""Workers die, freeze and come back: clients see the very text that they would have seen, no token missing and none twice, and nothing leaks."""

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

STREAMS = 8
TOKENS = 500  # so that streams last seconds: long enough to be hit in the middle
PAUSE = 0.5  # seconds: much less than --heartbeat-timeout of these deployments
TRIES = 5  # where the streams were over before they were hit, which a busy machine may bring about, they are hit again


@dataclass
class Seen:
    """What one request has shown so far, by sample."""

    text: dict[int, str] = field(default_factory=dict)
    tokens: dict[int, list[int]] = field(default_factory=dict)
    positions: dict[int, list[int]] = field(default_factory=dict)
    finish: dict[int, str | None] = field(default_factory=dict)
    usage: tuple[int, int] = (0, 0)


def _ask(kind: int) -> dict[str, Any]:
    """Requests of all kinds: greedy and seeded, one sample and several of different lengths, short and long prompts."""
    prompt = [1 + (7 * kind + i) % 250 for i in range(4 if kind % 2 else 90)]
    sampling: dict[str, Any] = {"temperature": 0.0} if kind % 3 == 0 else {"temperature": 1.0, "seed": kind}
    if kind % 4 == 1:
        sampling |= {"presence_penalty": 0.8, "frequency_penalty": 0.2, "top_p": 0.95}
    if kind % 4 == 3:
        sampling |= {"n": 2, "temperature": 1.0, "seed": kind, "stop_token_ids": [65]}
    return {"token_ids": prompt, "max_tokens": TOKENS, "ignore_eos": True, "timeout": 120} | sampling


def _stream(address: str, kind: int, seen: Seen) -> Seen:
    with Client(address) as client, client.generate(**_ask(kind)) as chunks:
        for chunk in chunks:
            at = chunk.sample
            seen.text[at] = seen.text.get(at, "") + chunk.text
            seen.tokens.setdefault(at, []).extend(token.id for token in chunk.tokens)
            seen.positions.setdefault(at, []).extend(token.position for token in chunk.tokens)
            seen.finish[at] = chunk.finish_reason
        usage = chunks.result.usage
    assert usage is not None
    seen.usage = (usage.prompt_tokens, usage.completion_tokens)
    return seen


@pytest.fixture(scope="module")
def expected(server: Deployment) -> list[Seen]:
    """Every request without a fault."""
    with ThreadPoolExecutor(STREAMS) as threads:
        return list(threads.map(lambda kind: _stream(server.address, kind, Seen()), range(STREAMS)))


def _start(server: Deployment, threads: ThreadPoolExecutor) -> tuple[list[Seen], list[Future[Seen]]]:
    seen = [Seen() for _ in range(STREAMS)]
    return seen, [threads.submit(_stream, server.address, kind, seen[kind]) for kind in range(STREAMS)]


def _wait_tokens(seen: list[Seen], futures: list[Future[Seen]], count: int) -> bool:
    """Until every request has shown so many tokens; then, whether any still runs."""
    until = time.monotonic() + 120
    while any(sum(map(len, one.tokens.values())) < count for one in seen):
        assert time.monotonic() < until, "the streams did not begin"
        time.sleep(0.005)
    return not all(future.done() for future in futures)


def _check(futures: list[Future[Seen]], expected: list[Seen]) -> None:
    for kind, (future, wanted) in enumerate(zip(futures, expected, strict=True)):
        got = future.result()
        first = len(_ask(kind)["token_ids"])
        for sample, positions in got.positions.items():
            assert positions == list(range(first, first + len(positions))), "a token was missing, or came twice"
            assert got.tokens[sample] == wanted.tokens[sample]
        assert got == wanted


def _count(server: Deployment, name: str) -> int:
    return server.cluster().counters[name]


@pytest.mark.limit(400)
@pytest.mark.parametrize("victim", ["decode-0", "prefill-1"])
def test_a_killed_worker_costs_no_token(server: Deployment, expected: list[Seen], victim: str) -> None:
    for _ in range(TRIES):
        old, resumed = server.processes[victim], _count(server, "resumed")
        with ThreadPoolExecutor(STREAMS) as threads:
            seen, futures = _start(server, threads)
            if victim == "decode-0":
                _wait_tokens(seen, futures, 20)
            else:  # in the middle of prompts and their transfers
                time.sleep(0.1)
            server.kill(victim)
            _check(futures, expected)
        server.wait_restarted(victim, old)
        server.wait_idle()
        if victim == "prefill-1" or _count(server, "resumed") > resumed:
            return
    pytest.fail("nobody was hurt: the test shows nothing")


@pytest.mark.limit(400)
def test_a_frozen_decode_worker_costs_no_token_and_may_come_back(server: Deployment, expected: list[Seen]) -> None:
    pid = server.processes["decode-1"]
    for _ in range(TRIES):
        resumed = _count(server, "resumed")
        with ThreadPoolExecutor(STREAMS) as threads:
            seen, futures = _start(server, threads)
            _wait_tokens(seen, futures, 20)
            os.kill(pid, signal.SIGSTOP)
            try:
                _check(futures, expected)
            finally:
                os.kill(pid, signal.SIGCONT)
        assert server.processes["decode-1"] == pid
        until = time.monotonic() + 60
        while "decode-1" not in server.states():
            assert time.monotonic() < until, "it did not register again"
            time.sleep(0.1)
        server.wait_idle()
        if _count(server, "resumed") > resumed:
            return
    pytest.fail("nobody was hurt: the test shows nothing")


@pytest.mark.limit(400)
def test_a_short_pause_is_no_death(server: Deployment, expected: list[Seen]) -> None:
    resumed = _count(server, "resumed")
    for _ in range(TRIES):
        with ThreadPoolExecutor(STREAMS) as threads:
            seen, futures = _start(server, threads)
            running = _wait_tokens(seen, futures, 20)
            for victim in ("decode-0", "prefill-0"):
                os.kill(server.processes[victim], signal.SIGSTOP)
                time.sleep(PAUSE)
                os.kill(server.processes[victim], signal.SIGCONT)
            _check(futures, expected)
        assert _count(server, "resumed") == resumed
        server.wait_idle()
        if running:
            return
    pytest.fail("too fast: the test shows nothing")
