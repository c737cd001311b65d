"""The toy Whisper of random weights: it opens by name, and what it says depends on what it hears and on the prompt."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from triptych.models.errors import UnsupportedModelError
from triptych.models.hub.resolve import resolve_model
from triptych.models.hub.text import open_text
from triptych.models.speech.bundle import SpeechBundle, open_speech
from triptych.models.speech.load import load_decoder, load_encoder
from triptych.models.speech.transcribe import Transcriber
from triptych.sharding.mesh import make_mesh


@pytest.fixture(scope="module")
def bundle() -> SpeechBundle:
    return open_speech(resolve_model("dummy:toy-whisper", Path("unused")))


def sounds() -> list[np.ndarray]:
    time = np.arange(16_000) / 16_000
    return [(0.5 * np.sin(2 * np.pi * hz * time)).astype(np.float32) for hz in (200.0, 900.0, 4_000.0)]


def test_it_says_letters_that_depend_on_the_sound_and_on_the_prompt(bundle: SpeechBundle) -> None:
    mesh = make_mesh(jax.devices()[:1], 1)
    encoder = load_encoder(bundle.config, bundle.tensor_source, mesh, "float32")
    decoder = load_decoder(bundle.config, bundle.tensor_source, mesh, "float32")
    model = Transcriber(encoder, decoder, bundle.tokens, bundle.tokenizer)
    said = [model.text(sound, "en") for sound in sounds()]
    assert len(set(said)) == 3 and model.text(sounds()[0], "de", "translate") != said[0]
    for text in said:
        assert len(text) > 10 and len(set(text)) > 2 and set(text) <= set("abcdefghijklmnopqrstuvwxyz ")


def test_slices_are_those_of_the_whole(bundle: SpeechBundle) -> None:
    source = bundle.tensor_source
    for name in source.names():
        whole = source.read(name, (slice(None),) * len(source.shape(name)))
        assert whole.shape == source.shape(name) and whole.dtype == np.float32
        np.testing.assert_array_equal(source.read(name, (slice(3, 9),)), whole[3:9])


def test_every_tp_size_that_fits_loads_it(bundle: SpeechBundle) -> None:
    for tp in (1, 2, 4):
        mesh = make_mesh(jax.devices()[:tp], tp)
        assert load_decoder(bundle.config, bundle.tensor_source, mesh, "float32").nbytes() > 0


def test_it_is_no_text_model() -> None:
    with pytest.raises(UnsupportedModelError, match="is no text model"):
        open_text(resolve_model("dummy:toy-whisper", Path("unused")))
