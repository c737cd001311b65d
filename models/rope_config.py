"""Rotary position embedding as data: the base, one of four scalings, and the inverse frequencies that follow.

No JAX here: frequencies are a handful of float64 numbers that a program takes in as a constant. `models/rope.py`
applies them.

A scaling must be a function of the position alone, because cached keys outlive the step that wrote them. "dynamic"
(NTK) as published changes every frequency when the sequence outgrows the trained length, which would silently
invalidate the keys that are already cached; its frequencies are therefore those of a sequence within `max_position`,
which is exact up to there.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from triptych.models.errors import UnsupportedModelError


@dataclass(frozen=True)
class LinearScaling:
    """Position interpolation (arXiv 2306.15595): every frequency divided by `factor`."""

    factor: float


@dataclass(frozen=True)
class DynamicScaling:
    """Dynamic NTK: the plain frequencies up to `max_position` tokens, and no longer sequences (see the module text)."""

    factor: float
    max_position: int


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1: long waves divided by `factor`, short ones kept, a linear blend between the two wavelengths."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071): interpolation by wavelength, and cos/sin multiplied by `attention_factor`."""

    factor: float
    original_max_position: int
    beta_fast: float
    beta_slow: float
    attention_factor: float
    truncate: bool


RopeScaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling


@dataclass(frozen=True)
class RopeConfig:
    """Base `theta`, an optional scaling, and for multimodal positions how the pairs are shared out.

    With `sections` (M-RoPE, arXiv 2409.12191) a token has three positions, for time, height and width: the first
    sections[0] pairs turn with the first, the next sections[1] with the second, and so on.
    """

    theta: float = 10000.0
    scaling: RopeScaling | None = None
    sections: tuple[int, ...] | None = None

    @property
    def amplitude(self) -> float:
        """What cos and sin are multiplied by: 1 unless YaRN says otherwise."""
        return self.scaling.attention_factor if isinstance(self.scaling, YarnScaling) else 1.0

    def inverse_frequencies(self, head_dim: int) -> np.ndarray:
        """Radians per position for each of the head_dim // 2 rotated pairs, float64."""
        plain = self.theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        match self.scaling:
            case None | DynamicScaling():
                return plain
            case LinearScaling(factor=factor):
                return plain / factor
            case Llama3Scaling() as scaling:
                return _llama3(plain, scaling)
            case YarnScaling() as scaling:
                return _yarn(plain, scaling, self.theta, head_dim)

    def axes(self, head_dim: int) -> np.ndarray:
        """For each of the head_dim // 2 pairs, which of the three positions it turns with."""
        sections = self.sections or ()
        if sum(sections) != head_dim // 2:
            raise UnsupportedModelError(f"rope sections {sections} must add up to the {head_dim // 2} rotated pairs")
        return np.repeat(np.arange(len(sections)) % 3, sections)

    @staticmethod
    def from_hf(config: Mapping[str, Any]) -> "RopeConfig":
        """From a Hugging Face config: `rope_parameters`, or the older pair `rope_theta` and `rope_scaling`."""
        params = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
        if any(isinstance(value, Mapping) for value in params.values()):
            raise UnsupportedModelError(
                f"rope parameters per layer type ({sorted(params)}) are not supported; "
                "supported: one set for all layers"
            )
        theta = float(params.get("rope_theta") or config.get("rope_theta") or 10000.0)
        kind = params.get("rope_type") or params.get("type") or "default"
        if float(params.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0) != 1.0:
            raise UnsupportedModelError(
                "a partial rotary factor is not supported; supported: rotation of the whole head"
            )
        return RopeConfig(theta, _scaling_from_hf(kind, params, int(config.get("max_position_embeddings") or 2048)))


def _scaling_from_hf(kind: str, params: Mapping[str, Any], max_position: int) -> RopeScaling | None:
    if "mrope_section" in params:
        raise UnsupportedModelError("multimodal rope (mrope_section) is not supported for text decoders")
    if kind == "default":
        return None
    if kind not in ("linear", "dynamic", "llama3", "yarn"):
        raise UnsupportedModelError(f"rope scaling {kind!r} is not supported; supported: linear, dynamic, llama3, yarn")
    if "factor" not in params:
        raise UnsupportedModelError(f"rope scaling {kind!r} needs a 'factor'; the configuration has {sorted(params)}")
    factor = float(params["factor"])
    original = int(params.get("original_max_position_embeddings") or max_position)
    if kind == "linear":
        return LinearScaling(factor)
    if kind == "dynamic":
        return DynamicScaling(factor, max_position)
    if kind == "llama3":
        return Llama3Scaling(factor, float(params["low_freq_factor"]), float(params["high_freq_factor"]), original)
    return YarnScaling(
        factor,
        original,
        beta_fast=float(params.get("beta_fast") or 32.0),
        beta_slow=float(params.get("beta_slow") or 1.0),
        attention_factor=_yarn_attention_factor(factor, params),
        truncate=bool(params.get("truncate", True)),
    )


def _yarn_attention_factor(factor: float, params: Mapping[str, Any]) -> float:
    if params.get("attention_factor") is not None:
        return float(params["attention_factor"])

    def temperature(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1.0 else 1.0

    if params.get("mscale") and params.get("mscale_all_dim"):
        return temperature(float(params["mscale"])) / temperature(float(params["mscale_all_dim"]))
    return temperature(1.0)


def _llama3(plain: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
    turns = scaling.original_max_position * plain / (2 * math.pi)
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = np.clip(keep, 0.0, 1.0)
    return keep * plain + (1.0 - keep) * plain / scaling.factor


def _yarn(plain: np.ndarray, scaling: YarnScaling, theta: float, head_dim: int) -> np.ndarray:
    def pair_with_turns(turns: float) -> float:
        return head_dim * math.log(scaling.original_max_position / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_with_turns(scaling.beta_fast), pair_with_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    # A ramp of no width would divide by zero; a thousandth of a pair is what the published code uses.
    ramp = (np.arange(head_dim // 2) - low) / (high - low if high != low else 1e-3)
    interpolate = np.clip(ramp, 0.0, 1.0)
    return interpolate * plain / scaling.factor + (1.0 - interpolate) * plain
