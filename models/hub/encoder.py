"""A resolved model's encoder on a mesh: what an encode instance loads, and nothing of the language model."""

from __future__ import annotations

from jax.sharding import Mesh

from triptych.models.hub.demo_weights import demo_encoder_source
from triptych.models.hub.resolve import ModelKind, ResolvedModel
from triptych.models.multimodal.config import MultimodalConfig
from triptych.models.multimodal.demos import DEMOS
from triptych.models.vision.structure import LoadedEncoder
from triptych.models.weights.hf import open_hf_folder
from triptych.models.weights.vision import dummy_encoder, load_encoder

__all__ = ["load_model_encoder"]


def load_model_encoder(resolved: ResolvedModel, config: MultimodalConfig, mesh: Mesh, dtype: str) -> LoadedEncoder:
    """Place the encoder of a model that `open_multimodal` gave `config` for.

    Raises WeightsError if its files do not fit, IncompatibleTpError if the mesh does not.
    """
    if resolved.kind is ModelKind.PRESET:
        return dummy_encoder(config.vision, mesh, dtype)
    if resolved.kind is ModelKind.DEMO:
        return load_encoder(config.vision, demo_encoder_source(DEMOS[resolved.name], resolved.path), mesh, dtype)
    return load_encoder(config.vision, open_hf_folder(resolved.path), mesh, dtype)
