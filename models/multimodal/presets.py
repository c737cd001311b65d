"""Vision-language models with random weights, by name, as `models/config.py` has them for text."""

from dataclasses import replace

from triptych.models.config import PRESETS
from triptych.models.multimodal.config import MediaMarkers, MultimodalConfig
from triptych.models.multimodal.plans import CropProcessing, DynamicProcessing
from triptych.models.multimodal.video import VideoProcessing
from triptych.models.vision.config import ConnectorConfig, VisionConfig

# The toy vocabulary's pad token, which no text has unless it is spelt out.
TOY_IMAGE_ID = 259

_TOY = PRESETS["toy"]

VLM_PRESETS: dict[str, MultimodalConfig] = {
    # For tests: a LLaVA of 16 x 16 pixels, 16 patches and as many embedding rows, over the toy decoder.
    "toy-vlm": MultimodalConfig(
        text=replace(_TOY, name="toy-vlm"),
        vision=VisionConfig(
            family="clip",
            hidden_size=32,
            stored_layers=2,
            feature_layers=(2,),
            num_heads=4,
            intermediate_size=64,
            patch_size=4,
            activation="quick_gelu",
            position_grid=4,
            class_token=True,
            patch_bias=False,
            norm_eps=1e-5,
            pre_norm=True,
            connector=ConnectorConfig(outputs=_TOY.hidden_size, hidden_size=_TOY.hidden_size),
        ),
        processing=CropProcessing((16, 16), shortest=16),
        markers=MediaMarkers(TOY_IMAGE_ID, "<|pad|>"),
    ),
    # For tests: a Qwen2.5-VL of patches of 4 x 4 pixels, 2 x 2 of them an embedding, at most 24 a picture, and M-RoPE. Pictures and videos have
    # the same placeholder: the toy vocabulary has no token to spare.
    "toy-qwen-vl": MultimodalConfig(
        text=replace(_TOY, name="toy-qwen-vl", rope=replace(_TOY.rope, sections=(2, 3, 3))),
        vision=VisionConfig(
            family="qwen2_5_vl",
            hidden_size=32,
            stored_layers=2,
            feature_layers=(2,),
            num_heads=4,
            intermediate_size=48,
            patch_size=4,
            activation="silu",
            temporal_patch=2,
            rope_theta=10000.0,
            patch_bias=False,
            norm="rms",
            gated=True,
            window=4,
            full_layers=(1,),
            connector=ConnectorConfig(
                outputs=_TOY.hidden_size, hidden_size=128, merge=2, patch_norm="rms", norm_eps=1e-6
            ),
        ),
        processing=DynamicProcessing(min_pixels=4 * 64, max_pixels=24 * 64),
        markers=MediaMarkers(TOY_IMAGE_ID, "<|pad|>", TOY_IMAGE_ID, "<|pad|>"),
        tokens_per_second=2.0,
        video=VideoProcessing(DynamicProcessing(min_pixels=4 * 64, max_pixels=6 * 64)),
    ),
    # For tests: eP-ALM, the class tokens after two layers into two layers of the toy decoder.
    "toy-epalm": MultimodalConfig(
        text=replace(_TOY, name="toy-epalm"),
        vision=VisionConfig(
            family="dinov2",
            hidden_size=32,
            stored_layers=3,
            feature_layers=(2, 3),
            num_heads=4,
            intermediate_size=64,
            patch_size=4,
            activation="gelu",
            position_grid=4,
            class_token=True,
            final_norm=True,
            layer_scale=True,
            output="class",
            connector=ConnectorConfig(outputs=_TOY.hidden_size, hidden_size=None, levels=2),
        ),
        processing=CropProcessing((16, 16), shortest=16),
        markers=MediaMarkers(TOY_IMAGE_ID, "<|pad|>"),
        injections=((0, 0), (1, 1)),
    ),
}
