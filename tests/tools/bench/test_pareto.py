"""Points of reports at equal devices, and which of them no other one beats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from triptych.tools.bench.metrics import Arrival, Record, summarise
from triptych.tools.bench.pareto import Point, front, read_runs
from triptych.tools.bench.report import as_json
from triptych.tools.cli import main


def point(per_user: float, per_device: float, name: str = "a") -> Point:
    return Point(name, 1.0, per_device, per_user, 0.1, 0)


def report(path: Path, tpot: float, requests: int = 4) -> str:
    """A run of requests of 11 tokens, one a second."""
    records = [
        Record(i, i, i + 0.5 + tpot * 10, tuple(Arrival(i + 0.5 + tpot * k, 1) for k in range(11)), input_tokens=8)
        for i in map(float, range(requests))
    ]
    path.write_text(as_json({}, {"server": (summarise(records, {}), records)}))
    return str(path)


def test_the_front_is_what_no_other_point_beats_in_both():
    points = [point(10, 5), point(8, 6), point(8, 7), point(7, 6.5), point(2, 30), point(10, 4), point(1, 30)]
    kept = front(points)
    assert kept == [point(10, 5), point(8, 7), point(2, 30)]
    for p in points:
        beaten = any(q.per_user >= p.per_user and q.per_device >= p.per_device and q != p for q in points)
        assert (p in kept) != beaten


def test_points_are_per_device_and_per_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    slow, fast = report(tmp_path / "slow.json", 0.2), report(tmp_path / "fast.json", 0.05)
    two, four = read_runs(f"1P1D={slow}", 2), read_runs(f"big:4={slow},{fast}", 2)
    assert two[0].per_user == pytest.approx(5.0) and two[0].ttft == pytest.approx(0.5)
    assert two[0].per_device == pytest.approx(44 / 5.5 / 2)
    assert {round(p.per_user) for p in four} == {5, 20} and four[0].per_device < two[0].per_device
    out = tmp_path / "points.json"
    assert main(("bench-pareto", f"1P1D={slow}", f"2PD={fast}", "--devices", "2", "--json", str(out))) == 0
    assert [row["on_front"] for row in json.loads(out.read_text())] == [False, True]
    assert "* 2PD" in capsys.readouterr().out


def test_what_is_no_report_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "x.json").write_text("{}")
    for text in ("nothing", "a=", "=x", "a:0=x", f"a={tmp_path / 'x.json'}", f"a={tmp_path / 'absent.json'}"):
        assert main(("bench-pareto", text)) == 2, text
    assert "no report" in capsys.readouterr().err


def test_a_picture(tmp_path: Path):
    pytest.importorskip("matplotlib")
    file = report(tmp_path / "a.json", 0.1)
    assert main(("bench-pareto", f"a={file}", "--plot", str(tmp_path / "p.png"))) == 0
    assert (tmp_path / "p.png").stat().st_size > 1000
