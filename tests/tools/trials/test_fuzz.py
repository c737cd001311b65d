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
    with ToySetup(transport="grpc", processes="two").cluster(TOKEN) as cluster:
        deployment = Deployment(cluster.address, cluster.address, access=Access(TOKEN))
        findings = cluster.run(fuzz.trial(deployment, seconds=6.0, seed=1))
    assert findings.problems == [], fuzz.report(findings)
    asked = {method for method, _ in findings.statuses}
    assert {"Inference.Generate", "Control.Gateway", "Control.Worker", "Worker.Subscribe", "Transfer.Open"} <= asked
    assert findings.statuses["Inference.Generate", "OK"] and findings.probes


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
