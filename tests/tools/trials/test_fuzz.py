"""The fuzzer against a deployment inside the test process; the one with processes is in tests/system."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.system.toy import ToySetup
from triptych.tools.trials import fuzz
from triptych.tools.trials.calls import LEFT
from triptych.tools.trials.deployment import Access, Deployment
from triptych.tools.trials.fuzz import Bad, Findings

TOKEN = "a-token"


@pytest.mark.limit(240)
def test_strange_input_leaves_a_deployment_as_it_was() -> None:
    wanted = {"Inference.Generate", "Control.Gateway", "Control.Worker", "Worker.Subscribe", "Transfer.Open"}
    statuses: Counter[tuple[str, str]] = Counter()
    probes = seed = 0
    with ToySetup(transport="grpc", processes="two").cluster(TOKEN) as cluster:
        deployment = Deployment(cluster.address, cluster.address, access=Access(TOKEN))
        # Once on most machines; a busy one asks less in the same time, and goes on until everything was asked.
        while not (probes and wanted <= {method for method, _ in statuses} and statuses["Inference.Generate", "OK"]):
            seed += 1
            findings = cluster.run(fuzz.trial(deployment, seconds=6.0, seed=seed))
            assert set(findings.problems) <= {"no normal request was tried"}, fuzz.report(findings)
            statuses += findings.statuses
            probes += findings.probes


def test_what_may_not_happen_is_told() -> None:
    bad = Bad(7, "Control.Worker", "UNKNOWN", "what?", (), ())
    findings = Findings(
        statuses=Counter({("Control.Worker", "UNKNOWN"): 1, ("Control.Worker", LEFT): 2}),
        bad=[bad],
        failed_probes=["UNAVAILABLE: gone"],
        ended=["gateway (12)"],
        held={"decode-0": {"tasks": 1}},
    )
    assert findings.problems == [
        "case 7: Control.Worker -> UNKNOWN: what?",
        "normal request: UNAVAILABLE: gone",
        "no normal request was tried",
        "process gateway (12) ended",
        "decode-0 holds {'tasks': 1}",
    ]
    assert "left 2, unknown 1" in fuzz.report(findings)
