"""The multimodal side of a resolved model: its configuration, for every process. No jax, no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from triptych.models.errors import WeightsError
from triptych.models.hub.demo import demo_multimodal
from triptych.models.hub.resolve import ModelKind, ResolvedModel
from triptych.models.multimodal.config import MultimodalConfig
from triptych.models.multimodal.demos import DEMOS
from triptych.models.multimodal.hf_config import is_multimodal, multimodal_from_hf
from triptych.models.multimodal.presets import VLM_PRESETS

__all__ = ["open_multimodal", "read_multimodal"]


def open_multimodal(resolved: ResolvedModel) -> MultimodalConfig | None:
    """The model's multimodal configuration, None for a text model. Raises UnsupportedModelError or WeightsError."""
    if resolved.kind is ModelKind.PRESET:
        return VLM_PRESETS.get(resolved.path.name)
    if resolved.kind is ModelKind.DEMO:
        return demo_multimodal(DEMOS[resolved.name], resolved.path)
    if resolved.kind is not ModelKind.HF_FOLDER:
        return None
    return read_multimodal(resolved.path)


def read_multimodal(folder: Path) -> MultimodalConfig | None:
    """The same, of a Hugging Face folder."""
    config = _json(folder / "config.json")
    if config is None or not is_multimodal(config):
        return None
    preprocessor = _json(folder / "preprocessor_config.json") or _json(folder / "processor_config.json")
    video = _json(folder / "video_preprocessor_config.json")
    return multimodal_from_hf(config, preprocessor, _json(folder / "generation_config.json"), video)


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON: {error}") from error
