"""Perplexity and next tokens of formats of weights: against a plain sum over log-probabilities, on a toy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.engine.oracle import log_softmax, logits_of, toy
from triptych.runtime.core.errors import ConfigError
from triptych.tools.bench.accuracy import cut, measure
from triptych.tools.cli import main


def test_the_loss_is_that_of_a_dense_forward_pass():
    windows = np.random.default_rng(0).integers(0, 256, (2, 24)).astype(np.int32)
    loss, best = measure(toy(), windows)
    logits = [logits_of(window.tolist())[:-1] for window in windows]
    assert (best == np.stack([rows.argmax(axis=1) for rows in logits])).all()
    chosen = [
        log_softmax(row)[token]
        for rows, window in zip(logits, windows, strict=True)
        for row, token in zip(rows, window[1:], strict=True)
    ]
    assert loss == pytest.approx(-np.mean(chosen), rel=1e-4)


def test_windows_are_whole_and_from_the_beginning():
    assert cut(list(range(10)), 4, 9).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert cut(list(range(10)), 4, 1).shape == (1, 4)
    with pytest.raises(ConfigError, match="the text has 3 tokens, less than a window of 4"):
        cut([1, 2, 3], 4, 1)


@pytest.mark.slow
def test_the_command_compares_formats(capsys, tmp_path: Path):
    out = tmp_path / "accuracy.json"
    argv = [
        "accuracy",
        "dummy:toy",
        "--weights",
        "float32",
        "int8",
        "--window",
        "32",
        "--windows",
        "2",
        "--json",
        str(out),
    ]
    assert main(argv) == 0
    assert "same token" in capsys.readouterr().out
    whole, int8 = json.loads(out.read_text())["formats"]
    assert whole["same"] == 1 and int8["same"] > 0.8 and int8["megabytes"] < 0.4 * whole["megabytes"]
    assert int8["perplexity"] == pytest.approx(whole["perplexity"], rel=0.05)


def test_an_unknown_format_is_refused_before_anything_is_loaded(capsys):
    assert main(["accuracy", "dummy:toy", "--weights", "int5"]) == 2
    assert "int5 is unknown; known: float32, bfloat16, int8" in capsys.readouterr().err
