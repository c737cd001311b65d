"""What the demo model is made of: a DINOv2-small encoder, a connector, SmolLM2-135M-Instruct; and where an image goes in its prompts."""

from __future__ import annotations

from triptych.models.vision.config import IMAGENET_MEAN, IMAGENET_STD, ConnectorConfig, VisionConfig

IMAGE_TOKEN = "<file_sep>"  # a special token that the language model never saw in conversations
RANK = 8  # of the language model's adapters
CONNECTOR_HIDDEN = 768

CONNECTOR = ConnectorConfig(outputs=576, hidden_size=CONNECTOR_HIDDEN, merge=2, merged_norm="layer", activation="gelu")


def vision_config(connector: ConnectorConfig | None = CONNECTOR) -> VisionConfig:
    """DINOv2-small (arXiv 2304.07193) on 224 x 224 pixels: 16 x 16 patches, of which 2 x 2 become one embedding."""
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
