"""The container of GGUF: a memory-mapped file of key-value metadata and named tensors (GGUF specification, ggml
repository).

The `gguf` package can read this too, but spends seconds on a vocabulary (it builds an array object for each string) and
comes with the weight tools; a gateway needs only the tokenizer and the configuration. Layout, little-endian:

    "GGUF", version u32 (2 or 3), tensor count u64, metadata count u64
    metadata: key string, value type u32, value      (string = length u64 and bytes; array = type u32, count u64, items)
    tensors:  name string, rank u32, sizes u64 (fastest axis first), kind u32, offset u64 from the start of the data
    padding to `general.alignment` (32 unless given), then the data
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from triptych.models.errors import WeightsError

__all__ = ["GGUFFile", "GGUFTensor", "open_gguf"]

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DEFAULT_ALIGNMENT = 32
_MAX_RANK = 4  # GGML_MAX_DIMS


@dataclass(frozen=True)
class GGUFTensor:
    """Where one tensor lies. `shape` has the slowest axis first (row-major, as in numpy); `kind` is a `ggml_type`."""

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int


@dataclass(frozen=True)
class GGUFFile:
    """A parsed file: metadata with Python values, tensors by name, and the whole file as mapped bytes."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GGUFTensor]
    data: np.memmap


def open_gguf(path: Path) -> GGUFFile:
    """Parse the header of a GGUF file; tensor data stay on disk.

    Raises WeightsError if the file is missing, cut off, or not GGUF of version 2 or 3 in little-endian order.
    """
    try:
        data = np.memmap(path, np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} is missing, unreadable or empty: {error}") from error
    try:
        return _parse(path, data)
    except (struct.error, UnicodeDecodeError, KeyError, OverflowError) as error:
        raise WeightsError(f"{path} has a broken or incomplete GGUF header: {error}") from error


def _parse(path: Path, data: np.memmap) -> GGUFFile:
    cursor = _Cursor(data.data)
    if cursor.take(4) != b"GGUF":
        raise WeightsError(f"{path} is no GGUF file: it does not begin with the letters GGUF")
    version = cursor.scalar("I")
    if version not in (2, 3):
        raise WeightsError(f"{path} is GGUF version {version}; supported: 2 and 3, little-endian")
    tensor_count, metadata_count = cursor.scalar("Q"), cursor.scalar("Q")
    metadata: dict[str, Any] = {}
    for _ in range(metadata_count):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.scalar("I"))
    entries = [_tensor_entry(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise WeightsError(f"{path}: general.alignment is {alignment!r}; expected a positive integer")
    base = -(-cursor.position // alignment) * alignment
    tensors = {name: GGUFTensor(name, shape, kind, base + offset) for name, shape, kind, offset in entries}
    return GGUFFile(path, metadata, tensors, data)


def _tensor_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name, rank = cursor.string(), cursor.scalar("I")
    if not 1 <= rank <= _MAX_RANK:
        raise WeightsError(f"tensor {name!r} has {rank} axes; GGUF allows 1 to {_MAX_RANK}")
    sizes = tuple(cursor.scalar("Q") for _ in range(rank))
    return name, sizes[::-1], cursor.scalar("I"), cursor.scalar("Q")


class _Cursor:
    """A reading position in mapped bytes. Counts are checked against what is left, so a lying header fails at once."""

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer
        self.position = 0

    def take(self, count: int) -> bytes:
        if count > len(self._buffer) - self.position:
            raise struct.error(f"{count} bytes wanted at byte {self.position} of {len(self._buffer)}")
        start, self.position = self.position, self.position + count
        return bytes(self._buffer[start : self.position])

    def scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        return self.take(self.scalar("Q")).decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        item, count = self.scalar("I"), self.scalar("Q")
        if item in (_STRING, _ARRAY):
            smallest = 8 if item == _STRING else 12
            if count * smallest > len(self._buffer) - self.position:
                raise struct.error(f"an array of {count} items at byte {self.position} of {len(self._buffer)}")
            return [self.value(item) for _ in range(count)]
        width = struct.calcsize("<" + _SCALARS[item])
        return list(struct.unpack(f"<{count}{_SCALARS[item]}", self.take(count * width)))
