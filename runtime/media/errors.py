"""What can be wrong with media. Every class names one status (runtime/core/errors.py).

An item that cannot be used is INVALID_ARGUMENT, whether it is broken, of the wrong type or beyond a limit: sending it again cannot help, and a client that
retries RESOURCE_EXHAUSTED must not be asked to. That status is kept for a full pool, with a retry hint.
"""

from __future__ import annotations

from triptych.runtime.core.errors import (
    DeadlineError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    Status,
    TriptychError,
)


class MediaError(InvalidRequestError):
    """An item that cannot be used, and never will be."""


class CorruptMediaError(MediaError):
    """The bytes are not what their first bytes promise: truncated, damaged or empty."""


class MediaKindError(MediaError):
    """A type that is not accepted, or not the one that the client declared."""


class MediaLimitError(MediaError):
    """An item, or the items of a request together, beyond a limit (runtime/media/limits.py)."""


class DecoderMemoryError(MediaLimitError):
    """Decoding the item takes more memory than a decoder process may have."""


class DecoderCrashedError(MediaError):
    """The item made its decoder process crash (a segmentation fault or the like)."""


class RemoteMediaError(MediaError):
    """A URL whose host is not allowed, or whose scheme is no source of media."""


class RemoteFetchError(TriptychError):
    """A URL of an allowed host: fetching is not built."""

    status = Status.UNIMPLEMENTED


class MissingDecoderError(TriptychError):
    """This installation lacks the library that decodes such media; the message says what to install."""

    status = Status.UNIMPLEMENTED


class DecodeTimeoutError(DeadlineError):
    """Decoding took longer than `MediaLimits.decode_seconds`."""


class DecoderLostError(TriptychError):
    """The decoder process went away for a reason that need not be the item's (killed, out of memory, not started); a retry may succeed."""

    status = Status.UNAVAILABLE


class MediaPoolFullError(OverloadedError):
    """As many items wait for a decoder as may wait; `retry_after` says when to try again."""


class MediaNotFoundError(NotFoundError):
    """No such handle for this client: never given, given to somebody else, expired or evicted."""


RAISED_BY_DECODERS: dict[str, type[TriptychError]] = {
    error.__name__: error
    for error in (CorruptMediaError, MediaKindError, MediaLimitError, DecoderMemoryError, MissingDecoderError)
}
"""The only errors that a decoder process may report; it sends a name and a message, never an object."""
