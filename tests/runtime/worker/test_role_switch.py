"""An instance that takes on another role keeps weights, programs, pool and prefix cache; it is a new peer, and nothing compiles."""

from __future__ import annotations

import pytest

from tests.runtime.worker.bench import Bench, D, P
from triptych.runtime.core.instance import Role
from triptych.runtime.core.request import Request
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.core.tasks import Granted, Refused, StartPrefill


def _request(name: str) -> Request:
    prompt = tuple(range(5, 55))
    return Request(name, "gw", "toy", prompt, SamplingParams(max_tokens=12, seed=3, ignore_eos=True))


def _tokens(samples) -> list[int]:  # type: ignore[no-untyped-def]
    return [token.token for token in samples[0]]


@pytest.mark.limit(300)
def test_a_prefill_instance_becomes_a_decode_instance_and_back(bench: Bench) -> None:
    wanted = _tokens(bench.run_split(_request("switch before")))
    compiled = bench.wait_idle()["p"].counters["compiled_after_ready"]  # in this process, by whatever test came before
    old = bench.ref("p")
    bench.set_roles("p", D)
    new = bench.ref("p")
    assert new.epoch != old.epoch
    (reset,) = [reset for reset in bench.scheduler.of("instance_reset") if reset.old.epoch == old.epoch]
    assert list(reset.info.roles) == ["decode"] and list(reset.info.switchable) == ["prefill"]

    request = _request("switch after")
    assert _tokens(bench.run_split(request, prefill="pd", decode="p")) == wanted
    assert bench.report(request, Granted).cached_tokens == 48, "pages of its time as a prefill instance are found"
    refused = _request("switch refused")
    bench.send("p", StartPrefill(refused, 0, 5.0))
    assert "prefill needed" in bench.report(refused, Refused).reason

    bench.wait_idle()
    bench.set_roles("p", P)
    assert _tokens(bench.run_split(_request("switch back"))) == wanted
    state = bench.wait_idle()["p"]
    assert state.counters["compiled_after_ready"] == compiled
    assert state.counters["role_switches"] == 2 and 0 < state.counters["role_switch_us"] < 30e6
    assert state.info.roles == P


@pytest.mark.limit(300)
def test_a_role_that_was_not_prepared_for_is_refused(bench: Bench) -> None:
    bench.wait_idle()
    before = bench.ref("d")
    bench.set_roles("d", frozenset({Role.PREFILL, Role.DECODE}))
    assert "can have the roles decode" in bench.scheduler.of("roles_refused")[-1].reason
    assert bench.ref("d") == before
