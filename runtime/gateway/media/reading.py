"""What clients claim of their media is a type ("image/png") or only a kind ("image"); the bytes decide."""

from __future__ import annotations

from triptych.runtime.media.limits import MediaLimits
from triptych.runtime.media.sniff import Kind
from triptych.runtime.media.source import MediaInput, from_bytes

KINDS = {kind.value: kind for kind in Kind}


def read(data: bytes, declared: str, limits: MediaLimits) -> MediaInput:
    """A medium with the type that its bytes have. `declared`: what the client takes it for; empty: it says nothing.

    Raises MediaLimitError, CorruptMediaError or MediaKindError, without decoding anything.
    """
    if declared in KINDS:
        return from_bytes(data, limits, kind=KINDS[declared])
    return from_bytes(data, limits, declared or None)
