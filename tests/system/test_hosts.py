"""An instance over several hosts gives the tokens of one on one host, and lives and dies as one."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.system.deployment import SMALL
from tests.system.hosted import Hosted, Shared, hosted
from tests.system.test_matrix import REQUESTS, assert_same, run_one
from tests.system.toy import ToySetup
from triptych.runtime.client import Client, Result
from triptych.tools.ports import ReservedPort

pytestmark = [pytest.mark.slow, pytest.mark.limit(600)]

LONG = {"token_ids": [3, 1, 4, 1, 5], "max_tokens": 150, "temperature": 1.0, "seed": 5, "ignore_eos": True}


@pytest.fixture(scope="module")
def expected() -> dict[str, Result]:
    """One monolithic instance, no prefix cache, one request at a time."""
    with ToySetup("PD", prefix_cache=False, chunk_tokens=64).cluster() as cluster, Client(cluster.address) as client:
        return {name: run_one(client, name) for name in REQUESTS} | {"LONG": client.complete(**LONG, timeout=120)}


def serves(server: Hosted, expected: dict[str, Result]) -> None:
    """Every request by itself, again with what is cached, and all at once."""
    with Client(server.address) as client:
        for turn in ("cold", "warm"):
            for name in REQUESTS:
                assert_same(run_one(client, name), expected[name], f"{turn}: {name}")
        with ThreadPoolExecutor(len(REQUESTS)) as threads:
            crowd = [(name, threads.submit(run_one, client, name, "salt")) for name in REQUESTS]
            for name, future in crowd:
                assert_same(future.result(), expected[name], f"crowd: {name}")


@pytest.mark.parametrize(("tp", "flags"), [(2, ()), (4, ("--speculative=ngram",))], ids=["tp 2", "tp 4, guessing"])
def test_two_hosts_give_the_tokens_of_one(tp: int, flags: tuple[str, ...], expected: dict[str, Result]) -> None:
    with hosted(Shared("null", tp, hosts=2), flags=flags) as server:
        serves(server, expected)
        states = server.wait_idle()
    assert states["null"].info.tp == tp
    assert states["null"].counters["compiled_after_ready"] == 0


def test_quantised_weights_and_kv_are_those_of_one_host() -> None:
    """Against one host of as many devices: which numbers share a scale does not depend on the hosts."""
    flags = ("--weights=int8", "--kv-cache-dtype=int8")
    results: list[list[Result]] = []
    for hosts in (1, 2):
        with hosted(Shared("null", 2, hosts), flags=flags) as server, Client(server.address) as client:
            results.append([run_one(client, name) for name in REQUESTS])
    for name, alone, shared in zip(REQUESTS, *results, strict=True):
        assert_same(shared, alone, name)


@pytest.mark.parametrize(
    "instances",
    [
        (Shared("prefill", 4, hosts=2), Shared("decode", 1)),
        (Shared("prefill", 2), Shared("decode", 4, hosts=2)),
        (Shared("prefill", 2, hosts=2), Shared("decode", 3, hosts=3)),
    ],
    ids=["from two hosts", "to two hosts", "from two hosts to three"],
)
def test_kv_moves_by_way_of_the_leader(instances: tuple[Shared, ...], expected: dict[str, Result]) -> None:
    with hosted(*instances) as server:
        serves(server, expected)
        states = server.wait_idle()
    assert states["decode"].counters["kv_bytes_received"] > 0
    assert all(state.counters["compiled_after_ready"] == 0 for state in states.values())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_lost_host_takes_the_instance_with_it_and_requests_go_on_when_it_is_back(
    how: signal.Signals, expected: dict[str, Result]
) -> None:
    with hosted(Shared("null", 2, hosts=2), flags=("--patience=120",)) as server:
        for victim, other in (("null/1", "null/0"), ("null/0", "null/1")):
            with Client(server.address) as client, client.generate(**LONG, timeout=300) as stream:
                next(stream)
                os.kill(server.processes[victim], how)
                status = server.exit_code(other, 60)
                if not (status == -signal.SIGABRT and (victim, how) == ("null/0", signal.SIGKILL)):
                    assert status == 1 and server.said(other, "is lost"), "why it ended"
                # else jax, whose coordination service died with the leader, was quicker: it aborts the process
                if how == signal.SIGSTOP:
                    os.kill(server.processes[victim], signal.SIGCONT)
                assert server.exit_code(victim) == (1 if how == signal.SIGSTOP else -how)
                for name in (victim, other):
                    server.again(name)
                for _ in stream:
                    pass
                assert_same(stream.result, expected["LONG"], f"{victim} was lost")
        server.wait_idle()


def test_a_leader_that_is_told_to_end_ends_its_followers_in_good_order() -> None:
    with hosted(Shared("null", 2, hosts=2)) as server:
        with Client(server.address) as client:
            run_one(client, "penalised and seeded")
        os.kill(server.processes["null/0"], signal.SIGTERM)
        assert [server.exit_code(name) for name in ("null/0", "null/1")] == [0, 0]
        assert server.said("null/1", "the leader ends: told to end; 0 programs were compiled after ready")


def test_hosts_that_do_not_come_or_do_not_fit_are_named_by_processes_that_end() -> None:
    with hosted() as server:
        flags = (
            "worker",
            "--scheduler",
            server.scheduler,
            "--roles=null",
            "--tp=2",
            "--hosts=2",
            *SMALL[:2],
            *SMALL[3:],
        )
        with ReservedPort("127.0.0.1", 0) as port:
            leader = f"--leader={port.address}"
            server.run("leader", *flags, leader, "--host-index=0", "--startup-timeout=20")
            server.run("other", *flags, leader, "--host-index=1", "--max-num-seqs=3")
            assert server.exit_code("other", 60) == 1
            assert server.said("other", "max_num_seqs is 3, the leader has 8")
            assert server.exit_code("leader", 60) == 1
            assert server.said("leader", f"host 1 of 2 has not come to {port.address} (there: 0) within 20 s")
