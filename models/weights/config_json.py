"""A `ModelConfig` as JSON and back, exactly: every field under its own name, the rope scaling with its kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from triptych.models.config import ModelConfig
from triptych.models.errors import WeightsError
from triptych.models.rope_config import DynamicScaling, LinearScaling, Llama3Scaling, RopeConfig, YarnScaling

__all__ = ["config_from_json", "config_to_json"]

_SCALINGS = {
    "linear": LinearScaling,
    "dynamic": DynamicScaling,
    "llama3": Llama3Scaling,
    "yarn": YarnScaling,
}


def config_to_json(config: ModelConfig) -> dict[str, Any]:
    """A dict of JSON values."""
    fields = asdict(config)
    scaling = config.rope.scaling
    if scaling is not None:
        kind = next(kind for kind, cls in _SCALINGS.items() if isinstance(scaling, cls))
        fields["rope"]["scaling"] = {"kind": kind} | asdict(scaling)
    return fields


def config_from_json(fields: Mapping[str, Any]) -> ModelConfig:
    """The inverse of `config_to_json`. Raises WeightsError for unknown or missing fields."""
    try:
        rope = dict(fields["rope"])
        if rope["scaling"] is not None:
            scaling = dict(rope["scaling"])
            rope["scaling"] = _SCALINGS[scaling.pop("kind")](**scaling)
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
        }
        if rope.get("sections") is not None:
            rope["sections"] = tuple(rope["sections"])
        values["rope"] = RopeConfig(**rope)
        return ModelConfig(**values)
    except (KeyError, TypeError) as error:
        raise WeightsError(f"the stored model configuration has a missing or unknown field: {error}") from error
