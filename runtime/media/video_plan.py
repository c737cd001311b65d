"""Which frames of a video are wanted, and how several decoder processes share the work. Numbers only; no video library.

A frame is named by the time at which it begins, in the stream's own units (whole numbers, so nothing is rounded twice). A *run* begins at a key frame and ends
before the next one: it can be decoded without the rest. Key frames without wanted frames before the next one are skipped, and a run is decoded only as far as
its last wanted frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from triptych.runtime.core.errors import InvalidRequestError
from triptych.runtime.media.errors import CorruptMediaError, MediaLimitError
from triptych.runtime.media.limits import MediaLimits

PART_FRAMES = 32  # frames to decode that are worth a process of their own: copying the file to it takes about as long


@dataclass(frozen=True)
class VideoParameters:
    """Which frames of a video to take. With neither `rate` nor `count`: all.

    Attributes:
        rate: frames a second of the video's time; frames are never repeated, so a video of fewer gives all it has.
        count: frames spread evenly from the first to the last; a video of fewer gives all it has.
        size: (width, height) to scale every frame to, bicubic; None: as coded.
    """

    rate: float | None = None
    count: int | None = None
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.rate is not None and self.count is not None:
            raise InvalidRequestError("both rate and count of a video's frames are given; expected one of them")
        if self.rate is not None and not 0 < self.rate < 1000:
            raise InvalidRequestError(f"rate is {self.rate}; expected frames a second between 0 and 1000")
        if self.count is not None and self.count < 1:
            raise InvalidRequestError(f"count is {self.count}; expected at least one frame")
        if self.size is not None and min(self.size) < 1:
            raise InvalidRequestError(f"size is {self.size}; expected a width and a height of at least one pixel")


@dataclass(frozen=True)
class VideoIndex:
    """What a container says of its video.

    Attributes:
        times: [packets] int64, when each packet's frame begins, in decoding order; units of `time_base`.
        keys: [packets] bool, whether it can be decoded without those before.
        time_base: seconds of one unit.
        width, height: pixels as coded.
    """

    times: np.ndarray
    keys: np.ndarray
    time_base: Fraction
    width: int
    height: int

    def seconds(self, times: Sequence[int]) -> tuple[float, ...]:
        """Times as seconds from the beginning of the file."""
        return tuple(float(time * self.time_base) for time in times)


@dataclass(frozen=True)
class Run:
    """Wanted frames between two key frames.

    Attributes:
        start: place of the key frame's packet in decoding order.
        end: when the next key frame begins; None: there is none.
        times: the wanted ones, rising; each at or after the key frame and before `end`.
    """

    start: int
    end: int | None
    times: tuple[int, ...]


def choose_times(index: VideoIndex, parameters: VideoParameters, limits: MediaLimits) -> tuple[int, ...]:
    """When the wanted frames begin, rising, without repeats.

    With `rate`: the frames shown at 0, 1/rate, 2/rate, … after the first frame. With `count`: those at equal distances in the order of frames, first and
    last included (a count of one: the middle one). Raises MediaLimitError for too many frames or pixels, CorruptMediaError if there is none.
    """
    times = shown_times(index)
    if parameters.rate is not None:
        times = times[_at_rate([int(time - times[0]) for time in times], Fraction(parameters.rate) * index.time_base)]
    elif parameters.count is not None and parameters.count < len(times):
        last = len(times) - 1
        places = np.linspace(0, last, parameters.count) if parameters.count > 1 else np.array([last / 2])
        times = times[np.round(places).astype(int)]
    check_sampled(len(times), parameters.size or (index.width, index.height), limits)
    return tuple(int(time) for time in times)


def shown_times(index: VideoIndex) -> np.ndarray:
    """[frames] int64: when each frame that can be decoded begins, rising, without repeats. Raises CorruptMediaError if there is none."""
    begins = _key_times(index)
    return np.unique(index.times[index.times >= begins[0]])  # what comes before the first key frame cannot be decoded


def seconds_shown(index: VideoIndex, times: np.ndarray) -> float:
    """How long frames that begin at `times` are shown; the last one as long as the others on average, a single one for no time."""
    if len(times) < 2:
        return 0.0
    return float((int(times[-1]) - int(times[0])) * index.time_base) * len(times) / (len(times) - 1)


def plan_parts(
    index: VideoIndex, times: Sequence[int], parts: int, part_frames: int = PART_FRAMES
) -> tuple[tuple[Run, ...], ...]:
    """The runs that hold `times`, dealt in order to at most `parts` processes so that each decodes about as many frames.

    Args:
        part_frames: frames to decode that are worth a process; a shorter video goes to fewer.
    """
    runs = _runs(index, times)
    costs = np.array([_cost(index, run) for run in runs])
    parts = max(1, min(parts, len(runs), int(costs.sum()) // part_frames))
    middles = np.cumsum(costs) - costs / 2  # a run goes where the middle of its work falls
    owners = np.minimum((middles * parts / costs.sum()).astype(int), parts - 1)
    dealt = [tuple(run for run, owner in zip(runs, owners, strict=True) if owner == part) for part in range(parts)]
    return tuple(part for part in dealt if part)


def _at_rate(offsets: Sequence[int], step: Fraction) -> np.ndarray:
    """[frames] bool: whether one of the moments k / step (k = 0, 1, …) falls into the frame's time.

    In whole numbers: a float's rounding would take the frame before the wanted one, and a broken file's times may be astronomical.
    """
    over, under = step.limit_denominator(10**12).as_integer_ratio()
    ticks = [-(-offset * over // under) for offset in offsets]  # the first moment at or after the frame's beginning
    shown = [tick * under < after * over for tick, after in zip(ticks, offsets[1:], strict=False)]
    return np.array([*shown, ticks[-1] * under == offsets[-1] * over])


def check_sampled(count: int, size: tuple[int, int], limits: MediaLimits) -> None:
    """Raises MediaLimitError if so many frames of (width, height) are too many, or too large together."""
    width, height = size
    if count > limits.sampled_frames:
        raise MediaLimitError(
            f"{count} frames of the video are asked for; expected at most {limits.sampled_frames}: give a rate or a count"
        )
    if count * width * height > limits.sampled_pixels:
        raise MediaLimitError(
            f"{count} frames of {width} x {height} are asked for; expected at most {limits.sampled_pixels} pixels together: "
            "give a lower rate, count or size"
        )


def _keys(index: VideoIndex) -> np.ndarray:
    """Places of the key frames whose times rise; another order cannot be cut into runs. At least one."""
    places = np.flatnonzero(index.keys)
    if not len(places):
        raise CorruptMediaError("the video has no key frame")
    times = index.times[places]
    highest = np.maximum.accumulate(times)
    rising = np.concatenate(([True], times[1:] > highest[:-1]))
    return places[rising]


def _key_times(index: VideoIndex) -> np.ndarray:
    return index.times[_keys(index)]


def _runs(index: VideoIndex, times: Sequence[int]) -> list[Run]:
    places, begins = _keys(index), _key_times(index)
    owners = np.searchsorted(begins, np.asarray(times, np.int64), side="right") - 1
    runs = []
    for owner in np.unique(owners):
        wanted = tuple(int(time) for time, mine in zip(times, owners == owner, strict=True) if mine)
        end = int(begins[owner + 1]) if owner + 1 < len(begins) else None
        runs.append(Run(int(places[owner]), end, wanted))
    return runs


def _cost(index: VideoIndex, run: Run) -> int:
    """Frames to decode."""
    after = index.times[run.start :]
    return int(((after >= index.times[run.start]) & (after <= run.times[-1])).sum())
