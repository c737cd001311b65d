"""The demo vision-language model: DINOv2-small, a connector trained by this project, and SmolLM2-135M-Instruct with adapters.

`trained.safetensors` is what was trained (connector, adapters; float16), `training.json` how, and what it reached on images that it never
saw; `tools/train_projector.py` makes both. This file says what the parts are and how they fit; it holds no weights and imports no jax.
"""

from __future__ import annotations

from triptych.models.config import ModelConfig
from triptych.models.multimodal.config import MediaMarkers, MultimodalConfig
from triptych.models.multimodal.demo_model import IMAGE_TOKEN, SIDE, DemoModel, dinov2_small
from triptych.models.multimodal.plans import CropProcessing
from triptych.models.vision.config import ConnectorConfig, VisionConfig

__all__ = ["DEMO_VLM"]

# 16 x 16 patches of an image, of which 2 x 2 become one embedding.
_CONNECTOR = ConnectorConfig(outputs=576, hidden_size=768, merge=2, merged_norm="layer", activation="gelu")


def _vision(connector: ConnectorConfig | None) -> VisionConfig:
    return dinov2_small(connector)


def _build(text: ModelConfig, image_id: int) -> MultimodalConfig:
    return MultimodalConfig(
        text=text,
        vision=_vision(_CONNECTOR),
        processing=CropProcessing((SIDE, SIDE), shortest=SIDE),
        markers=MediaMarkers(image_id, IMAGE_TOKEN),
    )


DEMO_VLM = DemoModel("demo-vlm", __name__, _vision, _CONNECTOR, _build, rank=8)
