"""The floor's arithmetic and its plans, run on the real engine with a toy model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from triptych.models.config import PRESETS
from triptych.models.weights.dummy import DummySource
from triptych.models.weights.load import load_decoder
from triptych.sharding.mesh import make_mesh
from triptych.tools.bench import bandwidth
from triptych.tools.bench.floor import Floor, decode_plan, step_parameter_bytes
from triptych.tools.cli import main


def test_the_floor_is_bytes_over_bandwidth():
    assert Floor(parameter_bytes=6_000_000, kv_bytes=2_000_000, bandwidth=4e9).seconds == pytest.approx(2e-3)


def test_a_step_plan_extends_every_sequence_by_one_token_in_pages_of_its_own():
    first, later = decode_plan(0, 3, 33, 16), decode_plan(1, 3, 33, 16)
    assert len(first.seats) == 3 and later.seats == ()
    pages = [page for row in first.rows for page in row.pages]
    assert sorted(pages) == list(range(1, 10))
    assert all(row.decode and row.start == 32 and row.draws[0].position == 33 for row in (*first.rows, *later.rows))
    assert [row.tokens for row in later.rows] == [(), (), ()]


def test_the_command_times_the_real_engine(capsys, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(bandwidth, "CPU_BYTES", 1 << 20)
    monkeypatch.setattr(bandwidth, "REPEATS", 1)
    out = tmp_path / "floor.json"
    argv = [
        "floor",
        "dummy:toy",
        "--batch",
        "2",
        "--context",
        "32",
        "--steps",
        "3",
        "--weights",
        "int8",
        "--json",
        str(out),
    ]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "measured / floor" in shown and "GB/s" in shown and "weights int8" in shown
    figures = json.loads(out.read_text())
    assert figures["median"] >= figures["best"] > 0
    assert figures["floor"]["seconds"] == pytest.approx(
        (figures["floor"]["parameter_bytes"] + figures["floor"]["kv_bytes"]) / figures["floor"]["bandwidth"]
    )
    assert figures["weights"] == "int8"


@pytest.mark.parametrize("weights", ["auto", "int8"])
def test_an_input_embedding_that_is_only_looked_up_is_no_byte_of_a_step(weights: str):
    """Tied, the same matrix is the head and counts; a model with a head of its own reads as much."""
    tied = replace(PRESETS["toy"], num_layers=1, layer_windows=(None,))
    mesh = make_mesh(jax.devices()[:1], 1)
    read = []
    for config in (tied, replace(tied, tie_embeddings=False)):
        loaded = load_decoder(config, DummySource(config), mesh, "float32", weights)
        read.append((step_parameter_bytes(loaded), loaded.nbytes()))
    (tied_bytes, all_of_tied), (apart_bytes, all_of_apart) = read
    assert tied_bytes == all_of_tied == apart_bytes < all_of_apart
