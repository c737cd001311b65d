"""A `VisionConfig` from the vision part of a Hugging Face configuration. Absent keys get the library's defaults.

Published files leave out what equals a default, so the defaults here are part of the format.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from triptych.models.errors import UnsupportedModelError
from triptych.models.vision.config import (
    CLIP_MEAN,
    CLIP_STD,
    HALF_MEAN,
    HALF_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Activation,
    VisionConfig,
)

ENCODERS = ("clip_vision_model", "siglip_vision_model", "dinov2", "internvl_vision", "qwen2_5_vl_vision")

_ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
}


def vision_from_hf(config: Mapping[str, Any]) -> VisionConfig:
    """An encoder without a connector: the features after its last layer. Raises UnsupportedModelError."""
    kind = config.get("model_type")
    makers = dict(zip(ENCODERS, (_clip, _siglip, _dinov2, _internvit, _qwen), strict=True))
    if kind not in makers:
        raise UnsupportedModelError(f"vision encoder {kind!r} is not supported; supported: {', '.join(ENCODERS)}")
    return makers[kind](config)


def hidden_state_layers(index: int | Sequence[int], layers: int) -> tuple[int, ...]:
    """How many layers lie before the hidden states that `index` names: 0 is the embedding, -1 the last layer's output."""
    indices = (index,) if isinstance(index, int) else tuple(index)
    return tuple(at if at >= 0 else layers + 1 + at for at in indices)


def one_side(size: int | Sequence[int], what: str) -> int:
    """The side of something that must be square."""
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise UnsupportedModelError(f"{what} must be square, the configuration says {size}")
    return int(sides.pop())


def _activation(config: Mapping[str, Any], default: str) -> Activation:
    name = config.get("hidden_act", default)
    if name not in _ACTIVATIONS:
        raise UnsupportedModelError(f"activation {name!r} is not supported; supported: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _sizes(config: Mapping[str, Any], width: int, layers: int, heads: int, inner: int) -> dict[str, Any]:
    """The sizes that most families call the same; the arguments are the library's defaults."""
    stored = int(config.get("num_hidden_layers", layers))
    return {
        "hidden_size": int(config.get("hidden_size", width)),
        "stored_layers": stored,
        "feature_layers": (stored,),
        "num_heads": int(config.get("num_attention_heads", heads)),
        "intermediate_size": int(config.get("intermediate_size", inner)),
        "channels": int(config.get("num_channels", 3)),
    }


def _table(config: Mapping[str, Any], image: int, patch: int) -> dict[str, Any]:
    size = one_side(config.get("patch_size", patch), "patches")
    return {"patch_size": size, "position_grid": one_side(config.get("image_size", image), "images") // size}


def _clip(config: Mapping[str, Any]) -> VisionConfig:
    return VisionConfig(
        family="clip",
        **_sizes(config, 768, 12, 12, 3072),
        **_table(config, 224, 32),
        activation=_activation(config, "quick_gelu"),
        class_token=True,
        patch_bias=False,
        norm_eps=float(config.get("layer_norm_eps", 1e-5)),
        pre_norm=True,
        mean=CLIP_MEAN,
        std=CLIP_STD,
    )


def _siglip(config: Mapping[str, Any]) -> VisionConfig:
    return VisionConfig(
        family="siglip",
        **_sizes(config, 768, 12, 12, 3072),
        **_table(config, 224, 16),
        activation=_activation(config, "gelu_pytorch_tanh"),
        norm_eps=float(config.get("layer_norm_eps", 1e-6)),
        final_norm=True,
        mean=HALF_MEAN,
        std=HALF_STD,
    )


def _dinov2(config: Mapping[str, Any]) -> VisionConfig:
    sizes = _sizes(config, 768, 12, 12, 0)
    gated = bool(config.get("use_swiglu_ffn", False))
    inner = int(sizes["hidden_size"] * config.get("mlp_ratio", 4))
    # The gated variant keeps two thirds, in steps of eight.
    sizes["intermediate_size"] = (int(inner * 2 / 3) + 7) // 8 * 8 if gated else inner
    return VisionConfig(
        family="dinov2",
        **sizes,
        **_table(config, 224, 14),
        resize_positions=True,
        activation="silu" if gated else _activation(config, "gelu"),
        gated=gated,
        class_token=True,
        qkv_bias=bool(config.get("qkv_bias", True)),
        norm_eps=float(config.get("layer_norm_eps", 1e-6)),
        final_norm=True,
        layer_scale=True,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def _internvit(config: Mapping[str, Any]) -> VisionConfig:
    if config.get("use_qk_norm", False):
        raise UnsupportedModelError("InternViT with norms of queries and keys is not supported")
    if not config.get("use_absolute_position_embeddings", True):
        raise UnsupportedModelError("InternViT without position embeddings is not supported")
    return VisionConfig(
        family="internvit",
        **_sizes(config, 1024, 24, 16, 4096),
        **_table(config, 448, 14),
        activation=_activation(config, "gelu"),
        class_token=True,
        qkv_bias=bool(config.get("attention_bias", False)),
        norm="rms" if config.get("norm_type", "layer_norm") == "rms_norm" else "layer",
        norm_eps=float(config.get("layer_norm_eps", 1e-6)),
        final_norm=not config.get("use_mean_pooling", True),
        layer_scale=True,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def _qwen(config: Mapping[str, Any]) -> VisionConfig:
    layers = int(config.get("depth", config.get("num_hidden_layers", 32)))
    patch = one_side(config.get("patch_size", 14), "patches")
    rope = config.get("rope_parameters") or {}
    return VisionConfig(
        family="qwen2_5_vl",
        hidden_size=int(config.get("hidden_size", 1280)),
        stored_layers=layers,
        feature_layers=(layers,),
        num_heads=int(config.get("num_heads", config.get("num_attention_heads", 16))),
        intermediate_size=int(config.get("intermediate_size", 3420)),
        channels=int(config.get("in_channels", config.get("in_chans", 3))),
        patch_size=patch,
        temporal_patch=int(config.get("temporal_patch_size", 2)),
        rope_theta=float(rope.get("rope_theta") or 10000.0),
        activation=_activation(config, "silu"),
        gated=True,
        patch_bias=False,
        norm="rms",
        norm_eps=1e-6,
        window=_window(config, patch),
        full_layers=tuple(int(layer) for layer in config.get("fullatt_block_indexes", (7, 15, 23, 31))),
        mean=CLIP_MEAN,
        std=CLIP_STD,
    )


def _window(config: Mapping[str, Any], patch: int) -> int:
    """Patches a side of a window: whole merged patches of the pixels that the configuration names."""
    merge = int(config.get("spatial_merge_size", 2))
    return int(config.get("window_size", 112)) // merge // patch * merge
