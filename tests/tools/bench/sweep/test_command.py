"""`triptych bench-sweep`: flags, table, JSON, what bench-pareto reads of it; and a real deployment, small."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.tools.bench.sweep.fakes import Fake
from triptych.runtime.core.errors import ConfigError
from triptych.tools.bench.pareto import read_runs
from triptych.tools.bench.sweep import command
from triptych.tools.cli import main


def run(fake: Fake, *flags: str) -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    command.add_arguments(parser)
    return command.run(parser.parse_args(["dummy:toy", "--device", "cpu", *flags]), fake)


def test_table_and_json_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "sweep.json"
    fake = Fake({"2PD": 5.0, "1P1D": 9.0, "PD:tp2": 2.0}, broken=("PD:tp2",))
    assert (
        run(fake, "--topologies", "2PD,1P1D,PD:tp2", "--loads", "poisson", "--json", str(file), "--seconds", "99999")
        == 1
    )
    report, table = json.loads(file.read_text()), capsys.readouterr().out
    assert report["devices"] == 2 and report["loads"] == [{"name": "poisson", "ttft": 1.0, "tpot": 0.05}]
    assert "PD:tp2: FAILED: PD:tp2 ended before it was ready" in table
    for row in report["topologies"][:2]:
        load = row["loads"]["poisson"]
        assert f"{row['name']:<22}goodput {load['goodput']:.4g} req/s" in table
        assert all(f"{row['name']:<22}{p['rate']:>8.4g}" in table for p in load["points"])
        assert all(len(p["rows"]) == p["requests"] == 20 for p in load["points"])
    assert "1P1D against 2PD at 4.757 req/s, 20 requests: 0 inside only there, 0 only here" in table
    assert not list(tmp_path.glob("*.part"))


def test_pareto_reads_the_valid_points_of_one_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "sweep.json"
    fake = Fake({"2PD": 5.0, "1P1D": 9.0}, late={"2PD": 4.0})
    assert run(fake, "--loads", "poisson,long", "--json", str(file), "--rates", "1,2,4", "--seconds", "99999") == 0
    assert [(p.deployment, p.rate) for p in read_runs(f"long@{file}", 1)] == [
        ("2PD", 1.0), ("2PD", 2.0), ("1P1D", 1.0), ("1P1D", 2.0), ("1P1D", 4.0)
    ]  # fmt: skip
    first = read_runs(f"poisson@{file}", 1)[0]
    assert first.per_user == pytest.approx(100.0) and first.per_device == pytest.approx(100 / 20 / 2)
    assert main(("bench-pareto", f"poisson@{file}")) == 0
    for wrong in (str(file), f"rain@{file}"):
        with pytest.raises(ConfigError, match="several loads|no load 'rain'"):
            read_runs(wrong, 1)
    assert "NOT VALID: the load generator was 500 ms late" in capsys.readouterr().out


def test_a_sweep_in_parts_compares_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file, fake = tmp_path / "sweep.json", Fake({"2PD": 5.0, "1P1D": 9.0})
    flags = ("--loads", "poisson", "--json", str(file), "--append", "--seconds", "9999")
    for topology in fake.goodput:
        assert run(fake, "--topologies", topology, *flags) == 0
    parts, whole = json.loads(file.read_text()), tmp_path / "whole.json"
    assert run(fake, "--topologies", "2PD,1P1D", *flags[:2], "--json", str(whole), "--seconds", "9999") == 0
    one = json.loads(whole.read_text())
    assert parts["topologies"] == one["topologies"] and parts["against_monolith"] == one["against_monolith"] != []
    assert run(fake, "--topologies", "2PD", *flags) == 0, "a topology that is named again is measured again"
    assert [row["name"] for row in json.loads(file.read_text())["topologies"]] == ["1P1D", "2PD"]
    for wrong in (("--load-seed", "1"), ("--slo-ttft", "2"), ("--topologies", "PD")):
        with pytest.raises(ConfigError, match="another sweep: (plan|loads|devices)"):
            run(fake, *flags, *wrong)
    file.write_text("{}")
    with pytest.raises(ConfigError, match="no report"):
        run(fake, *flags)


def test_an_interruption_is_reported_with_what_was_not_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "sweep.json"
    assert run(Fake({"2PD": 5.0}, interrupt_after=1), "--loads", "poisson", "--json", str(file)) == command.INTERRUPTED
    report = json.loads(file.read_text())
    assert report["interrupted"] and report["not_started"] == ["1P1D"]
    assert len(report["topologies"][0]["loads"]["poisson"]["points"]) == 1
    assert "not started: 1P1D" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--topologies", "PD,1P1D"), "PD 1, 1P1D 2"),
        (("--loads", "rain"), "no load 'rain'"),
        (("--seconds", "0"), "must be positive"),
        (("--slo-ttft", "-1"), "expected positive seconds"),
        (("--model", "other"), "two models"),
        (("--json", "/nowhere/x.json"), "no folder"),
    ],
)
def test_wrong_calls_start_nothing(flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(("bench-sweep", "dummy:toy", *flags)) == 2
    assert message in capsys.readouterr().err


def test_the_load_generator_loads_no_jax():
    """It would take memory of the GPUs that its deployments need."""
    code = "import sys, triptych.tools.bench.sweep.command; sys.exit(int('jax' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_picture(tmp_path: Path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "sweep.png"
    assert (
        run(Fake({"2PD": 5.0, "1P1D": 9.0}), "--loads", "poisson,long", "--plot", str(file), "--seconds", "99999") == 0
    )
    assert file.stat().st_size > 1000


TOY = ("dummy:toy", "--device", "cpu", "--max-model-len", "128", "--max-num-batched-tokens", "32", "--num-pages", "65",
       "--max-num-seqs", "4", "--slo-ttft", "30", "--slo-tpot", "5", "--warmup", "0.5", "--point-seconds", "1",
       "--least-requests", "2", "--max-lag", "20")  # fmt: skip


@pytest.mark.slow
@pytest.mark.limit(900)
def test_two_topologies_are_served_and_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "sweep.json"
    flags = (
        "--topologies",
        "2PD,1P1D",
        "--loads",
        "poisson:input=40:output=6,conversation",
        "--rates",
        "2,4",
        "--seconds",
        "800",
    )
    assert main(("bench-sweep", *TOY, *flags, "--json", str(file))) == 0, capsys.readouterr()
    report = json.loads(file.read_text())
    for row in report["topologies"]:
        for load in row["loads"].values():
            assert [p["rate"] for p in load["points"]] == [2.0, 4.0]
            for point in load["points"]:
                assert point["completed"] == point["requests"] and not point["failures"]
                assert point["compiled"] == 0 and point["output_token_rate"] > 0
                assert (point["moved"]["kv_bytes"] > 0) is (row["name"] == "1P1D")
    one = next(p for p in report["topologies"][1]["loads"]["poisson:input=40:output=6"]["points"])
    assert {(r["input"], r["output"], r["status"]) for r in one["rows"]} == {(40, 6, "OK")}
    assert report["against_monolith"]


@pytest.mark.slow
@pytest.mark.limit(900)
def test_pictures_are_served_and_their_control_has_none(tmp_path: Path):
    pytest.importorskip("PIL.Image")
    file = tmp_path / "sweep.json"
    flags = (
        "--topologies",
        "1E1PD",
        "--loads",
        "images:input=8:output=4:images=1-3:size=30x20,text:input=8:output=4:images=1-3:size=30x20",
        "--rates",
        "2",
    )
    assert (
        main(
            (
                "bench-sweep",
                "dummy:toy-vlm",
                *TOY[1:],
                "--media-pages",
                "17",
                *flags,
                "--seconds",
                "800",
                "--json",
                str(file),
            )
        )
        == 0
    )
    images, text = json.loads(file.read_text())["topologies"][0]["loads"].values()
    rows, control = images["points"][0]["rows"], text["points"][0]["rows"]
    assert all(r["status"] == "OK" for r in (*rows, *control)), (rows, control)
    assert {r["input"] for r in control} == {8} and {r["input"] - 8 for r in rows} <= {16, 32, 48}
    assert images["points"][0]["moved"]["media_bytes"] > 0 and "16 tokens each" in images["note"]


def processes(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.slow
@pytest.mark.limit(300)
def test_a_sweep_that_is_ended_ends_its_deployment(tmp_path: Path):
    file = tmp_path / "sweep.json"
    argv = [sys.executable, "-m", "triptych.tools.cli", "bench-sweep", *TOY, "--topologies", "PD", "--json", str(file)]
    with subprocess.Popen(argv, env=dict(os.environ), stdout=subprocess.DEVNULL) as process:
        children: list[int] = []
        until = time.monotonic() + 120
        while len(children) < 3 and time.monotonic() < until:  # scheduler, gateway, worker
            time.sleep(0.2)
            children = processes(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == command.INTERRUPTED
    assert len(children) == 3
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    report: dict[str, Any] = json.loads(file.read_text())
    assert report["interrupted"] is True
