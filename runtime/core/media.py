"""What a request carries besides tokens, as the control plane sees it: never pixels, only who they are and what they cost.

A MediaItem is the unit that is encoded: an image, a tile of one, a frame or group of frames, a window of audio. Its embeddings take the
place of a run of prompt tokens; or they are *attended*: they take no place, and every token of the request attends to them
(cross-attention, as in Whisper). Identity is content: `hash` covers the raw bytes and every parameter of processing, so equal hashes mean
equal embeddings, wherever and for whomever they were computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class MediaKind(StrEnum):
    """What an item was before it was encoded."""

    IMAGE = "image"
    AUDIO = "audio"
    VIDEO = "video"


@dataclass(frozen=True)
class MediaItem:
    """One independently encoded piece of a prompt.

    Attributes:
        hash: hexadecimal digest of content and processing.
        offset: index of the first prompt token whose embedding it gives; 0 if `attended`.
        tokens: embeddings. Unless `attended` they are prompt tokens, one after another from `offset`.
        patches: what the encoder computes (its input positions): the cost of encoding.
        grid: (time, rows, columns) of embeddings, for positions; (1, 1, tokens) where nothing asks.
        attended: it takes no place in the prompt; every token, of the prompt and of the outputs, attends to its embeddings.
        later: None for the first or only item of a medium. Another step of a video is placed in time as many positions after the
            medium's first item (M-RoPE), and directly follows the item before it in the prompt.
    """

    hash: str
    kind: MediaKind
    offset: int
    tokens: int
    patches: int
    grid: tuple[int, ...]
    attended: bool = False
    later: int | None = None

    @property
    def taken(self) -> int:
        """Prompt tokens whose place it takes."""
        return 0 if self.attended else self.tokens

    @property
    def end(self) -> int:
        """Index of the first prompt token behind its place."""
        return self.offset + self.taken
