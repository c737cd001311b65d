"""`triptych simulate`: from flags to a table, JSON and pictures; and errors that say what to do."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from triptych.tools.cli import main

SMALL = ("--hardware", "h100", "--model", "qwen-1.5b", "--requests", "40", "--input-len", "200", "--output-len", "20")


def test_a_study_as_table_and_json(tmp_path: Path, capsys):
    out = tmp_path / "study.json"
    call = (
        "simulate",
        *SMALL,
        "--topology",
        "1P2D",
        "--rate",
        "5,50",
        "--slo-ttft",
        "0.2",
        "--slo-tpot",
        "0.02",
        "--out",
        str(out),
    )
    assert main(call) == 0
    text = capsys.readouterr().out
    assert "2 decode, 1 prefill" in text and "goodput 50 req/s or more" in text
    study = json.loads(out.read_text())
    assert [r["rate"] for r in study["results"]] == [5, 50] and study["goodput"] == 50
    assert len(study["results"][0]["timeline"]["times"]) >= 60
    assert study["price"] == 9.0


def test_chips_of_two_kinds_and_turns_on_one_pool(capsys):
    call = (
        "simulate",
        *SMALL,
        "--topology",
        "1P1D",
        "--prefill-hardware",
        "spad-prefill",
        "--trace",
        "azure-code",
        "--seed",
        "2",
    )
    assert main(call) == 0
    assert main(("simulate", *SMALL, "--topology", "2(P-D)", "--trace", "sessions", "--router", "round-robin")) == 0
    assert main(("simulate", *SMALL, "--topology", "PD", "--arrivals", "gamma", "--burstiness", "2")) == 0
    assert capsys.readouterr().out.count("req/s") == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--hardware", "abacus"), "known are h100"),
        ((), "--hardware NAME or --table FILE"),
        (("--hardware", "h100", "--table", "x.json"), "--hardware NAME or --table FILE"),
        (("--table", "nowhere.json"), "cannot be read as a step table"),
        (("--hardware", "h100", "--model", "nobody"), "presets are"),
        (("--hardware", "h100", "--trace", "nothing"), "bundled are azure-conv"),
        (("--hardware", "h100", "--rate", "-1"), "rates are"),
        (("--hardware", "tpu-v5e"), "leave no room for KV"),
        (("--hardware", "h100", "--slo-ttft", "0"), "objective ttft"),
        (("--hardware", "h100", "--max-num-seqs", "0"), "max_num_seqs must be positive"),
        (("--hardware", "h100", "--out", "/nowhere/x.json"), "no folder /nowhere"),
        (("--hardware", "h100", "--out", "/"), "/ is a folder"),
        (("--hardware", "h100", "--rate", "inf"), "rates are"),
        (("--hardware", "h100", "--seed", "-1"), "seed is -1"),
        (("--hardware", "h100", "--length-cv", "nan"), "cv"),
        (("--hardware", "h100", "--trace", "sessions", "--turns", "nan"), "turns >= 1"),
        (("--hardware", "h100", "--trace", "sessions", "--think", "inf"), "think > 0"),
        (("--hardware", "h100", "--arrivals", "gamma", "--burstiness", "0"), "cv"),
        (("--hardware", "h100", "--image-share", "2", "--vision", "clip-l-336"), "with images is 2.0"),
        (("--hardware", "h100", "--image-share", "0.5"), "--image-share needs an encoder"),
        (("--hardware", "h100", "--image-share", "0.5", "--vision", "clip-l-336"), "no instance encodes any"),
        (("--hardware", "h100", "--vision", "eye"), "there are clip-l-336"),
        (("--hardware", "h100", "--topology", "1E1P1D"), "nothing is said of an encoder"),
        (("--hardware", "h100", "--topology", "1E1P1D", "--encoders", "1,2"), "leave E out there"),
        (("--hardware", "h100", "--encoders", "1,2"), "needs requests with images"),
    ],
)
def test_wrong_calls_say_what_is_wrong(flags: tuple[str, ...], message: str, capsys):
    assert main(("simulate", *flags)) == 2
    assert message in capsys.readouterr().err


def test_pictures_without_matplotlib_say_what_to_install(monkeypatch, tmp_path: Path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(("simulate", *SMALL, "--plot", str(tmp_path / "x.png"))) == 2
    assert "pip install 'triptych[plot]'" in capsys.readouterr().err


def test_pictures(tmp_path: Path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "x.png"
    assert main(("simulate", *SMALL, "--rate", "5,50", "--slo-ttft", "0.2", "--plot", str(picture))) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_two_processes_print_what_one_prints(capsys):
    call = ("simulate", *SMALL, "--topology", "1P1D", "--rate", "20", "--trace", "sessions")
    texts = []
    for jobs in ("1", "2"):
        assert main((*call, "--jobs", jobs)) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and "req/s" in texts[0]


IMAGES = ("--vision", "clip-l-336", "--image-share", "1", "--images-per-request", "8", "--input-len", "50")


def test_images_over_one_two_and_four_encode_instances(tmp_path: Path, capsys):
    out = tmp_path / "fan.json"
    flags = ("--hardware", "h100", "--model", "llama-8b", *IMAGES, "--image-patches", "8464", "--image-tokens", "600")
    call = ("simulate", *flags, "--rate", "0.1", "--requests", "5", "--encoders", "4,1,2", "--out", str(out))
    assert main((*call, "--topology", "1P1D", "--output-len", "4")) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[0] for row in rows] == ["1", "2", "4"]
    relative = [float(row[-2]) for row in rows]
    assert relative[0] == 1 and 0.5 < relative[1] < 0.55 and 0.25 < relative[2] < 0.32
    assert set(json.loads(out.read_text())) == {"1", "2", "4"}


def test_memory_of_instances_by_role(capsys):
    call = (
        "simulate",
        "--hardware",
        "h100",
        "--model",
        "llama-8b",
        "--vision",
        "clip-l-336",
        "--topology",
        "1E1P1D1EPD",
    )
    assert main((*call, "--memory")) == 0
    table = {
        line.split()[0]: [float(cell) for cell in line.split()[1:]] for line in capsys.readouterr().out.splitlines()[1:]
    }
    weights, kv, media, _ = range(4)
    assert table["epd"][weights] == pytest.approx(table["encode"][weights] + table["decode"][weights], abs=0.02)
    assert (
        0.58 < table["encode"][weights] < 0.68 and table["encode"][kv] == 0
    )  # 300M parameters of CLIP-L, and a projector
    assert table["decode"][media] == 0 < table["encode"][media] == table["prefill"][media]
    assert table["epd"][kv] < table["prefill"][kv] < table["decode"][kv]
