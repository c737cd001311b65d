"""What decoder processes do for a gateway: decode an image and cut it into the encoder's pieces there, so that only patches come back.

The table goes to the pool by name (runtime/media/pool.py); a process is told the model's configuration with each job, as plain JSON.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from triptych.models.errors import MediaShapeError
from triptych.models.multimodal import plans
from triptych.models.multimodal.config import MultimodalConfig
from triptych.models.multimodal.plans import Processing, plan_image
from triptych.models.multimodal.processing import process_image
from triptych.models.vision.config import ConnectorConfig, VisionConfig
from triptych.runtime.media.errors import MediaKindError
from triptych.runtime.media.limits import MediaLimits
from triptych.runtime.media.sniff import MediaType

PROCESSING = {
    cls.__name__: cls
    for cls in (plans.CropProcessing, plans.StretchProcessing, plans.TileProcessing, plans.DynamicProcessing)
}


def described(config: MultimodalConfig) -> str:
    """What `image_pieces` must know of a model, as one JSON text."""
    processing = {"class": type(config.processing).__name__} | dataclasses.asdict(config.processing)
    return json.dumps({"processing": processing, "vision": dataclasses.asdict(config.vision)})


@lru_cache(maxsize=4)
def understood(description: str) -> tuple[Processing, VisionConfig]:
    """The other way round."""
    told = json.loads(description)
    processing, vision = _frozen(told["processing"]), _frozen(told["vision"])
    connector = vision.pop("connector")
    vision["connector"] = None if connector is None else ConnectorConfig(**connector)
    return PROCESSING[processing.pop("class")](**processing), VisionConfig(**vision)


def image_pieces(data: bytearray, options: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
    """The patches of all pieces of an image, one piece after another: uint8 [patches, numbers of a patch]; and its size."""
    from triptych.runtime.media.image import decode_image  # Pillow: in decoder processes only

    processing, vision = understood(options["model"])
    image = decode_image(data, MediaType(options["type"]), MediaLimits(**options["limits"]))
    height, width, _ = image.shape
    try:
        pieces = process_image(image, plan_image(processing, vision, width, height), vision)
    except MediaShapeError as error:
        raise MediaKindError(str(error)) from error
    return np.concatenate([piece.patches for piece in pieces]), {"width": width, "height": height}


def _frozen(value: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's arrays as tuples, so that what is made of them can be hashed."""

    def frozen(entry: Any) -> Any:
        if isinstance(entry, list):
            return tuple(map(frozen, entry))
        return {key: frozen(inner) for key, inner in entry.items()} if isinstance(entry, dict) else entry

    return {key: frozen(entry) for key, entry in value.items()}


OPERATIONS = {"image_pieces": image_pieces}
