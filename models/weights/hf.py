"""Hugging Face folders: config.json, generation_config.json and model.safetensors, whole or as a sharded index.

Files are memory-mapped; a read touches the bytes of its slice. The safetensors layout is eight bytes of header length,
a JSON header of dtypes, shapes and byte ranges, then the data (https://huggingface.co/docs/safetensors). It is parsed
here because the numpy side of the library has no bfloat16.
"""

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from triptych.models.config import ModelConfig
from triptych.models.errors import WeightsError

_DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}

# A header lists names, shapes and offsets: 100 MB is the limit that the format's own reader sets.
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class _Tensor:
    data: np.memmap
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsSource:
    """The tensors of one or several safetensors files."""

    def __init__(self, paths: Collection[Path]) -> None:
        self._tensors: dict[str, _Tensor] = {}
        for path in sorted(paths):
            for name, tensor in _parse(path).items():
                if name in self._tensors:
                    raise WeightsError(f"tensor {name!r} is in two files, the second is {path.name}")
                self._tensors[name] = tensor

    def names(self) -> Collection[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def read(self, name: str, slices: tuple[slice, ...]) -> np.ndarray:
        tensor = self._tensors[name]
        if tensor.dtype not in _DTYPES:
            raise WeightsError(f"tensor {name!r} is stored as {tensor.dtype}; supported: {', '.join(_DTYPES)}")
        flat = tensor.data[tensor.start : tensor.stop].view(_DTYPES[tensor.dtype])
        return flat.reshape(tensor.shape)[slices]


def read_hf_config(folder: Path) -> ModelConfig:
    """The model's config from a folder. Raises UnsupportedModelError, or WeightsError if there is no config.json."""
    config = _json(folder / "config.json")
    generation = folder / "generation_config.json"
    return ModelConfig.from_hf(config, _json(generation) if generation.exists() else None)


def open_hf_folder(folder: Path) -> SafetensorsSource:
    """The tensors of a folder: model.safetensors, or the files that model.safetensors.index.json names."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(_json(index).get("weight_map", {}).values()))
        outside = [name for name in names if Path(name).name != name]
        if outside or not names:
            raise WeightsError(f"{index}: weight_map must name files of the same folder, got {outside or 'nothing'}")
        return SafetensorsSource([folder / name for name in names])
    single = folder / "model.safetensors"
    if not single.exists():
        raise WeightsError(f"{folder} has neither model.safetensors nor model.safetensors.index.json")
    return SafetensorsSource([single])


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"{path} does not exist") from None
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON: {error}") from error


def _parse(path: Path) -> dict[str, _Tensor]:
    try:
        data = np.memmap(path, np.uint8, mode="r")
    except (FileNotFoundError, ValueError) as error:
        raise WeightsError(f"{path} is missing or empty: {error}") from error
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > min(_MAX_HEADER_BYTES, data.size - 8):
        raise WeightsError(f"{path} is no safetensors file or is cut off: its header claims {length} bytes")
    try:
        header = json.loads(data[8 : 8 + length].tobytes())
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        return {name: _tensor(path, data, 8 + length, name, entry) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path} has a broken safetensors header: {error}") from error


def _tensor(path: Path, data: np.memmap, base: int, name: str, entry: dict[str, Any]) -> _Tensor:
    shape = tuple(int(size) for size in entry["shape"])
    start, stop = (base + int(offset) for offset in entry["data_offsets"])
    if not base <= start <= stop <= data.size:
        raise WeightsError(f"{path} is cut off: tensor {name!r} ends at byte {stop} of {data.size}")
    kind = str(entry["dtype"])
    if kind in _DTYPES and stop - start != math.prod(shape) * _DTYPES[kind].itemsize:
        raise WeightsError(f"{path}: tensor {name!r} of {shape} {kind} has {stop - start} bytes")
    return _Tensor(data, kind, shape, start, stop)
