"""The host's share of a decode step, measured without a device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from triptych.runtime.core.errors import ConfigError
from triptych.tools.bench.host import PHASES, main


def test_every_phase_of_every_batch_has_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "host.json"
    assert main(("--batches", "1,3", "--context", "30", "--steps", "5", "--json", str(out))) == 0
    found = json.loads(out.read_text())["us"]
    assert found.keys() == {"1", "3"} and all(tuple(phases) == PHASES for phases in found.values())
    assert all(us >= 0 for phases in found.values() for us in phases.values())
    assert "pack rows" in capsys.readouterr().out


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        main(("--batches", "0"))
