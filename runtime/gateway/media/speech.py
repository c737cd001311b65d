"""The processor of a speech model: a sound file to windows of samples, in a pool of decoder processes (runtime/media).

A window is one item of what the scheduler sees: one request transcribes one window. Its samples are what travels to the encode instance; log-mel is
computed there.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

import numpy as np

from triptych.models.speech.config import SAMPLE_RATE, WhisperConfig
from triptych.runtime.core.media import MediaKind
from triptych.runtime.gateway.media.pieces import Piece, checksum, piece_hash
from triptych.runtime.gateway.media.processor import OPERATIONS
from triptych.runtime.gateway.media.reading import read
from triptych.runtime.media.errors import DecoderLostError, MediaKindError
from triptych.runtime.media.identity import canonical, content_hash
from triptych.runtime.media.limits import MediaLimits, check_request
from triptych.runtime.media.pool import DecoderPool, PoolConfig
from triptych.runtime.media.process import Job, Reply
from triptych.runtime.media.sniff import sniff

VERSION = 1  # of how sounds are decoded and cut; a change of results must change it


class SpeechProcessor:
    """A `desk.Processor`; owns the pool. From one event loop; `identity` from any thread."""

    def __init__(self, model: WhisperConfig, limits: MediaLimits, pool: PoolConfig):
        self._model = model
        self._limits = limits
        self._pool = DecoderPool(dataclasses.replace(pool, operations=OPERATIONS))
        self._parameters = canonical(f"speech/{VERSION}", {"window": model.samples, "positions": model.audio_positions})

    def start(self) -> None:
        self._pool.start()

    def check_total(self, sizes: Sequence[int]) -> None:
        check_request(sizes, self._limits)

    def kind(self, data: bytes, declared: str) -> MediaKind:
        item = read(data, declared, self._limits)
        if item.kind.value != MediaKind.AUDIO:
            raise MediaKindError(f"the item is {item.type.value}; this model takes sound")
        return MediaKind.AUDIO

    def identity(self, data: bytes) -> str:
        return content_hash(data, self._parameters)

    async def process(self, data: bytes, kind: MediaKind, identity: str) -> tuple[Piece, ...]:
        options = {
            "type": sniff(data).value,
            "limits": dataclasses.asdict(self._limits),
            "rate": SAMPLE_RATE,
            "window": self._model.samples,
        }
        reply = await self._pool.run(Job("audio_windows", data, options, self._limits.decode_seconds))
        return await asyncio.to_thread(windows_of, reply, self._model, identity)

    async def close(self) -> None:
        await self._pool.close()


def windows_of(reply: Reply, model: WhisperConfig, identity: str) -> tuple[Piece, ...]:
    """The windows in what a decoder process sent. It read hostile bytes: what does not agree is refused.

    Raises DecoderLostError.
    """
    lengths, samples = reply.facts.get("lengths"), reply.array
    if (
        not isinstance(lengths, list)
        or not all(type(length) is int and 0 < length <= model.samples for length in lengths)
        or samples.dtype != np.float32
        or samples.shape != (sum(lengths),)
        or not np.isfinite(samples).all()
    ):
        raise DecoderLostError(
            f"a decoder process gave {samples.dtype} {list(samples.shape)} as windows of {lengths!r:.100}"
        )
    positions, pieces = model.audio_positions, []
    for index, window in enumerate(np.split(samples, np.cumsum(lengths)[:-1])):
        data = window.tobytes()
        pieces.append(
            Piece(
                hash=piece_hash(identity, index, len(lengths)),
                kind=MediaKind.AUDIO,
                tokens=positions,
                patches=positions,
                grid=(1, 1, positions),
                pixel_grid=(window.size, 1, 1),
                shape=(window.size,),
                data=data,
                checksum=checksum(data),
                attended=True,
            )
        )
    return tuple(pieces)
