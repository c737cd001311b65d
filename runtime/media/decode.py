"""One item to an array, through the pool. What a gateway calls.

A video is one job that reads its index, then as many jobs as there are parts, all at once; their frames are put together in order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from triptych.runtime.core.errors import InvalidRequestError, TriptychError
from triptych.runtime.media.errors import DecoderLostError, MediaKindError
from triptych.runtime.media.identity import canonical, content_hash
from triptych.runtime.media.limits import MediaLimits, check_item, check_pixels, check_request
from triptych.runtime.media.pool import DecoderPool, Ticket
from triptych.runtime.media.process import Job, Reply
from triptych.runtime.media.sniff import Kind
from triptych.runtime.media.source import MediaInput
from triptych.runtime.media.video_plan import PART_FRAMES, Run, VideoIndex, VideoParameters, choose_times, plan_parts

DEFAULT_FRAME_RATE = 1.0  # frames a second of a video
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
    Kind.VIDEO: VideoParameters(rate=DEFAULT_FRAME_RATE),
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
        first = self._first(item, parameters)
        return await self._rest(item, parameters, self._pool.submit([first])[0])

    async def decode_all(self, items: Sequence[tuple[MediaInput, Parameters | None]]) -> list[Decoded]:
        """The items of one request, in order: admitted together or refused together, and decoded side by side.

        Raises as `decode`, naming the first item that failed; MediaLimitError for too many items or too many bytes together.
        """
        check_request([len(item.data) for item, _ in items], self._limits)
        jobs = []
        for place, (item, parameters) in enumerate(items):
            with _named(place, len(items)):
                jobs.append(self._first(item, parameters))
        tickets = self._pool.submit(jobs)
        try:
            rests = (self._rest(*item, ticket) for item, ticket in zip(items, tickets, strict=True))
            results = await asyncio.gather(*rests, return_exceptions=True)
        finally:
            for ticket in tickets:  # cancelled before their turn to be awaited came
                self._pool.drop(ticket)
        decoded: list[Decoded] = []
        for place, result in enumerate(results):
            with _named(place, len(items)):
                if isinstance(result, BaseException):
                    raise result
                decoded.append(result)
        return decoded

    async def run(self, item: MediaInput, operation: str, options: Mapping[str, Any]) -> Reply:
        """Any other operation of the pool's table (`PoolConfig.operations`) on `item`: decoding with what comes after it in one go, say.

        `options` are plain JSON values; "type" and "limits" are added. Raises as `decode`.
        """
        check_item(len(item.data), self._limits)
        return await self._pool.run(self._job(item, operation, dict(options)))

    def _first(self, item: MediaInput, parameters: Parameters | None) -> Job:
        """The item's first job; for all but videos there is no other."""
        parameters = DEFAULTS[item.kind] if parameters is None else parameters
        if _KINDS[type(parameters)] is not item.kind:
            raise MediaKindError(
                f"the item is {item.type.value}; it cannot be decoded with {type(parameters).__name__}"
            )
        check_item(len(item.data), self._limits)
        if isinstance(parameters, VideoParameters):
            return self._job(item, "video_index", {})
        return self._job(item, item.kind.value, asdict(parameters))

    async def _rest(self, item: MediaInput, parameters: Parameters | None, first: Ticket) -> Decoded:
        reply = await self._pool.result(first)
        if item.kind is Kind.VIDEO:
            chosen = parameters if isinstance(parameters, VideoParameters) else VideoParameters(rate=DEFAULT_FRAME_RATE)
            return await self._frames(item, chosen, read_index(reply, self._limits))
        dtype, rank = ("uint8", 3) if item.kind is Kind.IMAGE else ("float32", 1)
        return Decoded(item.kind, _expect(reply.array, dtype, rank))

    async def _frames(self, item: MediaInput, parameters: VideoParameters, index: VideoIndex) -> Decoded:
        times = choose_times(index, parameters, self._limits)
        parts = plan_parts(index, times, self._pool.processes, self._part_frames)
        size = parameters.size or (index.width, index.height)
        jobs = [self._job(item, "video_frames", {"runs": runs_option(runs), "size": size}) for runs in parts]
        pieces = []
        for reply, runs in zip(await all_parts(self._pool, jobs), parts, strict=True):
            pieces.append(_expect(reply.array, "uint8", 4))
            if len(reply.array) != sum(len(run.times) for run in runs):
                raise DecoderLostError("a decoder process returned another number of frames than asked for")
        frames = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        frames.flags.writeable = False
        return Decoded(Kind.VIDEO, frames, index.seconds(times))

    def _job(self, item: MediaInput, operation: str, options: dict[str, Any]) -> Job:
        limits = self._limits
        options = {"type": item.type.value, "limits": asdict(limits), **options}
        return Job(operation, item.data, options, limits.decode_seconds)


@contextmanager
def _named(place: int, count: int) -> Iterator[None]:
    """Errors say which of several items they are about."""
    try:
        yield
    except TriptychError as error:
        if count == 1:
            raise
        message = f"media item {place + 1} of {count}: {error.message}"
        raise type(error)(message, retry_after=error.retry_after) from None


async def all_parts(pool: DecoderPool, jobs: Sequence[Job]) -> list[Reply]:
    """The results of jobs that follow an item's first one, in order. Raises what the first of them that failed raises."""
    tickets = pool.submit(jobs, follows=True)
    try:
        # All are awaited even where one fails: dropping a running job costs a process, and a damaged file must not cost several.
        replies = await asyncio.gather(*map(pool.result, tickets), return_exceptions=True)
    finally:
        for ticket in tickets:
            pool.drop(ticket)
    found: list[Reply] = []
    for reply in replies:
        if isinstance(reply, BaseException):
            raise reply
        found.append(reply)
    return found


def runs_option(runs: Sequence[Run]) -> list[Any]:
    """Runs as plain values, for a job's options."""
    return [[run.start, run.end, run.times] for run in runs]


def _expect(array: np.ndarray, dtype: str, rank: int) -> np.ndarray:
    """The array, if it is of that form: a process that decodes hostile files is not believed."""
    if array.dtype != dtype or array.ndim != rank or (rank > 1 and array.shape[-1] != 3):
        raise DecoderLostError(
            f"a decoder process returned {array.dtype} {array.shape}; expected {dtype} of rank {rank}"
        )
    return array


def read_index(reply: Reply, limits: MediaLimits) -> VideoIndex:
    """What a decoder process said of a video, if it can be. Raises DecoderLostError, MediaLimitError."""
    table, facts = reply.array, reply.facts
    numbers = [facts.get("width"), facts.get("height"), *(facts.get("time_base") or ())]
    if table.dtype != np.int64 or table.ndim != 2 or table.shape[1] != 2 or len(numbers) != 4:
        raise DecoderLostError("a decoder process returned no index of a video")
    if not len(table) or not all(type(n) is int and n > 0 for n in numbers):
        raise DecoderLostError("a decoder process returned no index of a video")
    width, height, numerator, denominator = numbers
    check_pixels(width, height, limits, "a frame of the video")
    return VideoIndex(table[:, 0], table[:, 1] == 1, Fraction(numerator, denominator), width, height)
