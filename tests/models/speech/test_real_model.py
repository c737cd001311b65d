"""Whisper tiny.en, fetched for real, on real speech: the transcripts are those of a plain numpy program in float32.

The expected texts were printed once by that program, which reads the same weights and shares no code with this project;
its one mistake ("old-sposed" for "ill disposed") is the model's own.
"""

from __future__ import annotations

import os
import wave
from pathlib import Path

import jax
import numpy as np
import pytest

from triptych.models.hub.resolve import resolve_model
from triptych.models.speech.bundle import open_speech
from triptych.models.speech.load import load_decoder, load_encoder
from triptych.models.speech.transcribe import Transcriber
from triptych.sharding.mesh import make_mesh

pytestmark = pytest.mark.real_model

CLIPS = Path(__file__).parent.parent.parent / "data" / "librivox"
TRANSCRIPTS = {
    "0870": "And Mr. John Dashwood had then leisure to consider how much there might be prudently in his power to do "
    "for them.",
    "0880": "He was not an old-sposed young man.",
    "0890": "Unless to be rather cold-hearted and rather selfish is to be ill-disposed.",
    "0920": "Had he married a more amiable woman, he might have been made still more respectable than he was.",
    "0930": "He might even have been made amiable himself.",
}


@pytest.fixture(scope="module")
def whisper() -> Transcriber:
    cache = Path(os.environ.get("TRIPTYCH_CACHE", "~/.cache/triptych")).expanduser()
    bundle = open_speech(resolve_model("whisper-tiny.en", cache))
    mesh = make_mesh(jax.devices()[:1], 1)
    encoder = load_encoder(bundle.config, bundle.tensor_source, mesh, "float32")
    decoder = load_decoder(bundle.config, bundle.tensor_source, mesh, "float32")
    return Transcriber(encoder, decoder, bundle.tokens, bundle.tokenizer)


def clip(name: str) -> np.ndarray:
    with wave.open(str(CLIPS / f"{name}.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return samples.astype(np.float32) / 32768.0


@pytest.mark.limit(600)
@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_real_speech_is_transcribed_as_by_the_numpy_program(whisper: Transcriber, name: str) -> None:
    assert whisper.text(clip(name)) == TRANSCRIPTS[name]


@pytest.mark.limit(600)
def test_speech_longer_than_a_window_is_cut_in_a_pause(whisper: Transcriber) -> None:
    """The clips one after another, with half a second between: two windows, and every clip's words in order."""
    pause = np.zeros(8_000, np.float32)
    order = [*TRANSCRIPTS, "0870"]
    audio = np.concatenate([part for name in order for part in (clip(name), pause)])
    assert 30 * 16_000 < audio.size < 60 * 16_000
    said = whisper.text(audio).lower()
    places = [said.find(words) for words in ("leisure to consider", "young man", "selfish", "amiable woman", "himself")]
    assert -1 not in places and places == sorted(places)
    assert said.count("leisure to consider") == 2
