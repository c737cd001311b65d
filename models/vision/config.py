"""What a vision encoder is, as data: one frozen, hashable `VisionConfig` for every supported family. No JAX here.

A family is a set of switches, never a class of its own; `models/vision/encoder.py` has the one definition. Supported are
CLIP (arXiv 2103.00020), SigLIP (2303.15343), DINOv2 (2304.07193), InternViT (2404.16821) and the encoder of Qwen2.5-VL
(2502.13923), each with one of three connectors to a language model, or with none.
"""

import hashlib
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Literal, get_args

from triptych.models.errors import MediaShapeError, UnsupportedModelError

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu"]
Norm = Literal["layer", "rms"]
Family = Literal["clip", "siglip", "dinov2", "internvit", "qwen2_5_vl"]
Output = Literal["patches", "class", "all"]

# Means and deviations of RGB, in units of full brightness, that the families were trained with.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF_MEAN, HALF_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class ConnectorConfig:
    """What turns encoder features into rows of a language model's embedding: merge, norms, and one or two projections.

    `merge` x `merge` neighbouring patches become one row, their features side by side in raster order. `patch_norm` is
    over a patch before merging, `merged_norm` over the merged row. Without `hidden_size` there is one projection only.
    With several `levels` the features of so many layers are projected each by itself, with the same weights, and their
    outputs lie side by side (eP-ALM).
    """

    outputs: int
    hidden_size: int | None
    merge: int = 1
    patch_norm: Norm | None = None
    merged_norm: Norm | None = None
    norm_eps: float = 1e-5
    activation: Activation = "gelu"
    bias: bool = True
    levels: int = 1


