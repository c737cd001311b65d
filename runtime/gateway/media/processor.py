"""The processor of a served model: bytes to pieces in a pool of decoder processes (runtime/media), which decode and process in one go."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

import numpy as np

from triptych.models.errors import MediaShapeError
from triptych.models.multimodal.config import MultimodalConfig
from triptych.runtime.core.media import MediaKind
from triptych.runtime.gateway.media.description import described
from triptych.runtime.gateway.media.pieces import Piece, checksum, embedding_grid, piece_hash
from triptych.runtime.gateway.media.reading import read
from triptych.runtime.gateway.media.video import VideoProcessor
from triptych.runtime.gateway.model import MediaModel
from triptych.runtime.media.errors import DecoderLostError, MediaKindError
from triptych.runtime.media.identity import canonical, content_hash
from triptych.runtime.media.limits import MediaLimits, check_request
from triptych.runtime.media.pool import DecoderPool, PoolConfig
from triptych.runtime.media.process import Job, Reply
from triptych.runtime.media.sniff import Kind, sniff

OPERATIONS = "triptych.runtime.gateway.media.operations:OPERATIONS"
VERSION = 1  # of how media are decoded and processed; a change of results must change it


class PooledProcessor:
    """Owns the pool. From one event loop; `identity` from any thread.

    Args:
        max_video_tokens: prompt tokens that a video may take; see VideoProcessor.
    """

    def __init__(self, model: MediaModel, limits: MediaLimits, pool: PoolConfig, max_video_tokens: int | None = None):
        self._model = model
        self._limits = limits
        self._pool = DecoderPool(dataclasses.replace(pool, operations=OPERATIONS))
        self._description = described(model.config)
        self._video = VideoProcessor(model.config, limits, self._pool, max_video_tokens)
        self._parameters = {
            Kind.IMAGE: canonical(f"image/{VERSION}", {"model": model.config.processing_key()}),
            Kind.VIDEO: canonical(f"video/{VERSION}", self._video.parameters),
        }

    def start(self) -> None:
        self._pool.start()

    def check_total(self, sizes: Sequence[int]) -> None:
        check_request(sizes, self._limits)

    def kind(self, data: bytes, declared: str) -> MediaKind:
        item, kinds = read(data, declared, self._limits), self._model.kinds
        kind = MediaKind(item.kind.value)
        if kind not in kinds:
            raise MediaKindError(f"the item is {item.type.value}; this model takes {' and '.join(kinds)}")
        return kind

    def identity(self, data: bytes) -> str:
        return content_hash(data, self._parameters[sniff(data).kind])

    async def process(self, data: bytes, kind: MediaKind, identity: str) -> tuple[Piece, ...]:
        if kind is MediaKind.VIDEO:
            return await self._video.pieces(data, identity)
        options = {
            "type": sniff(data).value,
            "limits": dataclasses.asdict(self._limits),
            "model": self._description,
        }
        reply = await self._pool.run(Job("image_pieces", data, options, self._limits.decode_seconds))
        return await asyncio.to_thread(pieces_of, reply, self._model.config, kind, identity)

    async def close(self) -> None:
        await self._pool.close()


def pieces_of(reply: Reply, config: MultimodalConfig, kind: MediaKind, identity: str) -> tuple[Piece, ...]:
    """The pieces in what a decoder process sent. It read hostile bytes, so what it says must agree with the plan for the size that it says.

    Raises DecoderLostError if it does not.
    """
    width, height = reply.facts.get("width"), reply.facts.get("height")
    if not isinstance(width, int) or not isinstance(height, int):
        raise DecoderLostError(f"a decoder process gave an image of {width!r} x {height!r}")
    try:
        plan, vision = config.plan(width, height), config.vision
    except MediaShapeError as error:
        raise DecoderLostError(f"a decoder process gave an image of a size that it cannot have: {error}") from error
    patches = sum(grid.rows * grid.columns for grid in plan.grids)
    if reply.array.dtype != np.uint8 or reply.array.shape != (patches, vision.patch_dim):
        raise DecoderLostError(
            f"a decoder process gave {reply.array.dtype} {list(reply.array.shape)} for an image of {width} x {height}; "
            f"expected uint8 {[patches, vision.patch_dim]}"
        )
    pieces, at = [], 0
    for index, (grid, rows) in enumerate(zip(plan.grids, plan.piece_rows, strict=True)):
        end = at + grid.rows * grid.columns
        data = reply.array[at:end].tobytes()
        at = end
        pieces.append(
            Piece(
                hash=piece_hash(identity, index, len(plan.grids)),
                kind=kind,
                tokens=rows,
                patches=vision.slots(grid.rows, grid.columns),
                grid=embedding_grid(grid, rows, vision.merge),
                pixel_grid=(1, grid.rows, grid.columns),
                shape=(grid.rows * grid.columns, vision.patch_dim),
                data=data,
                checksum=checksum(data),
            )
        )
    return tuple(pieces)
