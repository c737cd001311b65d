"""Whisper's encoder as an engine takes it: windows of samples in, entries of cross-attention out.

An item is one window of at most 30 s. Its samples travel as they are; silence is put behind them here. A bucket has room for so many whole windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from triptych.models.errors import MediaShapeError
from triptych.models.kv import KVGroup
from triptych.models.speech.kv import whisper_kv_groups
from triptych.models.speech.listener import WhisperListener
from triptych.models.speech.load import LoadedWhisper
from triptych.runtime.engine.buckets import powers_of_two
from triptych.runtime.engine.shelf import Pixels


class SpeechMediaEncoder:
    """A `MediaEncoder`. The grid of an item is (samples, 1, 1); a slot is one of the encoder's positions, and all of a window's count."""

    def __init__(self, loaded: LoadedWhisper[WhisperListener]):
        self._loaded = loaded
        self._config = loaded.config

    @property
    def params(self) -> tuple[jax.Array, ...]:
        return self._loaded.params

    @property
    def abstract(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        return self._loaded.structure.abstract

    @property
    def pixel_dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def group(self, dtype: str) -> KVGroup:
        return whisper_kv_groups(self._config, dtype)[1]

    def patch_shape(self, grid: tuple[int, int, int]) -> tuple[int, ...]:
        samples, *others = grid
        if not 0 < samples <= self._config.samples or others != [1, 1]:
            raise MediaShapeError(f"a window is [1 to {self._config.samples}, 1, 1] samples, got {list(grid)}")
        return (samples,)

    def slots(self, grid: tuple[int, int, int]) -> int:
        return self._config.audio_positions

    def sizes(self, limit: int) -> tuple[int, ...]:
        return tuple(count * self._config.audio_positions for count in powers_of_two(self._windows(limit)))

    def rows(self, slots: int) -> int:
        return slots

    def empty(self, slots: int) -> Any:
        return np.zeros((self._windows(slots), self._config.samples), np.float32)

    def pack(self, items: Sequence[Pixels], slots: int) -> tuple[Any, tuple[int, ...]]:
        packed = self.empty(slots)
        if len(items) > len(packed):
            raise ValueError(f"{len(items)} windows do not fit {len(packed)}")
        for window, item in zip(packed, items, strict=False):
            window[: len(item.patches)] = item.patches
        return packed, (self._config.audio_positions,) * len(items)

    def apply(self, params: Sequence[jax.Array], packed: Any) -> Any:
        return self._loaded.merge(params)(packed)

    def _windows(self, slots: int) -> int:
        """Whole windows in so many slots. Raises MediaShapeError if there is no room for one."""
        if slots < self._config.audio_positions:
            raise MediaShapeError(f"{slots} slots are less than a window's {self._config.audio_positions}")
        return slots // self._config.audio_positions
