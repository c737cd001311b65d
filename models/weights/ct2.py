"""The container of CTranslate2: a memory-mapped `model.bin` of named tensors (its `python/ctranslate2/specs` writes it).

Little-endian; a string is a u16 length that counts a closing NUL, then its bytes:

    version u32, specification string, revision u32
    count u32, then each tensor: name string, rank u8, sizes u32 (slowest first), type u8, bytes u32, data
    count u32, then each alias: name string, string of the tensor it stands for
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from triptych.models.errors import WeightsError

__all__ = ["MODEL_FILE", "CT2File", "CT2Tensor", "open_ct2"]

MODEL_FILE = "model.bin"

# Version 4 brought the type byte, 6 is the newest.
_VERSIONS = range(4, 7)
_MAX_RANK = 8


@dataclass(frozen=True)
class CT2Tensor:
    """Where one tensor lies. `kind` is the number of its type, `start` and `stop` are bytes of the file."""

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    stop: int


@dataclass(frozen=True)
class CT2File:
    """A parsed file: what it holds, tensors by name (aliases too), and the whole file as mapped bytes."""

    path: Path
    specification: str
    tensors: Mapping[str, CT2Tensor]
    data: np.memmap

    def array(self, name: str) -> np.ndarray:
        """The tensor as stored, mapped. Raises WeightsError if it is absent or its type is none that is read here."""
        if name not in self.tensors:
            raise WeightsError(f"{self.path} has no tensor {name!r}")
        tensor = self.tensors[name]
        dtype = _dtype(tensor.kind)
        if dtype is None:
            raise WeightsError(f"tensor {name!r} has type {tensor.kind}; supported: 0 to 4 and 5 (bfloat16)")
        if tensor.stop - tensor.start != math.prod(tensor.shape) * dtype.itemsize:
            raise WeightsError(f"tensor {name!r} of {tensor.shape} {dtype} has {tensor.stop - tensor.start} bytes")
        return self.data[tensor.start : tensor.stop].view(dtype).reshape(tensor.shape)

    def scalar(self, name: str, default: int | None = None) -> int:
        """A setting, which is stored as a tensor of rank 0. Raises WeightsError if there is none and no default."""
        if name not in self.tensors and default is not None:
            return default
        value = self.array(name)
        if value.size != 1:
            raise WeightsError(f"{self.path}: {name!r} has shape {value.shape}; expected one number")
        return int(value.reshape(())[()])


def _dtype(kind: int) -> np.dtype | None:
    if kind == 5:
        # Only such a file needs the package; gateways read configurations without it.
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    plain = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}
    return np.dtype(plain[kind]) if kind in plain else None


def open_ct2(path: Path) -> CT2File:
    """Parse the names and places of a `model.bin`; tensor data stay on disk.

    Raises WeightsError if the file is missing, cut off, or not of a version from 4 to 6.
    """
    try:
        data = np.memmap(path, np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} is missing, unreadable or empty: {error}") from error
    try:
        return _parse(path, data)
    except (struct.error, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} is no CTranslate2 model or is cut off: {error}") from error


def _parse(path: Path, data: np.memmap) -> CT2File:
    cursor = _Cursor(data)
    version = cursor.scalar("I")
    if version not in _VERSIONS:
        raise WeightsError(f"{path} has CTranslate2 version {version}; supported: {_VERSIONS[0]} to {_VERSIONS[-1]}")
    specification, _ = cursor.string(), cursor.scalar("I")
    tensors: dict[str, CT2Tensor] = {}
    for _ in range(cursor.scalar("I")):
        tensor = _tensor(cursor)
        tensors[tensor.name] = tensor
    for _ in range(cursor.scalar("I")):
        alias, target = cursor.string(), cursor.string()
        if target not in tensors:
            raise WeightsError(f"{path}: {alias!r} stands for {target!r}, which is not in the file")
        tensors[alias] = tensors[target]
    if cursor.position != data.size:
        raise WeightsError(f"{path} has {data.size - cursor.position} bytes after its last entry")
    return CT2File(path, specification, tensors, data)


def _tensor(cursor: _Cursor) -> CT2Tensor:
    name, rank = cursor.string(), cursor.scalar("B")
    if rank > _MAX_RANK:
        raise struct.error(f"tensor {name!r} has {rank} axes, at most {_MAX_RANK} make sense")
    shape = tuple(cursor.scalar("I") for _ in range(rank))
    kind, count = cursor.scalar("B"), cursor.scalar("I")
    start = cursor.skip(count)
    return CT2Tensor(name, shape, kind, start, start + count)


class _Cursor:
    """A reading position in mapped bytes. Counts are checked against what is left, so a lying header fails at once."""

    def __init__(self, data: np.memmap) -> None:
        self._data = data
        self.position = 0

    def skip(self, count: int) -> int:
        """Go over `count` bytes; returns where they begin."""
        if count > self._data.size - self.position:
            raise struct.error(f"{count} bytes wanted at byte {self.position} of {self._data.size}")
        start, self.position = self.position, self.position + count
        return start

    def scalar(self, code: str) -> Any:
        size = struct.calcsize("<" + code)
        start = self.skip(size)
        return struct.unpack("<" + code, self._data[start : start + size].tobytes())[0]

    def string(self) -> str:
        length = self.scalar("H")
        start = self.skip(length)
        text = self._data[start : start + length].tobytes()
        if not text.endswith(b"\0"):
            raise struct.error(f"the string at byte {start} does not end with NUL")
        return text[:-1].decode()
