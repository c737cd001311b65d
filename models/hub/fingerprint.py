"""A content fingerprint of model files: the same on every machine that has the same files, quick even for large ones.

Instances exchange KV caches only between equal revisions, so the fingerprint must differ whenever weights, vocabulary
or template do. Small files are hashed whole. Of a large file the size and evenly spaced blocks are hashed: training
changes every tensor, so two versions of a model differ in any block; what is not detected is a deliberate edit between
the blocks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

__all__ = ["fingerprint_file", "fingerprint_files"]

_WHOLE_BYTES = 128 << 20  # hashed in about a tenth of a second
_BLOCK_BYTES = 1 << 20
_BLOCKS = 64
_HEX_DIGITS = 32


def fingerprint_file(path: Path) -> str:
    """32 hex digits over the content of one file; its name does not count."""
    return _digest(path).hex()[:_HEX_DIGITS]


def fingerprint_files(folder: Path, files: Iterable[Path]) -> str:
    """32 hex digits over the relative names and contents of `files` in `folder`."""
    total = hashlib.sha256()
    for path in sorted(files):
        total.update(path.relative_to(folder).as_posix().encode() + b"\0")
        total.update(_digest(path))
    return total.hexdigest()[:_HEX_DIGITS]


def _digest(path: Path) -> bytes:
    size = path.stat().st_size
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    with path.open("rb") as file:
        if size <= _WHOLE_BYTES:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
        else:
            for index in range(_BLOCKS):
                file.seek(index * (size - _BLOCK_BYTES) // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK_BYTES))
    return digest.digest()
