"""Perplexity and next tokens of formats of weights: against a plain sum over log-probabilities, on a toy."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.runtime.engine.oracle import forward, log_softmax, logits_of, toy
from tests.runtime.engine.test_quantised_kv import kept
from triptych.models.kv import KV_CODES
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


@pytest.mark.slow
@pytest.mark.parametrize("kv", ["int8", "fp8"])
def test_the_loss_with_kv_in_codes_is_that_over_what_they_stand_for(kv: str):
    windows = np.random.default_rng(0).integers(0, 256, (2, 24)).astype(np.int32)
    model, read_again = toy(), kept(KV_CODES[kv])

    def logits(params, tokens):
        decoder = model.merge(params)
        return forward(decoder, decoder.embed(tokens), jnp.arange(len(tokens)), kept=read_again)

    rows = np.concatenate([np.asarray(jax.jit(logits)(model.params, window))[:-1] for window in windows])
    loss, best = measure(model, windows, kv)
    assert (best.reshape(-1) == rows.argmax(axis=1)).mean() > 0.95, "but where two are as good"
    assert loss == pytest.approx(
        -np.mean([log_softmax(row)[token] for row, token in zip(rows, windows[:, 1:].flat, strict=True)]), rel=1e-3
    )
    assert loss != measure(model, windows)[0]


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
        "--kv",
        "auto",
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
    whole, int8_kv, int8, both = json.loads(out.read_text())["formats"]
    assert whole["same"] == 1 and int8["same"] > 0.8 and int8["megabytes"] < 0.4 * whole["megabytes"]
    assert int8["perplexity"] == pytest.approx(whole["perplexity"], rel=0.05)
    assert int8_kv["perplexity"] == pytest.approx(whole["perplexity"], rel=0.02) and int8_kv["same"] > 0.9
    assert (int8_kv["megabytes"], both["megabytes"]) == (whole["megabytes"], int8["megabytes"])
    assert int8_kv["kv_bytes_per_token"] == both["kv_bytes_per_token"] == whole["kv_bytes_per_token"] * 20 // 64


def test_an_unknown_format_is_refused_before_anything_is_loaded(capsys):
    assert main(["accuracy", "dummy:toy", "--kv", "int3"]) == 2
    assert "int3 is unknown; known: auto, float32, bfloat16, int8, fp8" in capsys.readouterr().err
    assert main(["accuracy", "dummy:toy", "--weights", "int5"]) == 2
    assert "int5 is unknown; known: float32, bfloat16, int8" in capsys.readouterr().err
