"""ONNX files written by hand: protobuf messages from fields, tensors and nodes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(name: str, array: np.ndarray) -> bytes:
    kind = {"float32": 1, "float16": 10, "int64": 7}[array.dtype.name]
    dims = b"".join(field(1, size) for size in array.shape)
    return dims + field(2, kind) + field(8, name.encode()) + field(9, array.tobytes())


def node(name: str, kind: str, inputs: Sequence[str]) -> bytes:
    return b"".join(field(1, one.encode()) for one in inputs) + field(3, name.encode()) + field(4, kind.encode())


def write_onnx(path: Path, tensors: dict[str, np.ndarray], nodes: Sequence[bytes] = ()) -> Path:
    """A model with a version and a producer around its graph, as exporters write it."""
    graph = b"".join(field(1, one) for one in nodes) + field(2, b"graph")
    graph += b"".join(field(5, tensor(name, array)) for name, array in tensors.items())
    path.write_bytes(field(1, 8) + field(2, b"test") + field(7, graph) + field(8, field(2, 14)))
    return path
