"""A DINOv2 that was exported to ONNX, under the names of its Hugging Face checkpoint.

The exporter keeps the names of most parameters; weights of matrix products are transposed and anonymous, and are named
here after the node that uses them. The position table is stored in two parts, the class token's entry apart.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from triptych.models.errors import WeightsError
from triptych.models.vision.config import VisionConfig
from triptych.models.vision.hf_config import vision_from_hf
from triptych.models.weights.onnx import OnnxSource
from triptych.models.weights.source import TensorSource

POSITIONS = "embeddings.position_embeddings"
_PATCH = "embeddings.patch_embeddings.projection.weight"


class OnnxDinov2Source:
    """The backbone's tensors as a checkpoint of `Dinov2Model` has them. A product's weight is read through a transpose."""

    def __init__(self, source: OnnxSource, prefix: str) -> None:
        self._source = source
        self._own = {
            name.removeprefix(prefix): name for name in source.names() if name.startswith(prefix + "embeddings.")
        }
        self._own |= {
            name.removeprefix(prefix): name
            for name in source.names()
            if name.startswith((prefix + "encoder.", prefix + "layernorm."))
        }
        self._products: dict[str, str] = {}
        for node in source.nodes:
            path = node.name.strip("/").replace("/", ".")
            if node.kind == "MatMul" and path.startswith(prefix) and node.inputs[1] in source.names():
                name = path.removesuffix(".MatMul").removeprefix(prefix) + ".weight"
                self._products[name] = node.inputs[1]
        hidden = source.shape(self._own[_PATCH])[0]
        self._class_place, self._places = self._position_parts(hidden)

    def names(self) -> Collection[str]:
        return {*self._own, *self._products, POSITIONS}

    def shape(self, name: str) -> tuple[int, ...]:
        if name == POSITIONS:
            places = self._source.shape(self._places)
            return 1, places[1] + 1, places[2]
        if name in self._products:
            return tuple(reversed(self._source.shape(self._products[name])))
        return self._source.shape(self._own[name])

    def read(self, name: str, slices: tuple[slice, ...]) -> np.ndarray:
        if name == POSITIONS:
            everything = (slice(None),) * 3
            parts = [self._source.read(part, everything) for part in (self._class_place, self._places)]
            return np.concatenate(parts, axis=1)[slices]
        if name in self._products:
            return self._source.read(self._products[name], tuple(reversed(slices))).T
        return self._source.read(self._own[name], slices)

    def _position_parts(self, hidden: int) -> tuple[str, str]:
        """The entries of the class token and of the patches: anonymous tensors [1, 1, hidden] and [1, n * n, hidden]."""
        anonymous = [name for name in self._source.names() if name.startswith("onnx::")]
        shapes = {name: self._source.shape(name) for name in anonymous}
        single = [name for name, shape in shapes.items() if shape == (1, 1, hidden)]
        table = [name for name, shape in shapes.items() if len(shape) == 3 and shape[1] > 1 and shape[2] == hidden]
        if len(single) != 1 or len(table) != 1:
            raise WeightsError(f"no position table was found among the {len(anonymous)} unnamed tensors of the file")
        return single[0], table[0]


def open_onnx_dinov2(path: Path, prefix: str = "backbone.") -> tuple[VisionConfig, TensorSource]:
    """The configuration (from shapes; heads have 64 numbers in every DINOv2) and tensors of an exported DINOv2.

    Raises WeightsError if the file holds no such model.
    """
    onnx = OnnxSource(path)
    if prefix + _PATCH not in onnx.names():
        raise WeightsError(f"{path} has no tensor {prefix + _PATCH!r}: it holds no DINOv2")
    source = OnnxDinov2Source(onnx, prefix)
    hidden, channels, patch, _ = source.shape(_PATCH)
    layers = {name.split(".")[2] for name in source.names() if name.startswith("encoder.layer.")}
    config = {
        "model_type": "dinov2",
        "hidden_size": hidden,
        "num_hidden_layers": len(layers),
        "num_attention_heads": hidden // 64,
        "mlp_ratio": source.shape("encoder.layer.0.mlp.fc1.weight")[0] // hidden,
        "num_channels": channels,
        "patch_size": patch,
        "image_size": patch * round((source.shape(POSITIONS)[1] - 1) ** 0.5),
    }
    return vision_from_hf(config), source
