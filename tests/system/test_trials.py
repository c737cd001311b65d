"""Short runs of the trials with real processes: strange input, faults under load, many requests. The long ones are commands."""

from __future__ import annotations

import asyncio

import pytest

from triptych.tools.trials import chaos, fuzz, soak
from triptych.tools.trials.deployment import deployed
from triptych.tools.trials.faults import Fault
from triptych.tools.trials.losses import Report


@pytest.mark.slow
@pytest.mark.limit(300)
def test_strange_input_to_every_rpc_and_route() -> None:
    async def scenario() -> fuzz.Findings:
        async with deployed(["--topology=1P1D", "--http-port=0"]) as deployment:
            return await fuzz.trial(deployment, seconds=20.0, seed=0)

    findings = asyncio.run(scenario())
    # Twenty seconds are no time to judge memory by: allocators and caches still fill.
    assert [problem for problem in findings.problems if " rss grew " not in problem] == [], fuzz.report(findings)
    assert findings.statuses["POST /v1/completions", "200"] and findings.statuses["Inference.Generate", "OK"]


@pytest.mark.slow
@pytest.mark.limit(600)
def test_every_kind_of_process_is_killed_and_nothing_is_lost() -> None:
    async def scenario() -> Report:
        async with deployed(["--topology=1P1D"]) as deployment:
            return await chaos.trial(deployment, "1P1D", seconds=1.0, seed=3, clients=4)

    report = asyncio.run(scenario())
    assert report.problems == [], report.table()
    assert {(event.role, event.fault) for event in report.events} >= {(role, Fault.KILL) for role in chaos.ROLES}
    assert any(outcome.attempts > 1 for outcome in report.outcomes), "no request was hurt: the test shows nothing"


@pytest.mark.slow
@pytest.mark.limit(300)
def test_many_requests_leave_nothing_behind() -> None:
    async def scenario() -> soak.Outcome:
        async with deployed(["--topology=1P1D"]) as deployment:
            return await soak.trial(deployment, requests=500, concurrency=16, seed=0)

    outcome = asyncio.run(scenario())
    assert [problem for problem in outcome.problems if " rss grew " not in problem] == [], outcome.report()
    assert outcome.tally.completed == 500
