"""Videos to pieces: the index of the file first, then the frames that the model takes, decoded in parts and cut to patches by several processes.

Each step in time is a piece of its own, because encoders attend within one step only (Qwen2.5-VL's is two frames, others' one): a long video fans out over
all encode instances. The frames of a step may come from different processes, so these send the patches of single frames.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from triptych.models.errors import MediaShapeError
from triptych.models.multimodal.config import MultimodalConfig
from triptych.models.multimodal.plans import ImagePlan, plan_image
from triptych.models.multimodal.video import frame_count, frame_places
from triptych.runtime.core.media import MediaKind
from triptych.runtime.gateway.media.description import described
from triptych.runtime.gateway.media.pieces import Piece, checksum, embedding_grid, piece_hash
from triptych.runtime.media.decode import all_parts, read_index, runs_option
from triptych.runtime.media.errors import DecoderLostError, MediaKindError
from triptych.runtime.media.limits import MediaLimits
from triptych.runtime.media.pool import DecoderPool
from triptych.runtime.media.process import Job, Reply
from triptych.runtime.media.sniff import sniff
from triptych.runtime.media.video_plan import (
    PART_FRAMES,
    VideoIndex,
    check_sampled,
    plan_parts,
    seconds_shown,
    shown_times,
)


@dataclass(frozen=True)
class Frames:
    """The frames that a model takes of a video: when they begin, in the video's own units, and seconds from one to the next."""

    times: tuple[int, ...]
    spacing: float


class VideoProcessor:
    """Over the pool of a PooledProcessor, which owns it.

    Args:
        max_tokens: prompt tokens that a video may take: of a longer one fewer frames are taken. None: any.
    """

    def __init__(
        self,
        config: MultimodalConfig,
        limits: MediaLimits,
        pool: DecoderPool,
        max_tokens: int | None,
        part_frames: int = PART_FRAMES,
    ):
        self._config = config
        self._processing = config.video_processing
        self._limits = limits
        self._pool = pool
        self._max_tokens = max_tokens
        self._part_frames = part_frames
        self._description = described(replace(config, processing=self._processing.frame))

    @property
    def parameters(self) -> dict[str, str]:
        """What decides the pieces of a given file."""
        key = replace(self._config, processing=self._processing.frame).processing_key()
        return {"model": key, "video": f"{self._processing!r} {self._config.tokens_per_second} {self._max_tokens}"}

    async def pieces(self, data: bytes, identity: str) -> tuple[Piece, ...]:
        """Raises MediaError of every kind, MissingDecoderError, MediaPoolFullError, DecodeTimeoutError, DecoderLostError."""
        options = {"type": sniff(data).value, "limits": asdict(self._limits)}
        reply = await self._pool.run(Job("video_index", data, options, self._limits.decode_seconds))
        index = read_index(reply, self._limits)
        frames = await asyncio.to_thread(self._chosen, index)
        parts = plan_parts(index, frames.times, self._pool.processes, self._part_frames)
        options |= {"model": self._description, "size": (index.width, index.height)}
        jobs = [
            Job("video_patches", data, options | {"runs": runs_option(runs)}, self._limits.decode_seconds)
            for runs in parts
        ]
        replies = await all_parts(self._pool, jobs)
        counts = [sum(len(run.times) for run in runs) for runs in parts]
        return await asyncio.to_thread(self._cut, replies, counts, frames.spacing, identity)

    def _chosen(self, index: VideoIndex) -> Frames:
        times = shown_times(index)
        seconds, step = seconds_shown(index, times), self._config.vision.temporal_patch
        plan = self._plan(index.width, index.height, MediaKindError)
        processing = self._processing
        if self._max_tokens is not None:
            fitting = max(self._max_tokens // plan.tokens, 1) * step
            processing = replace(processing, most=min(processing.most, fitting))
        count = frame_count(processing, len(times), seconds, step)
        check_sampled(count, plan.views[0].size, self._limits)
        chosen = tuple(int(times[place]) for place in frame_places(len(times), count))
        return Frames(chosen, seconds / count)

    def _plan(self, width: int, height: int, error: type[Exception]) -> ImagePlan:
        try:
            return plan_image(self._processing.frame, self._config.vision, width, height)
        except MediaShapeError as wrong:
            raise error(f"a frame of the video: {wrong}") from wrong

    def _cut(self, replies: Sequence[Reply], counts: Sequence[int], spacing: float, identity: str) -> tuple[Piece, ...]:
        """The pieces of a whole video. Decoder processes read hostile bytes: what they say must agree with the plan for the size that they say."""
        vision, step = self._config.vision, self._config.vision.temporal_patch
        sizes = {(reply.facts.get("width"), reply.facts.get("height")) for reply in replies}
        ((width, height),) = sizes if len(sizes) == 1 else {(None, None)}
        if not isinstance(width, int) or not isinstance(height, int):
            raise DecoderLostError(f"decoder processes gave frames of the sizes {sizes!r}")
        plan = self._plan(width, height, DecoderLostError)
        patches = sum(grid.rows * grid.columns for grid in plan.grids)
        size = vision.patch_dim // step
        for reply, count in zip(replies, counts, strict=True):
            if reply.array.dtype != np.uint8 or reply.array.shape != (count, patches, size):
                raise DecoderLostError(
                    f"a decoder process gave {reply.array.dtype} {list(reply.array.shape)}; expected uint8 {[count, patches, size]}"
                )
        frames = [frame for reply in replies for frame in reply.array]
        frames += [frames[-1]] * (-len(frames) % step)  # the last step is filled up
        (grid,), (tokens,) = plan.grids, plan.piece_rows
        later = None if self._config.tokens_per_second is None else self._config.tokens_per_second * spacing * step
        pieces: list[Piece] = []
        for number in range(len(frames) // step):
            data = steps_patches(frames[number * step : (number + 1) * step], vision.channels).tobytes()
            pieces.append(
                Piece(
                    hash=piece_hash(identity, number, len(frames) // step),
                    kind=MediaKind.VIDEO,
                    tokens=tokens,
                    patches=vision.slots(grid.rows, grid.columns),
                    grid=embedding_grid(grid, tokens, vision.merge),
                    pixel_grid=(1, grid.rows, grid.columns),
                    shape=(patches, vision.patch_dim),
                    data=data,
                    checksum=checksum(data),
                    later=None if later is None or number == 0 else int(number * later),
                )
            )
        return tuple(pieces)


def steps_patches(frames: Sequence[np.ndarray], channels: int) -> np.ndarray:
    """Patches [patches, channels * frames * pixels] of one step in time, of those of its frames, [patches, channels * pixels] each."""
    parted = [frame.reshape(len(frame), channels, 1, -1) for frame in frames]
    return np.concatenate(parted, axis=2).reshape(len(frames[0]), -1)
