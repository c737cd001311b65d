"""Log-mel spectrograms as Whisper was trained on them: 25 ms windows every 10 ms, mel bins of the Slaney scale.

The filter bank is computed, not stored. Frequencies are linear in mel up to 1 kHz and logarithmic above; each filter is a
triangle of area one (Slaney, Auditory Toolbox, 1998). Powers are clamped to eight decades below the window's loudest bin,
then scaled to about [-1, 1] (arXiv 2212.04356, section 2.2).
"""

from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from triptych.models.speech.config import HOP, SAMPLE_RATE

FFT_SIZE = 400  # 25 ms

# The Slaney scale: 200/3 Hz a mel up to 1 kHz (mel 15); from there 27 mels for each factor of 6.4.
_LINEAR_HZ = 200.0 / 3.0
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _LINEAR_HZ
_LOG_STEP = np.log(6.4) / 27.0

_SMALLEST_POWER = 1e-10
_DECADES = 8.0


@lru_cache
def mel_filters(num_mels: int) -> np.ndarray:
    """The filter bank [FFT_SIZE // 2 + 1, num_mels], float32: power of each FFT bin to power of each mel bin."""
    edges = _mel_to_hz(np.linspace(0.0, _hz_to_mel(SAMPLE_RATE / 2), num_mels + 2))
    bins = np.linspace(0.0, SAMPLE_RATE / 2, FFT_SIZE // 2 + 1)[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre))
    return (np.maximum(triangles, 0.0) * 2.0 / (high - low)).astype(np.float32)


def log_mel(samples: Float[Array, "samples"], num_mels: int, frames: int) -> Float[Array, "frames mels"]:
    """The features of one window of `frames` * 160 samples at 16 kHz; what is missing at the end is silence.

    `samples` are float32 in [-1, 1]. Raises ValueError if there are none, or more than the window holds.
    """
    count, window = samples.shape[0], frames * HOP
    if not 0 < count <= window:
        raise ValueError(f"a window holds 1 to {window} samples, got {count}; cut longer audio first (windows.py)")
    padded = jnp.pad(samples.astype(jnp.float32), (0, window - count))
    # Frame t is centred on sample t * HOP: half a frame is mirrored at both ends.
    mirrored = jnp.pad(padded, FFT_SIZE // 2, mode="reflect")
    slots = jnp.arange(frames)[:, None] * HOP + jnp.arange(FFT_SIZE)[None, :]
    hann = jnp.asarray(np.hanning(FFT_SIZE + 1)[:-1], jnp.float32)
    spectrum = jnp.fft.rfft(mirrored[slots] * hann, axis=1)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    mels = jnp.matmul(power, jnp.asarray(mel_filters(num_mels)), precision="highest")
    decades = jnp.log10(jnp.maximum(mels, _SMALLEST_POWER))
    return (jnp.maximum(decades, decades.max() - _DECADES) + 4.0) / 4.0


def _hz_to_mel(hz: float) -> float:
    if hz < _BREAK_HZ:
        return hz / _LINEAR_HZ
    return _BREAK_MEL + float(np.log(hz / _BREAK_HZ)) / _LOG_STEP


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    above = _BREAK_HZ * np.exp((mel - _BREAK_MEL) * _LOG_STEP)
    return np.where(mel < _BREAK_MEL, mel * _LINEAR_HZ, above)
