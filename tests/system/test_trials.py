"""Short runs of the trials with real processes: strange input, faults under load, many requests. The long ones are commands."""

from __future__ import annotations

import asyncio
import random

import pytest

from triptych.runtime.core.errors import Status
from triptych.tools.trials import chaos, fuzz, pressure, soak
from triptych.tools.trials.deployment import deployed
from triptych.tools.trials.faults import Fault
from triptych.tools.trials.levelling import Finding, judged, series
from triptych.tools.trials.load import learn
from triptych.tools.trials.losses import Report
from triptych.tools.trials.media_load import MODEL, fresh_kinds
from triptych.tools.trials.scrape import free_ports


@pytest.mark.slow
@pytest.mark.limit(300)
def test_strange_input_to_every_rpc_and_route() -> None:
    async def scenario() -> fuzz.Findings:
        async with deployed([*MODEL, "--topology=1E1P1D", "--http-port=0"]) as deployment:
            return await fuzz.trial(deployment, seconds=20.0, seed=0)

    findings = asyncio.run(scenario())
    # Twenty seconds are no time to judge memory by: allocators and caches still fill.
    assert [problem for problem in findings.problems if " rss grew " not in problem] == [], fuzz.report(findings)
    assert findings.statuses["POST /v1/chat/completions", "200"] and findings.statuses["Inference.Generate", "OK"]
    assert findings.statuses["Worker.PutMedia", "INVALID_ARGUMENT"] and findings.probes > 1


@pytest.mark.slow
@pytest.mark.limit(600)
def test_every_kind_of_process_is_killed_and_nothing_is_lost() -> None:
    async def scenario() -> Report:
        async with deployed(["--topology=1P1D"]) as deployment:
            return await chaos.trial(deployment, "1P1D", seconds=1.0, seed=3, clients=4)

    report = asyncio.run(scenario())
    assert report.problems == [], report.table()
    assert {(event.role, event.fault) for event in report.events} >= {
        (role, Fault.KILL) for role in chaos.roles_of("1P1D")
    }
    assert any(outcome.attempts > 1 for outcome in report.outcomes), "no request was hurt: the test shows nothing"


@pytest.mark.slow
@pytest.mark.limit(600)
def test_encoders_are_killed_and_cut_off_and_nothing_is_lost() -> None:
    """Pixels and embeddings on links that break, a killed encoder: every answer as one instance gives it, and none fails."""

    async def scenario() -> tuple[list[Report], dict[str, int]]:
        async with deployed([*MODEL, "--topology=EPD"]) as deployment:
            traffic = await chaos.learned(deployment, "1E1P1D", seed=4)
        async with deployed([*MODEL, "--topology=1E1P1D"]) as deployment:
            # Killed once to measure its restart, and at least once more; then each link is cut once before any is cut again.
            trials = [(1.0, Fault.KILL, ("encode",)), (30.0, Fault.PARTITION, ("gateway/encode", "encode/prefill"))]
            reports = [
                await chaos.trial(deployment, "1E1P1D", seconds, 4, 4, (fault,), victims, traffic)
                for seconds, fault, victims in trials
            ]
            return reports, dict((await deployment.states())["encode-0"].counters)

    reports, counters = asyncio.run(scenario())
    for report in reports:
        assert report.problems == [], report.table()
        assert all(outcome.status is Status.OK for outcome in report.outcomes)
    assert {event.role for report in reports for event in report.events} == {
        "encode",
        "gateway/encode",
        "encode/prefill",
    }
    assert counters["encoded_items"] > 10, "nothing was encoded: the test shows nothing"


@pytest.mark.slow
@pytest.mark.limit(600)
def test_memory_before_a_slow_prefill_levels_off_and_everything_completes_afterwards() -> None:
    async def scenario() -> Finding:
        async with deployed([*pressure.FLAGS, "--topology=EPD"]) as deployment, deployment.client() as client:
            # More than prefill's prefix cache holds: what comes again is new to it.
            specs = await learn(client, fresh_kinds(random.Random(1), 160))
        port = free_ports(5)
        async with deployed([*pressure.FLAGS, "--topology=1E1P1D", f"--metrics-port={port}"]) as deployment:
            return await pressure.trial(deployment, "1E1P1D", specs, 15.0, 0.05, clients=50, port=port + 1)

    found = asyncio.run(scenario())
    # Fifteen seconds are no time to judge a process's memory by; pools and queues have their bounds at once.
    assert [problem for problem in judged(found) if "_rss grew " not in problem] == [], series(found.readings)
    assert found.readings[-1].refused > 0, "the gateway refuses what is beyond its bounds"


@pytest.mark.slow
@pytest.mark.limit(300)
def test_many_requests_leave_nothing_behind() -> None:
    async def scenario() -> soak.Outcome:
        async with deployed(["--topology=1P1D"]) as deployment:
            return await soak.trial(deployment, requests=500, concurrency=16, seed=0)

    outcome = asyncio.run(scenario())
    assert [problem for problem in outcome.problems if " rss grew " not in problem] == [], outcome.report()
    assert outcome.tally.completed == 500
