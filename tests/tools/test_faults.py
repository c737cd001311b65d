"""`triptych faults`: the table, the JSON file, and the replay of one seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from triptych.tools.cli import main


def test_schedules_are_run_and_tabled(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "out.json"
    assert main(["faults", "--schedules", "5", "--seed", "3", "--jobs", "1", "--json", str(path)]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].split()[:4] == ["fault", "struck", "schedules", "admitted"]
    assert "5 schedules" in shown and "0 failing" in shown
    result = json.loads(path.read_text())
    assert result["schedules"] == 5 and result["failing"] == {}
    assert result["all"]["admitted"] == result["all"]["completed"] + result["all"]["failed"]
    assert result["all"]["hung"] == result["all"]["leaked"] == 0


def test_kinds_of_faults_can_be_chosen(capsys: pytest.CaptureFixture[str]):
    assert main(["faults", "--schedules", "5", "--jobs", "1", "--only", "kill,pause"]) == 0
    faults = {line.split()[0] for line in capsys.readouterr().out.splitlines()[1:] if line}
    assert faults & {"kill", "pause"} and not faults & {"cut", "reset", "vanish"}


def test_one_seed_is_replayed_with_a_log(capsys: pytest.CaptureFixture[str]):
    assert main(["faults", "--replay", "3"]) == 0
    shown = capsys.readouterr().out
    assert "WorkerJoined" in shown and "Submit r0#1" in shown
    assert shown.splitlines()[-1] == "passed"


def test_wrong_calls_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["faults", "--json", str(tmp_path / "no" / "x.json")]) == 2
    assert "no folder" in capsys.readouterr().err
    assert main(["faults", "--only", "kill,meteor"]) == 2
    assert "meteor" in capsys.readouterr().err
    assert main(["faults", "--schedules", "0"]) == 2
