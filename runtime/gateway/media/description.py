"""What a decoder process must know of a model, as one JSON text: how images are processed, and the encoder's sizes. No Pillow here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from triptych.models.multimodal import plans
from triptych.models.multimodal.config import MultimodalConfig
from triptych.models.multimodal.plans import Processing
from triptych.models.vision.config import ConnectorConfig, VisionConfig

PROCESSING = {
    cls.__name__: cls
    for cls in (plans.CropProcessing, plans.StretchProcessing, plans.TileProcessing, plans.DynamicProcessing)
}


def described(config: MultimodalConfig) -> str:
    """A model for `understood`."""
    processing = {"class": type(config.processing).__name__} | dataclasses.asdict(config.processing)
    return json.dumps({"processing": processing, "vision": dataclasses.asdict(config.vision)})


@lru_cache(maxsize=4)
def understood(description: str) -> tuple[Processing, VisionConfig]:
    """The processing and the encoder of `described`."""
    told = json.loads(description)
    processing, vision = _frozen(told["processing"]), _frozen(told["vision"])
    connector = vision.pop("connector")
    vision["connector"] = None if connector is None else ConnectorConfig(**connector)
    return PROCESSING[processing.pop("class")](**processing), VisionConfig(**vision)


def _frozen(value: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's arrays as tuples, so that what is made of them can be hashed."""

    def frozen(entry: Any) -> Any:
        if isinstance(entry, list):
            return tuple(map(frozen, entry))
        return {key: frozen(inner) for key, inner in entry.items()} if isinstance(entry, dict) else entry

    return {key: frozen(entry) for key, entry in value.items()}
