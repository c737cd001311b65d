"""Encoder and decoder against transformers: states and logits of a tiny random model, on one device and on several."""

import jax
import numpy as np
import pytest

from tests.models.speech.paged import PagedWhisper
from tests.models.speech.toy import golden, toy_config, toy_decoder, toy_encoder, wave
from triptych.models.speech.transcribe import encode

# float32 throughout: what differs is the order of sums.
TOLERANCE = 3e-4
# Three heads: as they are and padded stay in the quick run.
TP = [1, 2, *(pytest.param(tp, marks=pytest.mark.slow) for tp in (3, 4))]


@pytest.mark.parametrize("tp", TP)
def test_the_encoders_states_are_those_of_transformers(tp: int) -> None:
    loaded = toy_encoder(tp)
    states = jax.jit(lambda params, samples: encode(loaded.merge(params), samples))(loaded.params, wave())
    np.testing.assert_allclose(states, golden()["states"], atol=TOLERANCE)


@pytest.mark.parametrize("tp", TP)
def test_the_decoders_logits_over_pages_are_those_of_transformers(tp: int) -> None:
    """A prompt in three chunks, then token by token."""
    paged, prompt = PagedWhisper(toy_decoder(tp)), golden()["prompt"].tolist()
    row = paged.hear(golden()["states"])
    chunks = [paged.step([], [(row, prompt[start : start + 3])])[0] for start in (0, 3, 6)]
    decoded = [paged.step([(row, token)], [])[0] for token in prompt[9:]]
    logits = np.concatenate([*chunks, *decoded])
    assert logits.shape == (len(prompt), toy_config().vocab_size)
    np.testing.assert_allclose(logits, golden()["logits"], atol=TOLERANCE)


def test_a_window_of_another_size_is_refused() -> None:
    loaded = toy_encoder()
    with pytest.raises(ValueError, match="100 frames of 16 mel bins, got"):
        loaded.merge(loaded.params)(np.zeros((1, 98, 16), np.float32))  # pyright: ignore[reportArgumentType]


def test_windows_of_a_batch_do_not_mix() -> None:
    loaded = toy_encoder()
    encoder = jax.jit(lambda params, mels: loaded.merge(params)(mels))
    mels = np.random.default_rng(0).standard_normal((3, 100, 16)).astype(np.float32)
    together = encoder(loaded.params, mels)
    apart = [encoder(loaded.params, mels[at : at + 1])[0] for at in range(3)]
    np.testing.assert_allclose(together, np.stack(apart), atol=1e-5)


def test_bfloat16_stays_near_the_golden() -> None:
    loaded = toy_encoder(dtype="bfloat16")
    states = jax.jit(lambda params, samples: encode(loaded.merge(params), samples))(loaded.params, wave())
    assert states.dtype == "bfloat16"
    # Eight bits a number and a few roundings a layer, on states of order one.
    assert np.abs(np.asarray(states, np.float32) - golden()["states"]).mean() < 0.05
