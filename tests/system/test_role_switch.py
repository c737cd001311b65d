"""Instances change roles and leave under traffic: no stream notices, nothing compiles, and the scheduler says how long it took."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.system.deployment import Deployment, deployed
from triptych.runtime.client import Client
from triptych.runtime.core.errors import TriptychError
from triptych.runtime.core.instance import Role
from triptych.tools.control import ControlConnection, drain, switch_role

pytestmark = pytest.mark.slow

STREAMS = 6
LONG: dict[str, Any] = {"max_tokens": 300, "ignore_eos": True, "timeout": 120}
P, D = frozenset({Role.PREFILL}), frozenset({Role.DECODE})


@pytest.fixture(scope="module")
def server() -> Iterator[Deployment]:
    with deployed("--topology=1P2D", "--switchable", "--max-model-len=480", "--num-pages=257") as running:
        yield running


def _complete(server: Deployment, seed: int) -> list[int]:
    with Client(server.address) as client:
        result = client.complete(token_ids=[3, 1 + seed, 4], seed=seed, **LONG)
    assert result.usage is not None and result.usage.completion_tokens == LONG["max_tokens"]
    return result.samples[0].token_ids


def _roles(server: Deployment) -> dict[str, list[str]]:
    return {instance.info.ref.id: sorted(instance.info.roles) for instance in server.cluster().instances}


@pytest.mark.limit(400)
def test_a_decode_instance_becomes_a_prefill_instance_and_back_while_streams_run(server: Deployment) -> None:
    at = ControlConnection(scheduler=server.scheduler)
    with ThreadPoolExecutor(STREAMS) as threads:
        expected = list(threads.map(lambda seed: _complete(server, seed), range(STREAMS)))
        for roles in (P, D):
            futures = [threads.submit(_complete, server, seed) for seed in range(STREAMS)]
            seconds = switch_role(at, "decode-1", roles, force=False)
            assert 0 < seconds < 60
            assert _roles(server)["decode-1"] == [role.value for role in roles]
            assert [future.result() for future in futures] == expected
            assert [_complete(server, seed) for seed in range(2)] == expected[:2]
    states = server.wait_idle()
    assert states["decode-1"].counters["role_switches"] == 2
    assert not any(state.counters["compiled_after_ready"] for state in states.values())


@pytest.mark.limit(400)
def test_an_instance_that_dies_comes_back_with_the_roles_that_it_had(server: Deployment) -> None:
    at = ControlConnection(scheduler=server.scheduler)
    switch_role(at, "decode-1", P, force=False)
    old = server.processes["decode-1"]
    server.kill("decode-1")
    server.wait_restarted("decode-1", old)
    assert _roles(server)["decode-1"] == ["prefill"]
    assert _complete(server, 1) == _complete(server, 1)
    switch_role(at, "decode-1", D, force=False)
    assert _roles(server)["decode-1"] == ["decode"]


@pytest.mark.limit(400)
def test_a_switch_that_cannot_be_is_refused_and_changes_nothing(server: Deployment) -> None:
    at = ControlConnection(scheduler=server.scheduler)
    before = _roles(server)
    for instance, roles, word in [("decode-9", P, "decode-9"), ("prefill-0", D, "prefill")]:
        with pytest.raises(TriptychError, match=word):
            switch_role(at, instance, roles, force=False)
    assert _roles(server) == before


@pytest.mark.limit(400)
def test_a_drained_instance_leaves_and_its_streams_go_on_elsewhere(server: Deployment) -> None:
    with ThreadPoolExecutor(STREAMS) as threads:
        expected = list(threads.map(lambda seed: _complete(server, seed), range(STREAMS)))
        futures = [threads.submit(_complete, server, seed) for seed in range(STREAMS)]
        drain(ControlConnection(scheduler=server.scheduler), "decode-1", force=False)
        assert "decode-1" not in _roles(server)
        assert [future.result() for future in futures] == expected
    server.wait_idle()
