"""Transfers between two real processes: the same bytes, and a peer that dies is an error in time, never a hang."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.transfer.harness import (
    FINAL,
    PAGE_SIZE,
    PATIENCE,
    PROMPT_PAGES,
    SOURCE,
    TARGET,
    Host,
    LocalHub,
    Node,
    logical_content,
)
from triptych.runtime.core.clock import MonotonicClock
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import TransportKind
from triptych.runtime.instance.messages import StartPull
from triptych.runtime.transfer.pull import PullLimits

SLACK = 15.0  # because tests run on any machine, beside anything
CROSSING = [TransportKind.DEVICE, TransportKind.GRPC]
# For a peer that is silent: three seconds are more than one that lives is silent for.
QUICK = PullLimits(fetch_seconds=30.0, idle_seconds=3.0, release_seconds=1.0)
# For the others, and for what must be noticed in another way than by silence.
PATIENT = PullLimits(fetch_seconds=30.0, idle_seconds=30.0, release_seconds=5.0)


@dataclass
class Child:
    """The producer process."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]

    def stage(self, key: int, what: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{key} {what}\n")
        self.process.stdin.flush()
        assert self.read() == {"staged": key}

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


@pytest.fixture
def child() -> Iterator[Child]:
    root = Path(__file__).parents[3]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.runtime.transfer.producer_process", "4"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    child = Child(process, {})
    try:
        child.ready = child.read()
        yield child
    finally:
        process.kill()
        process.communicate()


async def make_consumer(limits: PullLimits = PATIENT) -> tuple[Host, Node]:
    host = Host(LocalHub(), (TransportKind.DEVICE, TransportKind.GRPC))
    node = Node("D", 2, tp=2, first_device=4, limits=limits)
    await host.start(node)
    return host, node


def pull(node: Node, child: Child, kind: TransportKind, key: int, deadline: float | None = None) -> None:
    seconds = None if deadline is None else MonotonicClock().now() + deadline
    ready = child.ready
    tokens = PROMPT_PAGES * PAGE_SIZE - 1
    node.reported.clear()
    node.consumer.start(
        StartPull(
            f"r{key}", 1, key, ready["address"], "P", ready["epoch"], ready["digest"], tokens, 0, TARGET, seconds
        ),
        kind,
    )


async def ended(node: Node, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        await node.reported.wait()


@pytest.mark.parametrize("kind", CROSSING)
def test_pull_from_another_process_is_byte_equal(child, kind):
    async def scenario() -> None:
        host, node = await make_consumer()
        child.stage(7, "full")
        pull(node, child, kind, 7)
        await ended(node, PATIENCE)
        assert node.outcome.failed == []
        assert node.outcome.done[0][1] == FINAL
        expected = node.logical.copy()
        expected[:, :, list(TARGET)] = logical_content(4, "float32", 1)[:, :, list(SOURCE)]
        assert node.page_bytes().tobytes() == expected.tobytes()
        await host.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", CROSSING)
def test_peer_killed_in_the_middle_of_a_pull_is_an_error_and_the_next_pull_is_refused(child, kind):
    async def scenario() -> None:
        host, node = await make_consumer()
        child.stage(7, "part")
        pull(node, child, kind, 7)
        while not node.consumer.bytes_received:
            await asyncio.sleep(0.01)
        child.process.kill()
        killed = time.monotonic()
        await ended(node, PATIENCE)
        assert node.outcome.failed[0][1] is Status.UNAVAILABLE
        assert time.monotonic() - killed < PATIENT.idle_seconds / 2
        pull(node, child, kind, 8)
        await ended(node, PATIENT.idle_seconds / 2)
        assert node.outcome.failed[1][1] is Status.UNAVAILABLE
        assert node.consumer.pulls == 0
        await host.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", CROSSING)
@pytest.mark.parametrize("what", ["part", "none"], ids=["between offers", "before the first offer"])
def test_a_frozen_peer_ends_the_pull_within_its_bounds(child, kind, what):
    async def scenario() -> None:
        host, node = await make_consumer(QUICK)
        child.stage(7, what)
        pull(node, child, kind, 7)
        while what == "part" and not node.consumer.bytes_received:
            await asyncio.sleep(0.01)
        child.process.send_signal(signal.SIGSTOP)
        frozen = time.monotonic()
        try:
            await ended(node, PATIENCE)
            assert time.monotonic() - frozen < QUICK.idle_seconds + SLACK
            ((_, status, reason),) = node.outcome.failed
            assert status is Status.UNAVAILABLE and "silent" in reason
            async with asyncio.timeout(
                QUICK.release_seconds + SLACK
            ):  # the owner cannot be told, and that is waited for no longer
                while node.consumer._tasks:
                    await asyncio.sleep(0.01)
        finally:
            child.process.send_signal(signal.SIGCONT)
        await host.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", CROSSING)
def test_a_peer_that_froze_before_it_was_asked_is_an_error_in_time(child, kind):
    async def scenario() -> None:
        host, node = await make_consumer(QUICK)
        child.stage(7, "full")
        child.process.send_signal(signal.SIGSTOP)
        try:
            pull(node, child, kind, 7)
            await ended(node, QUICK.idle_seconds + SLACK)
            assert node.outcome.failed[0][1] is Status.UNAVAILABLE
        finally:
            child.process.send_signal(signal.SIGCONT)
        await host.stop()

    asyncio.run(scenario())


def test_peer_killed_while_chunks_are_on_their_way_is_an_error(child):
    async def scenario() -> None:
        host, node = await make_consumer()
        device = host.transports[TransportKind.DEVICE]
        fetch, fetching = device.fetch, asyncio.Event()

        async def fetch_after_death(peer, spec, devices, timeout):
            fetching.set()
            child.process.kill()
            child.process.wait()
            return await fetch(peer, spec, devices, timeout)

        device.fetch = fetch_after_death  # type: ignore[method-assign]
        child.stage(7, "full")
        pull(node, child, TransportKind.DEVICE, 7)
        await ended(node, PATIENCE)
        assert fetching.is_set()
        assert node.outcome.failed[0][1] is Status.UNAVAILABLE
        await host.stop()

    asyncio.run(scenario())


def test_deadline_of_one_pull_leaves_the_others_alone(child):
    async def scenario() -> None:
        host, node = await make_consumer()
        child.stage(7, "none")
        child.stage(8, "full")
        pull(node, child, TransportKind.DEVICE, 7, deadline=0.5)
        await asyncio.sleep(0.3)
        pull(node, child, TransportKind.DEVICE, 8)
        async with asyncio.timeout(PATIENCE):
            while node.outcome.count < 2:
                await asyncio.sleep(0.01)
        assert [request for request, *_ in node.outcome.done] == ["r8"]
        assert [(request, status) for request, status, _ in node.outcome.failed] == [("r7", Status.DEADLINE_EXCEEDED)]
        await host.stop()

    asyncio.run(scenario())
