"""Checkpoints in Orbax form: written from any `TensorSource`, read back as one, for any mesh.

Tensors are stored as a Hugging Face checkpoint names and shapes them, without the pads and replicas of the mesh they
may come from. So a checkpoint written from a model on two devices starts a server on four. Layout of the folder:

    triptych.json                      format version, the model configuration, and group, shape and dtype of each
    tensor params/layers.0, layers.1, ...     one Orbax PyTree checkpoint (OCDBT, zarr) per layer: a flat dict of tensor
    name -> array params/embed_tokens, norm, lm_head one each for the tensors outside the layers tokenizer.json,
    tokenizer_config.json, generation_config.json, chat_template.jinja    as in a Hugging Face folder

One group is in host memory at a time while writing. Each group opens with Orbax's own tools. Reading goes to
TensorStore, the storage layer below Orbax, because it reads slices: every device gets its shard and nothing more, and
reading needs no jax.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from triptych.models.config import ModelConfig
from triptych.models.errors import WeightsError
from triptych.models.text.hf_tokenizer import save_text_files
from triptych.models.text.tokenizer import Tokenizer
from triptych.models.weights.config_json import config_from_json, config_to_json
from triptych.models.weights.source import TensorSource

__all__ = ["INDEX_FILE", "OrbaxSource", "open_orbax", "save_orbax"]

INDEX_FILE = "triptych.json"
_FORMAT, _VERSION = "triptych-orbax", 1

# A slice costs whole chunks: small enough that a shard reads little besides itself, large enough for few files.
_CHUNK_BYTES = 4 << 20


def save_orbax(
    path: Path,
    config: ModelConfig,
    source: TensorSource,
    *,
    dtype: str | None = None,
    tokenizer: Tokenizer | None = None,
    chat_template: str | None = None,
) -> None:
    """Write a checkpoint folder. It appears under `path` only when it is complete.

    Args:
        path: must not exist yet, or FileExistsError is raised.
        source: the weights; for a model that is already on a mesh, `loaded.DecoderSource(model)`.
        dtype: convert to "float32" or "bfloat16"; None keeps each tensor as the source gives it.
    """
    import orbax.checkpoint as ocp  # imports jax

    path = path.absolute()
    if path.exists():
        raise FileExistsError(f"{path} exists already; choose another folder or remove it first")
    partial = path.with_name(f".{path.name}.{os.getpid()}.incomplete")
    tensors: dict[str, dict[str, Any]] = {}
    try:
        partial.mkdir(parents=True)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            for group, names in _groups(source.names()).items():
                tree = {name: _whole(source, name, dtype) for name in names}
                chunks = {name: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES) for name in names}
                checkpointer.save(partial / "params" / group, args=ocp.args.PyTreeSave(tree, save_args=chunks))
                for name, array in tree.items():
                    tensors[name] = {"group": group, "shape": list(array.shape), "dtype": array.dtype.name}
        if tokenizer is not None:
            save_text_files(partial, tokenizer, chat_template)
        index = {"format": _FORMAT, "version": _VERSION, "config": config_to_json(config), "tensors": tensors}
        (partial / INDEX_FILE).write_text(json.dumps(index, indent=1), encoding="utf-8")
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def open_orbax(path: Path) -> tuple[ModelConfig, OrbaxSource]:
    """Configuration and tensors of a folder that `save_orbax` wrote. Raises WeightsError for anything else."""
    index_path = path / INDEX_FILE
    try:
        index = json.loads(index_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"{path} has no {INDEX_FILE}: it is no checkpoint written by `triptych convert`") from None
    except ValueError as error:
        raise WeightsError(f"{index_path} is not JSON: {error}") from error
    if (index.get("format"), index.get("version")) != (_FORMAT, _VERSION):
        found = f"{index.get('format')!r} version {index.get('version')!r}"
        raise WeightsError(f"{index_path} has format {found}; supported: {_FORMAT!r} version {_VERSION}")
    return config_from_json(index["config"]), OrbaxSource(path, index["tensors"])


class OrbaxSource:
    """The tensors of one checkpoint folder, as its index lists them."""

    def __init__(self, path: Path, tensors: Mapping[str, Mapping[str, Any]]) -> None:
        self._path = path.absolute()
        self._tensors = tensors
        self._open: dict[str, Any] = {}  # handles, not data: opening costs some milliseconds, and each shard is a read

    def names(self) -> Collection[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name]["shape"])

    def read(self, name: str, slices: tuple[slice, ...]) -> np.ndarray:
        """The selected part in its stored dtype. Raises WeightsError if the files do not hold what the index says."""
        stored = self._open.get(name)
        if stored is None:
            stored = self._open[name] = self._handle(name)
        return np.asarray(stored[slices].read().result())

    def _handle(self, name: str) -> Any:
        import tensorstore  # a large library that only reading weights needs

        group = self._path / "params" / self._tensors[name]["group"]
        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "ocdbt", "base": group.as_uri(), "path": f"{name}/"},
        }
        try:
            stored = tensorstore.open(spec, read=True, open=True).result()
        except ValueError as error:  # TensorStore's only exception type
            raise WeightsError(f"tensor {name!r} cannot be read from {group}: {error}") from error
        if tuple(stored.shape) != self.shape(name):
            raise WeightsError(
                f"tensor {name!r} is {tuple(stored.shape)} in {group}, the index says {self.shape(name)}"
            )
        return stored


def _groups(names: Iterable[str]) -> dict[str, list[str]]:
    """Tensor names by folder: "model.layers.3.mlp.up_proj.weight" goes to "layers.3", "model.norm.weight" to "norm"."""
    groups: dict[str, list[str]] = {}
    for name in names:
        words = name.removeprefix("model.").split(".")
        group = f"layers.{words[1]}" if words[0] == "layers" else words[0]
        groups.setdefault(group, []).append(name)
    return groups


def _whole(source: TensorSource, name: str, dtype: str | None) -> np.ndarray:
    array = source.read(name, (slice(None),) * len(source.shape(name)))
    if dtype is None:
        return np.ascontiguousarray(array)
    return np.ascontiguousarray(array, dtype=_numpy_dtype(dtype))


def _numpy_dtype(name: str) -> np.dtype:
    import ml_dtypes  # comes with jax; numpy itself has no bfloat16

    kinds = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
    if name not in kinds:
        raise WeightsError(f"dtype {name!r} is not supported in checkpoints; supported: {', '.join(kinds)}")
    return kinds[name]
