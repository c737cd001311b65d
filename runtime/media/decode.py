"""One item to an array, through the pool. What a gateway calls.

A video is one job that reads its index, then as many jobs as there are parts, all at once; their frames are put together in order.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from triptych.runtime.core.errors import InvalidRequestError
from triptych.runtime.media.errors import DecoderLostError, MediaKindError
from triptych.runtime.media.identity import canonical, content_hash
from triptych.runtime.media.limits import MediaLimits, check_item, check_pixels
from triptych.runtime.media.pool import DecoderPool
from triptych.runtime.media.process import Job, Reply
from triptych.runtime.media.sniff import Kind
from triptych.runtime.media.source import MediaInput
from triptych.runtime.media.video_plan import PART_FRAMES, Run, VideoIndex, VideoParameters, choose_times, plan_parts

SPEECH_RATE = 16_000  # Hz, what speech encoders take


@dataclass(frozen=True)
class ImageParameters:
    """Nothing to choose yet: RGB, upright, over white, in its own size."""


@dataclass(frozen=True)
class AudioParameters:
    """How a sound is sampled.

    Attributes:
        rate: samples a second.
    """

    rate: int = SPEECH_RATE

    def __post_init__(self) -> None:
        if not 1000 <= self.rate <= 192_000:
            raise InvalidRequestError(f"rate is {self.rate}; expected 1000 to 192000 samples a second")


Parameters = ImageParameters | AudioParameters | VideoParameters

_KINDS: dict[type, Kind] = {ImageParameters: Kind.IMAGE, AudioParameters: Kind.AUDIO, VideoParameters: Kind.VIDEO}
DEFAULTS: dict[Kind, Parameters] = {
    Kind.IMAGE: ImageParameters(),
    Kind.AUDIO: AudioParameters(),
    Kind.VIDEO: VideoParameters(rate=1.0),
}
_VERSION = 1
"""Of what decoding gives: moves when the same file would give other values, so that no cache mixes both."""


@dataclass(frozen=True)
class Decoded:
    """One item, decoded.

    Attributes:
        kind: what it is.
        array: read-only. Image: [height, width, 3] uint8 RGB. Sound: [samples] float32 in [-1, 1], mono. Video: [frames, height, width, 3] uint8 RGB.
        times: of a video's frames, seconds from the beginning of the file; else empty.
    """

    kind: Kind
    array: np.ndarray
    times: tuple[float, ...] = ()


def identity(item: MediaInput, parameters: Parameters, processing: str = "") -> str:
    """The content hash of `item` under `parameters` and whatever a model does afterwards (`processing`, a canonical string). Known before decoding.

    A millisecond for some hundred kilobytes: large items belong into a thread (the hash lets go of the interpreter's lock).
    """
    text = canonical(f"{_KINDS[type(parameters)].value}/{_VERSION}", {**asdict(parameters), "processing": processing})
    return content_hash(item.data, text)


class MediaDecoder:
    """Decodes items under one set of limits. It owns nothing: the pool is the caller's."""

    def __init__(self, pool: DecoderPool, limits: MediaLimits, part_frames: int = PART_FRAMES):
        self._pool = pool
        self._limits = limits
        self._part_frames = part_frames

    async def decode(self, item: MediaInput, parameters: Parameters | None = None) -> Decoded:
        """`item` under `parameters` (None: `DEFAULTS`). May be cancelled at any time.

        Raises MediaError of every kind, MissingDecoderError, MediaPoolFullError, DecodeTimeoutError, DecoderLostError.
        """
        parameters = DEFAULTS[item.kind] if parameters is None else parameters
        if _KINDS[type(parameters)] is not item.kind:
            raise MediaKindError(
                f"the item is {item.type.value}; it cannot be decoded with {type(parameters).__name__}"
            )
        check_item(len(item.data), self._limits)
        if isinstance(parameters, VideoParameters):
            return await self._video(item, parameters)
        options = asdict(parameters)
        reply = await self._pool.run(self._job(item, item.kind.value, options))
        dtype, rank = ("uint8", 3) if item.kind is Kind.IMAGE else ("float32", 1)
        return Decoded(item.kind, _expect(reply.array, dtype, rank))

    async def _video(self, item: MediaInput, parameters: VideoParameters) -> Decoded:
        index = _index(await self._pool.run(self._job(item, "video_index", {})), self._limits)
        times = choose_times(index, parameters, self._limits)
        parts = plan_parts(index, times, self._pool.processes, self._part_frames)
        size = parameters.size or (index.width, index.height)
        jobs = [self._job(item, "video_frames", {"runs": _plain(runs), "size": size}) for runs in parts]
        # All are awaited even where one fails: cancelling a running job costs a process, and a damaged file must not cost several.
        replies = await asyncio.gather(*(self._pool.run(job, follows=True) for job in jobs), return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
        pieces = [_expect(reply.array, "uint8", 4) for reply in replies if isinstance(reply, Reply)]
        if [len(piece) for piece in pieces] != [sum(len(run.times) for run in runs) for runs in parts]:
            raise DecoderLostError("decoder processes returned another number of frames than asked for")
        frames = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        frames.flags.writeable = False
        return Decoded(Kind.VIDEO, frames, index.seconds(times))

    def _job(self, item: MediaInput, operation: str, options: dict[str, Any]) -> Job:
        limits = self._limits
        options = {"type": item.type.value, "limits": asdict(limits), **options}
        return Job(operation, item.data, options, limits.decode_seconds)


def _plain(runs: tuple[Run, ...]) -> list[Any]:
    return [[run.start, run.end, run.times] for run in runs]


def _expect(array: np.ndarray, dtype: str, rank: int) -> np.ndarray:
    """The array, if it is of that form: a process that decodes hostile files is not believed."""
    if array.dtype != dtype or array.ndim != rank or (rank > 1 and array.shape[-1] != 3):
        raise DecoderLostError(
            f"a decoder process returned {array.dtype} {array.shape}; expected {dtype} of rank {rank}"
        )
    return array


def _index(reply: Reply, limits: MediaLimits) -> VideoIndex:
    table, facts = reply.array, reply.facts
    numbers = [facts.get("width"), facts.get("height"), *(facts.get("time_base") or ())]
    if table.dtype != np.int64 or table.ndim != 2 or table.shape[1] != 2 or len(numbers) != 4:
        raise DecoderLostError("a decoder process returned no index of a video")
    if not len(table) or not all(type(n) is int and n > 0 for n in numbers):
        raise DecoderLostError("a decoder process returned no index of a video")
    width, height, numerator, denominator = numbers
    check_pixels(width, height, limits, "a frame of the video")
    return VideoIndex(table[:, 0], table[:, 1] == 1, Fraction(numerator, denominator), width, height)
