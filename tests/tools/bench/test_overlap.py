"""`triptych bench-overlap` on the toy model: every size gives the same tokens, and the figures are those of the run."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import pytest

from triptych.runtime.core.errors import ConfigError
from triptych.tools import cli
from triptych.tools.bench.overlap import parse_groups


def test_groups_are_numbers_of_layers_or_all() -> None:
    assert parse_groups("1, 3,all") == [1, 3, None]
    for wrong in ("0", "1,,2", "x", "-1"):
        with pytest.raises(ConfigError, match="--groups"):
            parse_groups(wrong)


@pytest.mark.slow
@pytest.mark.limit(300)
def test_a_run_on_the_toy_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jax.devices()  # this process keeps its devices: a fresh one would emulate as many as the run needs
    report = tmp_path / "overlap.json"
    flags = ["--requests=2", "--chunks=2", "--chunk-tokens=16", "--groups=1,all", "--handshake-ms=1"]
    assert cli.main(["bench-overlap", "dummy:toy", *flags, f"--cache-dir={tmp_path}", f"--json={report}"]) == 0
    found = json.loads(report.read_text())
    assert found["same_tokens"] and found["layers"] == 2 and found["prompt_tokens"] == 32
    assert [(row["layers_per_offer"], row["groups"], row["offers"]) for row in found["rows"]] == [(1, 2, 8), (2, 1, 4)]
    for row in found["rows"]:
        assert row["transfer"] >= row["offers"] * 1e-3, "each offer takes its hand-shake at least"
        assert 0 <= row["overlap_in_run"] <= 1 and 0 <= row["overlap_of_requests"] <= 1
    assert sum(row["chosen"] for row in found["rows"]) == 1
    assert "no prefill computes" in capsys.readouterr().out
