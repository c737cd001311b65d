"""What libraries raise over damaged files, as typed errors. Runs in decoder processes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from triptych.runtime.core.errors import TriptychError
from triptych.runtime.media.errors import CorruptMediaError, DecoderMemoryError
from triptych.runtime.media.sniff import MediaType

SHOWN = 200  # characters of a library's message that are repeated


@contextmanager
def decoding(type: MediaType) -> Iterator[None]:
    """Around everything that a library does with a client's file. Raises CorruptMediaError, DecoderMemoryError; typed errors pass."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a library warns of, and goes on, is nothing to fail for
            yield
    except TriptychError:
        raise
    except MemoryError:
        raise DecoderMemoryError(f"decoding this {type.value} takes more memory than a decoder may have") from None
    except Exception as error:  # noqa: BLE001 - they raise many types, SyntaxError and struct.error among them
        raise CorruptMediaError(f"this {type.value} cannot be decoded: {str(error)[:SHOWN] or repr(error)}") from None
