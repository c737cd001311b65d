"""The log-mel spectrogram against transformers' feature extractor and against a direct computation in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.speech.toy import golden, toy_config, wave
from triptych.models.speech.mel import log_mel, mel_filters


def mel_of_hz(hz: float) -> float:
    return 3.0 * hz / 200.0 if hz < 1000.0 else 15.0 + 27.0 * np.log(hz / 1000.0) / np.log(6.4)


def reference(samples: np.ndarray, num_mels: int, frames: int) -> np.ndarray:
    """Frame by frame, with a DFT by its definition and triangles found by bisection of the scale."""
    signal = np.zeros(frames * 160)
    signal[: samples.size] = samples
    hz = [0.0] * (num_mels + 2)
    for index in range(num_mels + 2):
        low, high, wanted = 0.0, 8000.0, mel_of_hz(8000.0) * index / (num_mels + 1)
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if mel_of_hz(middle) < wanted else (low, middle)
        hz[index] = low
    filters = np.zeros((201, num_mels))
    for at in range(num_mels):
        left, peak, right = hz[at : at + 3]
        rising = [left, peak, right]
        filters[:, at] = np.interp(np.arange(201) * 40.0, rising, [0.0, 2.0 / (right - left), 0.0])
    dft = np.exp(-2j * np.pi * np.outer(np.arange(400), np.arange(201)) / 400)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    out = np.zeros((frames, num_mels))
    for frame in range(frames):
        at = np.abs(np.arange(frame * 160 - 200, frame * 160 + 200))
        at = np.where(at >= signal.size, 2 * (signal.size - 1) - at, at)
        out[frame] = np.log10(np.maximum(np.abs((signal[at] * hann) @ dft) ** 2 @ filters, 1e-10))
    return (np.maximum(out, out.max() - 8) + 4) / 4


def test_the_spectrogram_is_that_of_transformers() -> None:
    config = toy_config()
    out = jax.jit(log_mel, static_argnums=(1, 2))(wave(), config.num_mels, config.frames)
    np.testing.assert_allclose(out, golden()["mel"], atol=2e-5)


def test_a_whole_window_of_eighty_bins_is_that_of_transformers() -> None:
    out = jax.jit(log_mel, static_argnums=(1, 2))(wave(), 80, 3000)
    assert out.shape == (3000, 80) and out.dtype == jnp.float32
    np.testing.assert_allclose(out[::50], golden()["real_mel"], atol=2e-5)


@pytest.mark.parametrize(("count", "num_mels"), [(1, 4), (161, 13), (6400, 128)])
def test_the_spectrogram_is_that_of_a_direct_computation(count: int, num_mels: int) -> None:
    samples = np.random.default_rng(count).standard_normal(count).astype(np.float32) * 0.1
    np.testing.assert_allclose(log_mel(jnp.asarray(samples), num_mels, 40), reference(samples, num_mels, 40), atol=1e-4)


def test_silence_is_finite_and_level() -> None:
    out = np.asarray(log_mel(jnp.zeros(100), 16, 10))
    np.testing.assert_allclose(out, -1.5, atol=1e-6)


def test_the_filters_are_triangles_of_area_one_in_order() -> None:
    filters = mel_filters(20)
    assert filters.shape == (201, 20) and filters.dtype == np.float32 and (filters >= 0).all()
    assert (np.diff(filters.argmax(axis=0)) > 0).all()
    # Wide filters have many bins of 40 Hz, so that their sum is close to the integral.
    np.testing.assert_allclose(filters[:, 12:].sum(axis=0) * 40.0, 1.0, atol=0.01)


@pytest.mark.parametrize("count", [0, 1601])
def test_nothing_and_too_much_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 1600 samples, got {count}"):
        log_mel(jnp.zeros(count), 16, 10)
