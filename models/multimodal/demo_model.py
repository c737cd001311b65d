"""A demo model as data: how SmolLM2, DINOv2-small and what this project trained make a vision-language model. No weights, no jax."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from triptych.models.config import ModelConfig
from triptych.models.multimodal.config import MultimodalConfig
from triptych.models.vision.config import IMAGENET_MEAN, IMAGENET_STD, ConnectorConfig, Output, VisionConfig

__all__ = ["DINO_LAYERS", "IMAGE_TOKEN", "SIDE", "DemoModel", "dinov2_small"]

IMAGE_TOKEN = "<file_sep>"  # a special token that the language model never met in conversations
SIDE = 224  # pixels of the square that an image is resized and cut to
DINO_LAYERS = 12


@dataclass(frozen=True)
class DemoModel:
    """One demo model.

    Attributes:
        name: as for `serve --model`.
        package: that holds `trained.safetensors` (what was trained, float16) and `training.json` (how, and what it reached).
        vision: the encoder, with the connector given or with none.
        build: (the language model's configuration, IMAGE_TOKEN's id in its vocabulary) -> the whole model.
        prompt: special tokens whose embeddings were trained, in the order of the trained rows; they stand before every image, the last
            one is IMAGE_TOKEN itself. Empty if no embeddings were trained.
        rank: of the language model's adapters, 0 for none.
    """

    name: str
    package: str
    vision: Callable[[ConnectorConfig | None], VisionConfig]
    connector: ConnectorConfig
    build: Callable[[ModelConfig, int], MultimodalConfig]
    prompt: tuple[str, ...] = ()
    rank: int = 0

    def trained_file(self) -> Path:
        """The trained weights, inside the package."""
        return Path(str(files(self.package).joinpath("trained.safetensors")))


def dinov2_small(
    connector: ConnectorConfig | None, feature_layers: tuple[int, ...] = (DINO_LAYERS,), output: Output = "patches"
) -> VisionConfig:
    """DINOv2-small (arXiv 2304.07193)."""
    return VisionConfig(
        family="dinov2",
        hidden_size=384,
        stored_layers=DINO_LAYERS,
        feature_layers=feature_layers,
        num_heads=6,
        intermediate_size=1536,
        patch_size=14,
        activation="gelu",
        position_grid=37,
        resize_positions=True,
        class_token=True,
        final_norm=True,
        layer_scale=True,
        output=output,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        connector=connector,
    )
