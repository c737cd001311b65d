"""`triptych bench-scheduler` measures a real scheduler, at any size, and leaves nothing behind in it."""

from __future__ import annotations

import json
from pathlib import Path

from triptych.tools.bench_scheduler import Driver, measure
from triptych.tools.cli import main


def test_every_request_is_placed_and_ends():
    driver = Driver(8, "least-loaded", 0.25)
    for _ in range(30):
        driver.submit()
    assert driver.scheduler.resources().tasks == 60
    for _ in range(30):
        driver.beat()
        driver.finish()
    assert driver.scheduler.idle and driver.scheduler.counters["completed"] == 30


def test_cost_grows_no_faster_than_the_logarithm_of_the_cluster():
    few, many = (
        min(
            measure(n, 400, router="least-loaded", decoding=2, beat_every=4, prefill_share=0.25).microseconds
            for _ in range(3)
        )
        for n in (16, 2048)
    )
    assert many < few * 11 / 4  # log2 of the sizes


def test_the_command(tmp_path: Path, capsys):
    out = tmp_path / "costs.json"
    assert (
        main(
            (
                "bench-scheduler",
                "--instances",
                "4,16",
                "--requests",
                "50",
                "--router",
                "round-robin",
                "--json",
                str(out),
            )
        )
        == 0
    )
    assert "us/request" in capsys.readouterr().out
    assert [cost["instances"] for cost in json.loads(out.read_text())["costs"]] == [4, 16]
    assert main(("bench-scheduler", "--instances", "many")) == 2
    assert main(("bench-scheduler", "--instances", "1")) == 2
    assert main(("bench-scheduler", "--instances", "4", "--prefill-share", "nan")) == 2
    assert main(("bench-scheduler", "--instances", "4", "--json", str(tmp_path / "no" / "x.json"))) == 2
