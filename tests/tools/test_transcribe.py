"""`triptych transcribe` on sound files that the test writes, with the toy model: reading, resampling, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.models.speech.tiny_ct2 import write_folder
from tests.models.speech.toy import wave
from triptych.runtime.core.errors import ConfigError
from triptych.tools.cli import main
from triptych.tools.transcribe import read_audio

soundfile = pytest.importorskip("soundfile", reason="pip install 'triptych[media]'")
pytest.importorskip("soxr", reason="pip install 'triptych[media]'")


def tone(rate: int, seconds: float = 0.5, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int) -> Path:
    soundfile.write(path, samples, rate)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("model") / "toy")


def test_sixteen_kilohertz_are_read_as_they_are(tmp_path: Path) -> None:
    samples = read_audio(write(tmp_path / "a.wav", wave(), 16_000))
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, wave())  # 16-bit numbers in, 16-bit numbers out


@pytest.mark.parametrize(("rate", "suffix"), [(8_000, "wav"), (44_100, "flac"), (48_000, "wav")])
def test_other_rates_and_channels_become_mono_at_sixteen_kilohertz(tmp_path: Path, rate: int, suffix: str) -> None:
    """A tone in one of two channels: half as loud, at the same pitch."""
    stereo = np.stack((tone(rate), np.zeros_like(tone(rate))), axis=1)
    samples = read_audio(write(tmp_path / f"a.{suffix}", stereo, rate))
    assert samples.dtype == np.float32 and abs(samples.size - 8_000) <= 1
    middle = slice(1_000, 7_000)  # resampling filters ring at the ends
    np.testing.assert_allclose(samples[middle], tone(16_000)[middle] / 2, atol=2e-3)


def test_the_toys_words_are_printed(tmp_path: Path, model: Path, capsys) -> None:
    file = write(tmp_path / "a.wav", wave(), 16_000)
    assert main(["transcribe", str(file), "--model", str(model)]) == 0
    text = capsys.readouterr().out
    assert main(["transcribe", str(file), "--model", str(model), "--json", "-v"]) == 0
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert printed["text"] == text.rstrip("\n") and printed["seconds"] == pytest.approx(0.834)
    assert "0.8 s of audio" in captured.err


def test_what_is_no_sound_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("hello")
    whole = write(tmp_path / "whole.wav", tone(16_000), 16_000).read_bytes()
    (tmp_path / "header.wav").write_bytes(whole[:20])
    for name, words in [
        ("absent.wav", "is no file"),
        ("text.wav", "no sound file that can be read"),
        ("header.wav", "no sound"),
    ]:
        with pytest.raises(ConfigError, match=words):
            read_audio(tmp_path / name)
    with pytest.raises(ConfigError, match="holds no sound"):
        read_audio(write(tmp_path / "empty.wav", np.zeros(0, np.float32), 16_000))
    with pytest.raises(ConfigError, match="3700 s long; at most 3600 s"):
        read_audio(write(tmp_path / "long.wav", np.zeros(37_000, np.float32), 10))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--model", "dummy:toy"], "is no speech model"),
        (["--model", "/nonexistent"], "no model '/nonexistent'"),
        (["--language", "de"], "English only"),
        (["--translate"], "English only"),
    ],
)
def test_wrong_calls_end_with_status_2_and_an_explanation(
    tmp_path: Path, model: Path, capsys, argv: list[str], words: str
) -> None:
    file = write(tmp_path / "a.wav", wave(), 16_000)
    call = ["transcribe", str(file), *argv]
    assert main(call if "--model" in argv else [*call, "--model", str(model)]) == 2
    assert words in capsys.readouterr().err


def test_the_help_says_where_it_runs() -> None:
    command = [sys.executable, "-m", "triptych.tools.cli", "transcribe", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "With --server a running server does it; without, this process" in " ".join(shown.split())
