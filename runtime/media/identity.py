"""The content hash of a media item: the key of embedding stores and prefix caches.

It covers the bytes as they were sent and everything that decides what the encoder sees of them, so that the same picture under other parameters
(another size, other frames) is another item. Two encodings of the same pixels are two items: telling them to be the same would need decoding first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b

HASH_BYTES = 16
_PERSON = b"triptych-media"  # hashes of other things, made with the same function, never collide with these

Value = str | int | float | bool | None | tuple["Value", ...]


def canonical(name: str, parameters: Mapping[str, Value]) -> str:
    """Processing parameters as one string, the same however the mapping is ordered.

    Args:
        name: what processes, with a version that moves when its results do: "image/1".
        parameters: plain values; NaN and infinities raise ValueError, other objects TypeError.
    """
    return json.dumps([name, dict(parameters)], sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_hash(data: bytes | memoryview, parameters: str) -> str:
    """32 hex digits (BLAKE2b, 16 bytes) for `data` processed under `parameters` (see `canonical`).

    The parameters come first, with their length, so no bytes of the file can be taken for them.
    """
    text = parameters.encode()
    digest = blake2b(len(text).to_bytes(8, "little") + text, digest_size=HASH_BYTES, person=_PERSON)
    digest.update(data)
    return digest.hexdigest()
