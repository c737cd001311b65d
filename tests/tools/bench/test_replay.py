"""Recorded traces as `triptych bench` replays them: which requests, when, how long, and which calls are refused."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools.fake_server import ToyInference, start
from triptych.tools.bench import command
from triptych.tools.bench.workload import Item, TraceRow, WorkloadError, load_trace, mean_rate
from triptych.tools.cli import main

VOCAB, CONTEXT = list(range(3, 90)), 8192


def replayed(*flags: str, context: int = CONTEXT) -> list[Item]:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.build_items(command.resolve_load(parser.parse_args(flags)), VOCAB, context)


@pytest.fixture
def address() -> Iterator[tuple[ToyInference, str]]:
    server, toy, address = start()
    yield toy, address
    server.stop(0).wait()


@pytest.fixture
def bursts(tmp_path: Path) -> str:
    """Five requests in eight seconds."""
    file = tmp_path / "bursts.csv"
    rows = [(0, 5, 2), (0, 6, 900), (2, 7, 1), (4, 8, 3), (8, 9, 40)]
    lines = [f"2023-11-16 18:00:0{at},{inputs},{outputs}" for at, inputs, outputs in rows]
    file.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]))
    return str(file)


@pytest.mark.parametrize(
    ("trace", "rate", "window", "requests"),
    [
        ("conversation", 8, 40, 188),
        ("conversation", 16, 40, 438),
        ("conversation", 24, 35, 627),
        ("conversation", 32, 35, 915),
        ("code", 4, 30, 63),
        ("code", 8, 30, 63),  # as many: after them the trace has a long gap
    ],
)
def test_a_whole_trace_at_its_nominal_rate_has_so_many_requests_in_a_window(
    trace: str, rate: int, window: int, requests: int
):
    items = replayed("--trace", trace, "--nominal-rate", str(rate), "--window", str(window), "--length-scale", "0.01")
    assert len(items) == requests
    assert items[0].at == 0.0 and items[-1].at < window
    assert all(a.at <= b.at for a, b in itertools.pairwise(items))


def test_requests_are_the_rows_of_the_trace_in_their_order():
    items = replayed("--trace", "conversation", "--nominal-rate", "8", "--window", "5", "--max-output", "100")
    rows = load_trace("conversation")[: len(items)]
    stretch = mean_rate(load_trace("conversation")) / 8
    assert [i.at for i in items] == pytest.approx([row.at * stretch for row in rows])
    assert [len(i.prompt) for i in items] == [row.input_tokens for row in rows]
    assert [i.output_tokens for i in items] == [min(row.output_tokens, 100) for row in rows]
    assert max(row.output_tokens for row in rows) > 100 and all(i.ignore_eos for i in items)


def test_the_rate_is_the_whole_trace_s_whatever_part_is_replayed(bursts: str):
    assert mean_rate(load_trace(bursts)) == pytest.approx(5 / 8)
    five_a_second = ["--trace", bursts, "--nominal-rate", "5"]
    assert [i.at for i in replayed(*five_a_second)] == pytest.approx([0, 0, 0.25, 0.5, 1.0])
    assert [i.at for i in replayed(*five_a_second, "--num-requests", "3")] == pytest.approx([0, 0, 0.25])
    assert [i.at for i in replayed(*five_a_second, "--window", "0.5")] == pytest.approx([0, 0, 0.25])


def test_a_window_counts_in_scaled_time_and_a_number_of_requests_only_caps_it(bursts: str):
    faster = ["--trace", bursts, "--speed", "2", "--window", "3"]
    assert [i.at for i in replayed(*faster)] == [0, 0, 1, 2]
    assert len(replayed(*faster, "--num-requests", "2")) == 2
    assert len(replayed(*faster, "--num-requests", "100")) == 4


def test_without_a_window_64_requests_are_replayed_at_the_trace_s_own_speed():
    items = replayed("--trace", "conversation", "--length-scale", "0.01")
    assert len(items) == 64 and items[1].at == pytest.approx(4.314579, abs=1e-5)


def test_outputs_are_capped_after_lengths_are_scaled_and_capped_ones_need_less_context(
    bursts: str, capsys: pytest.CaptureFixture[str]
):
    flags = ["--trace", bursts, "--length-scale", "2"]
    assert [i.output_tokens for i in replayed(*flags, "--max-output", "50", context=80)] == [4, 50, 2, 6, 50]
    assert not capsys.readouterr().err
    assert [i.output_tokens for i in replayed(*flags, context=80)] == [4, 80 - 12, 2, 6, 80 - 18]
    assert "2 of 5 requests are longer than the model's 80 tokens" in capsys.readouterr().err


def test_a_trace_without_a_span_has_no_rate():
    with pytest.raises(WorkloadError, match="all come at one time"):
        mean_rate([TraceRow(0.0, 4, 4), TraceRow(0.0, 4, 4)])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--window", "5"], "--window: this is about replaying a trace; name one with --trace"),
        (["--nominal-rate", "5", "--max-output", "9"], "--nominal-rate, --max-output: this is about"),
        (["--trace", "code", "--nominal-rate", "4", "--speed", "1"], "give one of them"),
        (["--trace", "code", "--nominal-rate", "0"], "--nominal-rate is 0.0"),
        (["--trace", "code", "--nominal-rate", "nan"], "--nominal-rate is nan"),
        (["--trace", "code", "--nominal-rate", "inf"], "--nominal-rate is inf"),
        (["--trace", "code", "--window", "-1"], "--window is -1.0"),
        (["--trace", "code", "--window", "5", "--speed", "0"], "--speed is 0.0"),
        (["--trace", "code", "--max-output", "0"], "--max-output is 0"),
        (["--num-requests", "0"], "--num-requests is 0"),
        (["--goodput", "ttft:1", "--goodput", "tpot:0"], "must be positive"),
        (["--goodput", "ttft:1", "ttft:2"], "a second set is a second --goodput"),
    ],
)
def test_a_replay_that_cannot_be_is_a_wrong_call(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "--address", "127.0.0.1:1", *flags]) == 2
    assert words in capsys.readouterr().err


def test_one_replay_is_judged_by_every_set_of_objectives(
    address: tuple[ToyInference, str], bursts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    toy, server = address
    out = tmp_path / "out.json"
    load = ["--trace", bursts, "--nominal-rate", "500", "--window", "0.01", "--max-output", "4", "--warmup", "0"]
    sets = ["--goodput", "ttft:60", "tpot:60", "--goodput", "e2e:1e-9"]
    assert main(["bench", "--address", server, *load, *sets, "--json", str(out)]) == 0
    assert sorted(r.sampling.max_tokens for r in toy.requests) == [1, 2, 3, 4]
    shown = capsys.readouterr().out
    assert "(100.0% of requests met TTFT <= 60 s, TPOT <= 60 s)" in shown
    assert "(0.0% of requests met E2E <= 1e-09 s)" in shown
    written = json.loads(out.read_text())
    assert written["settings"]["nominal_rate"] == 500 and written["settings"]["goodput"] == ["ttft:60", "tpot:60"]
    summary = written["runs"][server]["summary"]
    assert [(met["objectives"], met["attainment"]) for met in summary["goodputs"]] == [
        ({"ttft": 60.0, "tpot": 60.0}, 1.0),
        ({"e2e": 1e-9}, 0.0),
    ]
    assert (summary["objectives"], summary["attainment"]) == ({"ttft": 60.0, "tpot": 60.0}, 1.0)
