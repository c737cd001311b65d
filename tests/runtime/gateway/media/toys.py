"""A multimodal toy model, and an honest processor for it: a medium is b"IMG" and a number, and its patches are that number everywhere."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

from tests.runtime.gateway.toy_cluster import TOKENIZER, toy_model
from triptych.models.multimodal.presets import VLM_PRESETS
from triptych.runtime.core.errors import InvalidRequestError
from triptych.runtime.core.media import MediaKind
from triptych.runtime.gateway.media.pieces import Piece, checksum, piece_hash
from triptych.runtime.gateway.model import MediaModel, ServedModel

PLACEHOLDER = 259  # <|pad|>
TOKENS = 4  # of a piece
PATCHES = 17
PIECE_BYTES = 16 * 48


def vlm(**changes: Any) -> ServedModel:
    return toy_model(media=MediaModel.of(VLM_PRESETS["toy-vlm"], TOKENIZER), **changes)


def image(number: int) -> bytes:
    return b"IMG%d" % number


class ToyProcessor:
    """Attributes:
    pieces: of every medium.
    calls: what was processed.
    gate: processing waits for it.
    cancelled: how often processing was given up.
    """

    def __init__(self, pieces: int = 1):
        self.pieces = pieces
        self.calls: list[bytes] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.cancelled = 0
        self.max_items = 8

    def kind(self, data: bytes, declared: str) -> MediaKind:
        if not data.startswith(b"IMG"):
            raise InvalidRequestError("the item is of an unknown type; expected an image")
        if declared not in ("", "image"):
            raise InvalidRequestError(f"the item is declared as {declared!r} but its bytes are an image")
        return MediaKind.IMAGE

    def check_total(self, sizes: Sequence[int]) -> None:
        if len(sizes) > self.max_items:
            raise InvalidRequestError(f"the request has {len(sizes)} media items; expected at most {self.max_items}")

    def identity(self, data: bytes) -> str:
        return hashlib.blake2b(data, digest_size=16).hexdigest()

    async def process(self, data: bytes, kind: MediaKind, identity: str) -> tuple[Piece, ...]:
        self.calls.append(data)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        number = int(data[3:])
        if number == 666:
            raise InvalidRequestError("this image cannot be decoded")
        content = bytes([number]) * PIECE_BYTES
        return tuple(
            Piece(
                piece_hash(identity, index, self.pieces),
                kind,
                TOKENS,
                PATCHES,
                (1, 2, 2),
                (1, 4, 4),
                (16, 48),
                content,
                checksum(content),
            )
            for index in range(self.pieces)
        )

    def start(self) -> None:
        pass

    async def close(self) -> None:
        pass
