"""Configurations as they were published, with what they leave out, and what is refused."""

from typing import Any

import pytest

from triptych.models.errors import UnsupportedModelError
from triptych.models.multimodal.hf_config import is_multimodal, multimodal_from_hf
from triptych.models.multimodal.hf_processing import processing_from_hf
from triptych.models.multimodal.plans import CropProcessing, DynamicProcessing, StretchProcessing, TileProcessing
from triptych.models.multimodal.presets import VLM_PRESETS
from triptych.models.vision.hf_config import vision_from_hf

# config.json and preprocessor_config.json of llava-hf/llava-1.5-7b-hf: nearly everything is a default.
LLAVA: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 32000,
    "model_type": "llava",
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}
LLAVA_IMAGES = {
    "crop_size": {"height": 336, "width": 336},
    "do_center_crop": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": {"shortest_edge": 336},
}
# config.json of Qwen/Qwen2.5-VL-3B-Instruct: the language model's keys are at the top.
QWEN: dict[str, Any] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 151936,
}
QWEN_IMAGES = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}


def changed(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """With keys changed; "part__key" changes a key of a part."""
    out = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    for name, value in changes.items():
        part, _, key = name.partition("__")
        if key:
            out[part][key] = value
        else:
            out[part] = value
    return out


def test_llava_has_the_defaults_of_what_it_leaves_out() -> None:
    config = multimodal_from_hf(LLAVA, LLAVA_IMAGES)
    assert is_multimodal(LLAVA)
    assert (config.text.num_layers, config.text.hidden_size, config.text.vocab_size) == (32, 4096, 32064)
    assert not config.text.tie_embeddings
    assert (config.vision.num_layers, config.vision.stored_layers) == (23, 24)
    assert (config.vision.activation, config.vision.norm_eps) == ("quick_gelu", 1e-5)
    assert config.processing == CropProcessing((336, 336), shortest=336)
    assert config.plan(1000, 30).tokens == 576
    # CLIP ViT-L/14 at 336 pixels, without its last layer and norm, and the connector.
    assert config.vision.parameter_count() == 303_507_456 - 12_596_224 - 2_048 + 20_979_712


def test_qwen_has_its_language_model_at_the_top_of_the_file() -> None:
    config = multimodal_from_hf(QWEN, QWEN_IMAGES)
    assert config.text.architecture == "Qwen2ForCausalLM"
    assert config.text.rope.sections == (16, 24, 24)
    assert (config.text.rope.theta, config.text.tie_embeddings) == (1000000.0, True)
    assert config.text.eos_token_ids == (151645,)
    assert (config.vision.window, config.vision.full_layers) == (8, (7, 15, 23, 31))
    assert config.processing == DynamicProcessing(3136, 12845056)
    assert config.plan(1920, 1080).tokens == 69 * 39
    assert config.tokens_per_second == 2
    assert config.vision.merge == 2
    assert config.vision.parameter_count() == pytest.approx(669e6, rel=0.01)


def test_processing_follows_the_file() -> None:
    vision = VLM_PRESETS["toy-vlm"].vision
    assert processing_from_hf({}, "clip", vision) == CropProcessing((16, 16), shortest=16)
    exact = {"size": {"height": 20, "width": 30}, "crop_size": 16, "resample": 2}
    expected = CropProcessing((16, 16), exact=(30, 20), resample="bilinear")
    assert processing_from_hf(exact, "clip", vision) == expected
    nested = {"image_processor": {"do_center_crop": False, "size": {"height": 8, "width": 16}}}
    assert processing_from_hf(nested, "clip", vision) == StretchProcessing((16, 8))
    padded = processing_from_hf({"do_pad": True, "image_mean": [0.5, 0.25, 0.1]}, "clip", vision)
    assert padded == CropProcessing((16, 16), shortest=16, pad=(127, 63, 25))
    tiles = {"size": {"height": 448, "width": 448}, "max_patches": 6}
    assert processing_from_hf(tiles, "internvl", vision) == TileProcessing((448, 448), 1, 6)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": "fuyu"}, "fuyu.*supported: llava"),
        ({"text_config__model_type": "gpt2"}, "gpt2"),
        ({"vision_config__model_type": "swin"}, "swin"),
        ({"vision_config__hidden_act": "relu"}, "relu"),
        ({"vision_feature_layer": 0}, "feature layers"),
        ({"vision_feature_layer": -30}, "feature layers"),
        ({"vision_feature_select_strategy": "some"}, "some"),
        ({"projector_hidden_act": "relu"}, "projector activation"),
        ({"vision_config__image_size": [336, 224]}, "square"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(UnsupportedModelError, match=match):
        multimodal_from_hf(changed(LLAVA, **changes), LLAVA_IMAGES)


@pytest.mark.parametrize("settings", [{"do_resize": False}, {"do_normalize": False}, {"rescale_factor": 1.0}])
def test_processing_that_is_not_carried_out_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match="image processing"):
        multimodal_from_hf(LLAVA, LLAVA_IMAGES | settings)


def test_encoders_and_language_models_must_fit() -> None:
    with pytest.raises(UnsupportedModelError, match="takes 2048"):
        multimodal_from_hf(changed(QWEN, vision_config__out_hidden_size=4096), QWEN_IMAGES)
    with pytest.raises(UnsupportedModelError, match="norms of queries"):
        vision_from_hf({"model_type": "internvl_vision", "use_qk_norm": True})
    swiglu = vision_from_hf({"model_type": "dinov2", "use_swiglu_ffn": True, "hidden_size": 1536, "mlp_ratio": 4})
    assert swiglu.intermediate_size == 4096


def test_whatever_changes_an_embedding_changes_the_processing_key() -> None:
    key = multimodal_from_hf(LLAVA, LLAVA_IMAGES).processing_key()
    for changes in ({"vision_feature_layer": -3}, {"vision_config__patch_size": 28}):
        assert multimodal_from_hf(changed(LLAVA, **changes), LLAVA_IMAGES).processing_key() != key
    assert multimodal_from_hf(LLAVA, LLAVA_IMAGES | {"resample": 2}).processing_key() != key
    assert multimodal_from_hf(LLAVA, LLAVA_IMAGES | {"image_mean": [0.5, 0.5, 0.5]}).processing_key() != key