@dataclass(frozen=True)
class VisionConfig:
    """A vision transformer over patches, and its connector. Sizes are logical ones, before padding for tensor parallelism.

    Attributes:
        stored_layers: layers in the checkpoint; those beyond the last of `feature_layers` are neither loaded nor run.
        feature_layers: after how many layers features are taken; several are put side by side.
        patch_size: pixels a side. temporal_patch: frames a patch (an image is repeated).
        position_grid: patches a side of the learned position table; None if positions are rotary (`rope_theta`).
        resize_positions: whether other grids than the table's are allowed, by bicubic interpolation of the table.
        pre_norm: a norm between embedding and layers. final_norm: the norm after the layers, applied to every feature.
        gated: SwiGLU instead of two projections. layer_scale: learned factors on each residual branch.
        window: patches a side of an attention window; layers in `full_layers` attend to the whole picture.
        output: which tokens leave the encoder.
        mean, std: what pixels are normalised by, in units of full brightness; done on the device.
    """

    family: Family
    hidden_size: int
    stored_layers: int
    feature_layers: tuple[int, ...]
    num_heads: int
    intermediate_size: int
    patch_size: int
    activation: Activation
    channels: int = 3
    temporal_patch: int = 1
    position_grid: int | None = None
    resize_positions: bool = False
    rope_theta: float | None = None
    class_token: bool = False
    patch_bias: bool = True
    qkv_bias: bool = True
    mlp_bias: bool = True
    norm: Norm = "layer"
    norm_eps: float = 1e-6
    pre_norm: bool = False
    final_norm: bool = False
    gated: bool = False
    layer_scale: bool = False
    window: int | None = None
    full_layers: tuple[int, ...] = ()
    output: Output = "patches"
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    connector: ConnectorConfig | None = None

    def __post_init__(self) -> None:
        if self.family not in get_args(Family):
            raise UnsupportedModelError(
                f"vision encoder {self.family!r} is not supported; supported: {', '.join(get_args(Family))}"
            )
        if self.hidden_size % self.num_heads or self.head_dim % (4 if self.rope_theta else 1):
            raise UnsupportedModelError(
                f"hidden size {self.hidden_size} over {self.num_heads} heads: heads must be equal, and of a multiple "
                "of four numbers where positions are rotary"
            )
        if not self.feature_layers or not all(0 < layer <= self.stored_layers for layer in self.feature_layers):
            raise UnsupportedModelError(
                f"feature layers {self.feature_layers} must lie between 1 and the {self.stored_layers} layers"
            )
        if (self.position_grid is None) == (self.rope_theta is None):
            raise UnsupportedModelError("an encoder needs either a position table or rotary positions")
        if self.output != "patches" and (not self.class_token or self.merge > 1):
            raise UnsupportedModelError(f"output {self.output!r} needs a class token and no merging of patches")
        if self.connector is not None and self.connector.levels not in (1, len(self.feature_layers)):
            raise UnsupportedModelError(
                f"{self.connector.levels} levels to project of {len(self.feature_layers)} feature layers"
            )
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise UnsupportedModelError(f"mean and std need one number for each of {self.channels} channels")

    @property
    def num_layers(self) -> int:
        """Layers that are run."""
        return max(self.feature_layers)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def merge(self) -> int:
        """Patches a side that become one output row."""
        return self.connector.merge if self.connector else 1

    @property
    def patch_dim(self) -> int:
        """Numbers in a patch: channel, frame, row, column, in this order."""
        return self.channels * self.temporal_patch * self.patch_size**2

    @property
    def feature_size(self) -> int:
        """Numbers in one token's features, before the connector merges any."""
        return self.hidden_size * len(self.feature_layers)

    @property
    def output_size(self) -> int:
        """Numbers in an output row: the language model's hidden size, once a level, where there is a connector."""
        return self.connector.outputs * self.connector.levels if self.connector else self.feature_size

    @property
    def position_taps(self) -> int:
        """Entries of the position table that one token's position is a weighted sum of."""
        if self.position_grid is None:
            return 0
        return 16 if self.resize_positions else 1

    def slots(self, rows: int, columns: int) -> int:
        """Token slots that a grid of patches takes in the encoder."""
        return rows * columns + self.class_token

    def output_rows(self, rows: int, columns: int) -> int:
        """Rows that come out for a grid of patches. Raises MediaShapeError if it cannot be merged evenly."""
        if self.output == "class":
            return 1
        if rows % self.merge or columns % self.merge:
            raise MediaShapeError(f"a grid of {rows} x {columns} patches cannot be merged {self.merge} a side")
        return rows * columns // self.merge**2 + (self.output == "all")

    def output_bound(self, slots: int) -> int:
        """Output rows of a program of this many slots: enough for whatever fits in."""
        return slots // self.merge**2

    def fingerprint(self) -> str:
        """Hex digest of every field: all of them change what is computed."""
        return hashlib.sha256(repr(sorted(asdict(self).items())).encode()).hexdigest()[:32]

    def parameter_count(self) -> int:
        """Number of weights that are loaded, without padding."""
        width, inner = self.hidden_size, self.intermediate_size
        norm = width * (2 if self.norm == "layer" else 1)
        attention = 4 * width * width + width + 3 * width * self.qkv_bias
        ffn = (3 if self.gated else 2) * width * inner + self.mlp_bias * (inner * (1 + self.gated) + width)
        layer = attention + ffn + 2 * norm + 2 * width * self.layer_scale
        embedding = self.patch_dim * width + self.patch_bias * width + self.class_token * width
        if self.position_grid is not None:
            embedding += (self.position_grid**2 + self.class_token) * width
        total = embedding + self.num_layers * layer + norm * (self.pre_norm + self.final_norm)
        return total + self._connector_count()

    def _connector_count(self) -> int:
        connector = self.connector
        if connector is None:
            return 0
        features = self.feature_size // connector.levels
        merged = features * connector.merge**2
        norms = [(connector.patch_norm, features), (connector.merged_norm, merged)]
        total = sum(size * (2 if norm == "layer" else 1) for norm, size in norms if norm)
        sizes = [merged, *([connector.hidden_size] if connector.hidden_size else []), connector.outputs]
        for inputs, outputs in pairwise(sizes):
            total += inputs * outputs + connector.bias * outputs
        return total
