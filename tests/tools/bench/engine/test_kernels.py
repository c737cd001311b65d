"""What a profile is read as. (On CPU there are only the host's calls.)"""

from __future__ import annotations

import pytest

from triptych.tools.bench.engine.kernels import kernels_of, main, table


def test_kernels_of_one_kind_are_added_up_and_overlaps_count_once() -> None:
    events = [("gemm_fusion_dot.12", 1.0, 2.0), ("gemm_fusion_dot_3", 4.0, 4.5), ("copy", 1.5, 3.0)]
    kernels = kernels_of(events)
    assert kernels.count == {"gemm_fusion_dot": 2, "copy": 1}
    assert kernels.spent == {"gemm_fusion_dot": 1.5, "copy": 1.5}
    assert (kernels.busy, kernels.span) == (2.5, 3.5)
    lines = table("decode", kernels, kernels_of([("launch", 1.0, 1.5)]), 2, 1.0).splitlines()
    assert lines[0].startswith("decode: 1000.00 ms; profiled, 1750.00 ms, of which the device is busy 1250.00 ms")
    assert lines[1].split() == ["750000.0", "us", "1.0", "x", "750000.00", "us", "gemm_fusion_dot"]
    assert lines[-2] == "the host's calls"
    assert lines[-1].split() == ["250000.0", "us", "0.5", "x", "500000.00", "us", "launch"]


def test_no_kernels() -> None:
    assert (kernels_of(()).busy, kernels_of(()).span) == (0.0, 0.0)


def test_steps_and_prompts_are_profiled(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--batches", "2", "--context", "64", "--lengths", "40", "--max-num-batched-tokens", "24"]
    assert main(["dummy:toy", "--parts", "decode,prefill", *sizes]) == 0
    told = capsys.readouterr().out
    assert "decode step, batch 2, context 64" in told and "prompt of 40 tokens, 24 a step" in told
    assert told.count("the host's calls") == 2 and "PjitFunction" in told
