"""Long audio cut into windows that a Whisper encoder takes. Numpy only: the cut is made at the edge, before any device.

A window is cut at the quietest tenth of a second of its last five, so that few words are cut in two; windows do not
overlap, and each is transcribed without knowing the others. (The paper moves on by predicted timestamps instead.)
"""

from __future__ import annotations

import numpy as np

from triptych.models.speech.config import SAMPLE_RATE

__all__ = ["split_windows"]

# How far before the end of a full window the cut may lie, and how long a pause it looks for.
_SEARCH = 5 * SAMPLE_RATE
_PAUSE = SAMPLE_RATE // 10

# A rest shorter than this is no word: it would only make the model invent one.
_SHORTEST = SAMPLE_RATE // 10


def split_windows(samples: np.ndarray, window: int) -> list[np.ndarray]:
    """Parts of at most `window` samples of 16 kHz mono audio, in order, that make up the whole.

    A rest of less than a tenth of a second is left out. Raises ValueError if `samples` is not one axis of finite numbers,
    or holds nothing.
    """
    if samples.ndim != 1 or samples.size == 0:
        raise ValueError(f"audio is one axis of samples and not empty, got shape {samples.shape}")
    if not np.isfinite(samples).all():
        raise ValueError("audio holds samples that are not finite numbers")
    parts = []
    while samples.size > window:
        at = _quietest(samples[:window])
        parts.append(samples[:at])
        samples = samples[at:]
    if not parts or samples.size >= _SHORTEST:
        parts.append(samples)
    return parts


def _quietest(window: np.ndarray) -> int:
    """The middle of the quietest pause near the end of a window; the last of several."""
    pause = min(_PAUSE, window.size)
    tail = window[-min(_SEARCH, window.size // 2) - pause :].astype(np.float64)
    sums = np.concatenate(([0.0], np.square(tail).cumsum()))
    energy = sums[pause:] - sums[:-pause]
    # The running sum is exact to about 1e-12 of the total: what differs by less is equally quiet.
    equal = np.flatnonzero(energy <= energy.min() + 1e-9 * max(sums[-1], 1e-300))
    return window.size - tail.size + int(equal[-1]) + pause // 2
