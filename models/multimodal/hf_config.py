"""A `MultimodalConfig` from a Hugging Face folder's JSON files: LLaVA-1.5, InternVL and Qwen2.5-VL.

Absent keys get the library's defaults, because published files leave out what equals one.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from triptych.models.config import ModelConfig
from triptych.models.errors import UnsupportedModelError
from triptych.models.multimodal.config import MediaMarkers, MultimodalConfig
from triptych.models.multimodal.hf_processing import normalisation, processing_from_hf, video_from_hf
from triptych.models.vision.config import ConnectorConfig, VisionConfig
from triptych.models.vision.hf_config import hidden_state_layers, vision_from_hf

Json = Mapping[str, Any]

MODELS = ("llava", "internvl", "qwen2_5_vl")

# What the library's Llama configuration says where a LLaVA folder says nothing: Llama 2 7B.
_LLAMA_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}

_TEXT_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen2_5_vl": "Qwen2ForCausalLM",
    "qwen2_5_vl_text": "Qwen2ForCausalLM",
}


def is_multimodal(config: Json) -> bool:
    """Whether a config.json describes a model with a vision encoder."""
    return "vision_config" in config


def multimodal_from_hf(
    config: Json, preprocessor: Json | None, generation: Json | None = None, video: Json | None = None
) -> MultimodalConfig:
    """From the parsed config.json, preprocessor_config.json, generation_config.json and video_preprocessor_config.json.

    Raises UnsupportedModelError, with what is supported, for anything that would be computed wrongly.
    """
    kind = config.get("model_type")
    if kind not in MODELS:
        raise UnsupportedModelError(f"vision-language model {kind!r} is not supported; supported: {', '.join(MODELS)}")
    text = _text(config, generation, tied={"llava": False, "internvl": True, "qwen2_5_vl": False}[kind])
    make = {"llava": _llava, "internvl": _internvl, "qwen2_5_vl": _qwen}[kind]
    vision, markers = make(config, text)
    if preprocessor is not None:
        mean, std = normalisation(preprocessor, vision)
        vision = replace(vision, mean=mean, std=std)
    processing = processing_from_hf(preprocessor or {}, kind, vision)
    seconds = None
    if text.rope.sections is not None:
        seconds = float(config["vision_config"].get("tokens_per_second", 2))
    videos = video_from_hf(video or {}) if kind == "qwen2_5_vl" else None
    return MultimodalConfig(text, vision, processing, markers, seconds, video=videos)


def _text(config: Json, generation: Json | None, tied: bool) -> ModelConfig:
    inner: dict[str, Any] = dict(
        config.get("text_config") or {key: config[key] for key in config if key != "vision_config"}
    )
    kind = inner.get("model_type", "llama")
    if kind not in _TEXT_ARCHITECTURES:
        raise UnsupportedModelError(
            f"language model {kind!r} is not supported; supported: {', '.join(_TEXT_ARCHITECTURES)}"
        )
    inner["architectures"] = [_TEXT_ARCHITECTURES[kind]]
    if kind == "llama":
        inner = {**_LLAMA_DEFAULTS, **inner}
    inner["tie_word_embeddings"] = bool(
        config.get("tie_word_embeddings", tied) or inner.get("tie_word_embeddings", False)
    )
    sections = None
    for key in ("rope_parameters", "rope_scaling"):
        rope: dict[str, Any] = dict(inner.get(key) or {})
        sections = rope.pop("mrope_section", sections)
        for name in ("type", "rope_type"):
            if rope.get(name) == "mrope":
                rope[name] = "default"
        inner[key] = rope
    if kind.startswith("qwen2_5_vl") and sections is None:
        sections = (16, 24, 24)
    for key in ("eos_token_id", "bos_token_id", "pad_token_id"):
        inner.setdefault(key, config.get(key))
    model = ModelConfig.from_hf(inner, generation)
    if sections is None:
        return model
    return replace(model, rope=replace(model.rope, sections=tuple(int(size) for size in sections)))


def _llava(config: Json, text: ModelConfig) -> tuple[VisionConfig, MediaMarkers]:
    vision = vision_from_hf(config["vision_config"])
    layers = hidden_state_layers(config.get("vision_feature_layer", -2), vision.stored_layers)
    strategy = config.get("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full") or (strategy == "default" and not vision.class_token):
        raise UnsupportedModelError(
            f"feature selection {strategy!r} of {vision.family} is not supported; supported: 'default' (without the "
            "class token) and 'full'"
        )
    connector = ConnectorConfig(
        outputs=text.hidden_size,
        hidden_size=text.hidden_size,
        activation=_projector_activation(config),
        bias=bool(config.get("multimodal_projector_bias", True)),
    )
    vision = replace(
        vision,
        feature_layers=layers,
        final_norm=False,
        output="all" if strategy == "full" and vision.class_token else "patches",
        connector=connector,
    )
    token = config.get("image_token_index", config.get("image_token_id", 32000))
    return vision, MediaMarkers(int(token), "<image>")


def _internvl(config: Json, text: ModelConfig) -> tuple[VisionConfig, MediaMarkers]:
    vision = vision_from_hf(config["vision_config"])
    ratio = float(config.get("downsample_ratio", 0.5))
    merge = round(1 / ratio)
    if merge * ratio != 1 or config.get("vision_feature_select_strategy", "default") != "default":
        raise UnsupportedModelError(
            f"InternVL with downsample_ratio {ratio} and features {config.get('vision_feature_select_strategy')!r} is "
            "not supported; supported: a ratio of 1/n, without the class token"
        )
    connector = ConnectorConfig(
        outputs=text.hidden_size,
        hidden_size=text.hidden_size,
        merge=merge,
        merged_norm="layer",
        activation=_projector_activation(config),
    )
    index = config.get("vision_feature_layer", -1)
    vision = replace(
        vision,
        feature_layers=hidden_state_layers(index, vision.stored_layers),
        final_norm=vision.final_norm and index == -1,
        connector=connector,
    )
    token = int(config.get("image_token_id", 151667))
    return vision, MediaMarkers(token, "<IMG_CONTEXT>", before="<img>", after="</img>")


def _qwen(config: Json, text: ModelConfig) -> tuple[VisionConfig, MediaMarkers]:
    inner = dict(config["vision_config"])
    inner["model_type"] = "qwen2_5_vl_vision"
    vision = vision_from_hf(inner)
    merge = int(inner.get("spatial_merge_size", 2))
    connector = ConnectorConfig(
        outputs=int(inner.get("out_hidden_size", text.hidden_size)),
        hidden_size=vision.hidden_size * merge**2,
        merge=merge,
        patch_norm="rms",
        norm_eps=1e-6,
    )
    markers = MediaMarkers(
        int(config.get("image_token_id", 151655)),
        "<|image_pad|>",
        int(config.get("video_token_id", 151656)),
        "<|video_pad|>",
        before="<|vision_start|>",
        after="<|vision_end|>",
    )
    return replace(vision, connector=connector), markers


def _projector_activation(config: Json) -> Any:
    name = config.get("projector_hidden_act", "gelu")
    if name != "gelu":
        raise UnsupportedModelError(f"projector activation {name!r} is not supported; supported: gelu")
    return name
