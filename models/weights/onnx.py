"""Initialisers of an ONNX file, read without the onnx package: enough of protobuf's wire format for weights.

A message is a run of fields: a varint of field number and wire type, then a varint, a length and bytes, or four or eight
bytes (https://protobuf.dev/programming-guides/encoding). The field numbers used are those of onnx.proto: model.graph is
7, graph.node 1 and graph.initializer 5; a node has input 1, output 2, name 3, op_type 4; a tensor has dims 1, data_type
2, float_data 4, name 8 and raw_data 9. Files are memory-mapped; tensors outside the file are refused.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from triptych.models.errors import WeightsError

# onnx.proto's TensorProto.DataType of what weights are stored as.
_DTYPES = {1: np.dtype("<f4"), 10: np.dtype("<f2"), 7: np.dtype("<i8"), 6: np.dtype("<i4"), 11: np.dtype("<f8")}

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


@dataclass(frozen=True)
class OnnxNode:
    """An operation of the graph: its name, kind and the names of what it takes."""

    name: str
    kind: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]
    kind: int
    start: int
    stop: int


class OnnxSource:
    """A `TensorSource` of a file's initialisers, under the names that they have there, and the graph's nodes."""

    def __init__(self, path: Path) -> None:
        try:
            self._data = np.memmap(path, np.uint8, mode="r")
        except (FileNotFoundError, ValueError) as error:
            raise WeightsError(f"{path} is missing or empty: {error}") from error
        self._tensors: dict[str, _Tensor] = {}
        nodes: list[OnnxNode] = []
        try:
            (graph,) = [value for number, value in self._fields((0, self._data.size)) if number == 7]
            for number, value in self._fields(_span(graph)):
                if number == 1:
                    nodes.append(self._node(_span(value)))
                elif number == 5:
                    name, tensor = self._tensor(_span(value))
                    self._tensors[name] = tensor
        except (ValueError, TypeError, IndexError) as error:
            raise WeightsError(f"{path} is no ONNX model, or is cut off: {error}") from error
        self.nodes = tuple(nodes)

    def names(self) -> Collection[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def read(self, name: str, slices: tuple[slice, ...]) -> np.ndarray:
        tensor = self._tensors[name]
        dtype = _DTYPES.get(tensor.kind)
        if dtype is None:
            raise WeightsError(f"tensor {name!r} is stored as ONNX type {tensor.kind}, which is not supported")
        if tensor.stop - tensor.start != math.prod(tensor.shape) * dtype.itemsize:
            raise WeightsError(f"tensor {name!r} of {tensor.shape} has {tensor.stop - tensor.start} bytes in the file")
        return self._data[tensor.start : tensor.stop].view(dtype).reshape(tensor.shape)[slices]

    def _node(self, span: tuple[int, int]) -> OnnxNode:
        inputs: list[str] = []
        name = kind = ""
        for number, value in self._fields(span):
            if number == 1:
                inputs.append(self._text(_span(value)))
            elif number == 3:
                name = self._text(_span(value))
            elif number == 4:
                kind = self._text(_span(value))
        return OnnxNode(name, kind, tuple(inputs))

    def _tensor(self, span: tuple[int, int]) -> tuple[str, _Tensor]:
        shape: list[int] = []
        name, kind, data = "", 0, (0, 0)
        for number, value in self._fields(span):
            if number == 1 and isinstance(value, tuple):  # packed
                at, stop = value
                while at < stop:
                    size, at = self._varint(at, stop)
                    shape.append(size)
            elif number == 1 and isinstance(value, int):
                shape.append(value)
            elif number == 2 and isinstance(value, int):
                kind = value
            elif number in (4, 9):  # packed floats have the same bytes as raw data
                data = _span(value)
            elif number == 8:
                name = self._text(_span(value))
            elif number == 13:
                raise ValueError(f"tensor {name!r} is stored in another file")
        return name, _Tensor(tuple(shape), kind, *data)

    def _fields(self, span: tuple[int, int]) -> Iterator[tuple[int, int | tuple[int, int]]]:
        """Each field's number, and its number or the span of its bytes."""
        at, stop = span
        while at < stop:
            key, at = self._varint(at, stop)
            number, kind = key >> 3, key & 7
            if kind == _VARINT:
                value, at = self._varint(at, stop)
                yield number, value
                continue
            if kind == _BYTES:
                size, at = self._varint(at, stop)
            elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
                size = 8 if kind == _EIGHT_BYTES else 4
            else:
                raise ValueError(f"wire type {kind} at byte {at}")
            if at + size > stop:
                raise ValueError(f"field {number} ends at byte {at + size}, its message at {stop}")
            yield number, (at, at + size)
            at += size

    def _varint(self, at: int, stop: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            if at >= stop or shift > 63:
                raise ValueError(f"a number at byte {at} does not end")
            byte = int(self._data[at])
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value, at

    def _text(self, span: tuple[int, int]) -> str:
        return self._data[span[0] : span[1]].tobytes().decode()


def _span(value: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(value, int):
        raise TypeError("a number where a message was expected")
    return value
