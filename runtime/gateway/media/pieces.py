"""What a gateway holds of one medium: the pieces that encoders take, one for each item of the request."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass

from triptych.models.vision.packing import Grid
from triptych.runtime.core.media import MediaItem, MediaKind


@dataclass(frozen=True)
class Piece:
    """One item's input to the encoder.

    Attributes:
        hash: identity of content and processing, as in MediaItem.
        tokens: embeddings that it gives.
        patches: the cost of encoding it, as in MediaItem.
        grid: (time, rows, columns) of its embeddings.
        pixel_grid: (time, rows, columns) of its patches, before any merging.
        shape: of the array whose bytes are `data`; the encoder knows the type of its numbers.
        checksum: CRC-32 of `data`.
        later, attended: as in MediaItem.
    """

    hash: str
    kind: MediaKind
    tokens: int
    patches: int
    grid: tuple[int, int, int]
    pixel_grid: tuple[int, int, int]
    shape: tuple[int, ...]
    data: bytes
    checksum: int
    later: int | None = None
    attended: bool = False

    def at(self, offset: int) -> MediaItem:
        """The item, whose embeddings begin at prompt token `offset`."""
        return MediaItem(
            self.hash, self.kind, offset, self.tokens, self.patches, self.grid, attended=self.attended, later=self.later
        )


@dataclass(frozen=True)
class Medium:
    """One medium of a request, as its client sent it. `field` names it in errors."""

    field: str
    kind: MediaKind
    pieces: tuple[Piece, ...]

    @property
    def tokens(self) -> int:
        """Prompt tokens that it takes."""
        return sum(piece.tokens for piece in self.pieces)

    def places(self, videos: bool) -> tuple[tuple[Piece, ...], ...]:
        """The pieces of each place that it takes in a prompt: one, but for a video where `videos` says that none are known one for each frame."""
        if self.kind is not MediaKind.VIDEO or videos:
            return (self.pieces,)
        return tuple((piece,) for piece in self.pieces)


def embedding_grid(grid: Grid, tokens: int, merge: int) -> tuple[int, int, int]:
    """(time, rows, columns) of embeddings; one row of them where they are not one a merged patch (class tokens)."""
    rows, columns = grid.rows // merge, grid.columns // merge
    return (1, rows, columns) if rows * columns == tokens else (1, 1, tokens)


def piece_hash(identity: str, index: int, count: int) -> str:
    """The hash of piece `index` of a medium with this identity; a medium of one piece has its own."""
    if count == 1:
        return identity
    return hashlib.blake2b(f"{identity} {index}/{count}".encode(), digest_size=16).hexdigest()


def checksum(data: bytes) -> int:
    """What MediaHeader carries: CRC-32."""
    return zlib.crc32(data)
