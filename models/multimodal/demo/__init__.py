"""The demo vision-language model: DINOv2-small, a connector trained by this project, and SmolLM2-135M-Instruct with adapters.

`trained.safetensors` is what was trained (connector, adapters; float16), `training.json` how, and what it reached on images that it never
saw; `tools/train_projector.py` makes both. This file says what the parts are and how they fit; it holds no weights and imports no jax.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from triptych.models.config import ModelConfig
from triptych.models.multimodal.config import MediaMarkers, MultimodalConfig
from triptych.models.multimodal.plans import CropProcessing
from triptych.models.vision.config import IMAGENET_MEAN, IMAGENET_STD, ConnectorConfig, VisionConfig

__all__ = ["CONNECTOR", "IMAGE_TOKEN", "NAME", "RANK", "SIDE", "demo_config", "trained_file", "vision_config"]

NAME = "demo-vlm"
IMAGE_TOKEN = "<file_sep>"  # a special token that the language model never met in conversations
SIDE = 224  # pixels of the square that an image is resized and cut to
RANK = 8  # of the language model's adapters

CONNECTOR = ConnectorConfig(outputs=576, hidden_size=768, merge=2, merged_norm="layer", activation="gelu")


def vision_config(connector: ConnectorConfig | None = CONNECTOR) -> VisionConfig:
    """DINOv2-small (arXiv 2304.07193): 16 x 16 patches of an image, of which 2 x 2 become one embedding."""
    return VisionConfig(
        family="dinov2",
        hidden_size=384,
        stored_layers=12,
        feature_layers=(12,),
        num_heads=6,
        intermediate_size=1536,
        patch_size=14,
        activation="gelu",
        position_grid=37,
        resize_positions=True,
        class_token=True,
        final_norm=True,
        layer_scale=True,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        connector=connector,
    )


def demo_config(text: ModelConfig, image_id: int) -> MultimodalConfig:
    """The whole model over a language model's configuration; `image_id` is the id of IMAGE_TOKEN in its vocabulary."""
    return MultimodalConfig(
        text=text,
        vision=vision_config(),
        processing=CropProcessing((SIDE, SIDE), shortest=SIDE),
        markers=MediaMarkers(image_id, IMAGE_TOKEN),
    )


def trained_file() -> Path:
    """The trained weights, inside the package."""
    return Path(str(files("triptych.models.multimodal.demo").joinpath("trained.safetensors")))
