"""Make the golden checkpoints of tests/models/multimodal/goldens: tiny random vision-language models with reference outputs.

The reference is the transformers library in float32 with eager attention, and its image processors for Pillow; tests then
need neither it nor torch. Each folder gets the model's own files and golden.npz: pictures, what the processor and the
encoder make of each, and logits at every position of a prompt with one and with two of them (Qwen2.5-VL: with a video
too). An encoder without a language model gets its last hidden states instead.

    pip install torch torchvision transformers Pillow   # made with 2.13, 0.28, 5.23 and 13
    python -m triptych.tools.make_vision_goldens tests/models/multimodal/goldens [family ...]
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

_TEXT: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_VISION: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 24,
    "patch_size": 6,
}

IMAGE_TOKEN, BEFORE_TOKEN, AFTER_TOKEN, VIDEO_TOKEN = 100, 101, 102, 103

# (width, height) of the two pictures: wide and narrow, no side a multiple of a patch.
SIZES = ((50, 34), (29, 41))


@dataclass(frozen=True)
class Golden:
    """One family: configuration classes by name, their arguments, the processor and its arguments."""

    model: str
    vision: str
    vision_sizes: Mapping[str, Any]
    processor: str
    processing: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = "Llama"
    text_sizes: Mapping[str, Any] = field(default_factory=dict)
    around: tuple[int | None, int | None] = (None, None)
    sizes: tuple[tuple[int, int], ...] = SIZES


FAMILIES: Mapping[str, Golden] = {
    "llava": Golden(
        "Llava",
        "CLIPVision",
        _VISION,
        "CLIPImageProcessorPil",
        {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}},
        {"image_token_index": IMAGE_TOKEN},
    ),
    # Every switch of LLaVA the other way: all tokens of two layers, padding to a square, a mistral without biases.
    "llava_full": Golden(
        "Llava",
        "CLIPVision",
        _VISION | {"hidden_act": "gelu", "num_attention_heads": 4},
        "LlavaImageProcessorPil",
        {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}, "do_pad": True},
        {
            "image_token_index": IMAGE_TOKEN,
            "vision_feature_select_strategy": "full",
            "vision_feature_layer": [-3, -1],
            "multimodal_projector_bias": False,
        },
        text="Mistral",
    ),
    "llava_siglip": Golden(
        "Llava",
        "SiglipVision",
        _VISION | {"vision_use_head": False},
        "SiglipImageProcessorPil",
        {"size": {"height": 24, "width": 24}},
        {"image_token_index": IMAGE_TOKEN, "vision_feature_select_strategy": "full", "vision_feature_layer": -1},
        text="Qwen2",
    ),
    "dinov2": Golden(
        "Dinov2",
        "Dinov2",
        {key: value for key, value in _VISION.items() if key != "intermediate_size"}
        | {"mlp_ratio": 2, "image_size": 42},
        "BitImageProcessorPil",
        {"size": {"shortest_edge": 30}, "crop_size": {"height": 24, "width": 24}},
        text=None,
    ),
    "dinov2_swiglu": Golden(
        "Dinov2",
        "Dinov2",
        {key: value for key, value in _VISION.items() if key != "intermediate_size"}
        | {"mlp_ratio": 2, "use_swiglu_ffn": True, "num_hidden_layers": 1},
        "BitImageProcessorPil",
        {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}},
        text=None,
    ),
    "internvl": Golden(
        "InternVL",
        "InternVLVision",
        _VISION | {"attention_bias": True, "layer_scale_init_value": 0.5},
        "GotOcr2ImageProcessorPil",
        {"size": {"height": 24, "width": 24}, "max_patches": 4, "crop_to_patches": True},
        {"image_token_id": IMAGE_TOKEN, "image_seq_length": 4},
        text="Qwen2",
        around=(BEFORE_TOKEN, AFTER_TOKEN),
    ),
    "qwen2_5_vl": Golden(
        "Qwen2_5_VL",
        "Qwen2_5_VLVision",
        {
            "hidden_size": 24,
            "depth": 3,
            "num_heads": 3,
            "intermediate_size": 40,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "window_size": 16,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        },
        "Qwen2VLImageProcessorPil",
        {"size": {"shortest_edge": 256, "longest_edge": 1000}, "patch_size": 4},
        {
            "image_token_id": IMAGE_TOKEN,
            "video_token_id": VIDEO_TOKEN,
            "vision_start_token_id": BEFORE_TOKEN,
            "vision_end_token_id": AFTER_TOKEN,
        },
        text="Qwen2_5_VLText",
        text_sizes={
            "num_hidden_layers": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
            "use_sliding_window": False,
        },
        around=(BEFORE_TOKEN, AFTER_TOKEN),
    ),
}


def pictures(sizes: tuple[tuple[int, int], ...]) -> list[np.ndarray]:
    """Smooth colours with noise, uint8 [height, width, 3]: resizing shows in every pixel."""
    made = []
    for index, (width, height) in enumerate(sizes):
        y, x = np.mgrid[:height, :width]
        waves = [np.sin(x / (3 + c) + index) * np.cos(y / (5 - c)) for c in range(3)]
        noise = np.random.default_rng(index).normal(0, 20, (height, width, 3))
        made.append(np.clip(128 + 90 * np.stack(waves, axis=-1) + noise, 0, 255).astype(np.uint8))
    return made


def make_golden(name: str, folder: Path) -> None:
    """Write one family's files and reference outputs."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    family = FAMILIES[name]
    generator = torch.Generator().manual_seed(sum(name.encode()))
    model = _model(transformers, family)
    _randomise(torch, model, generator)
    processor = getattr(transformers, family.processor)(**family.processing)
    images = pictures(family.sizes)
    inputs = [dict(processor(images=[image], return_tensors="pt")) for image in images]
    arrays: dict[str, np.ndarray] = {f"image_{i}": image for i, image in enumerate(images)}
    arrays |= {f"pixels_{i}": one["pixel_values"].numpy() for i, one in enumerate(inputs)}
    with torch.no_grad():
        if family.text is None:
            for index, one in enumerate(inputs):
                arrays[f"features_{index}"] = model(one["pixel_values"]).last_hidden_state[0].numpy()
        else:
            arrays |= _conversations(torch, model, inputs, family, generator)
            if name == "qwen2_5_vl":
                arrays |= _video(torch, model, processor)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    np.savez_compressed(folder / "golden.npz", **arrays)  # pyright: ignore[reportArgumentType]


def _model(transformers: Any, family: Golden) -> Any:
    vision = getattr(transformers, f"{family.vision}Config")(**family.vision_sizes)
    if family.text is None:
        vision._attn_implementation = "eager"
        return getattr(transformers, f"{family.model}Model")(vision).eval()
    text = getattr(transformers, f"{family.text}Config")(**{**_TEXT, **family.text_sizes})
    config = getattr(transformers, f"{family.model}Config")(
        vision_config=vision.to_dict(), text_config=text.to_dict(), **family.config, tie_word_embeddings=False
    )
    config._attn_implementation = "eager"
    return getattr(transformers, f"{family.model}ForConditionalGeneration")(config).eval()


def _randomise(torch: Any, model: Any, generator: Any) -> None:
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                norm = "norm" in path or "ln_q" in path or "lambda" in path
                parameter.copy_(1.0 + 0.2 * noise if norm and not path.endswith("bias") else 0.1 * noise)
            else:
                inputs = parameter.shape[-1] if parameter.ndim < 4 else parameter[0].numel()
                parameter.copy_(noise * 1.2 * inputs**-0.5)


def _conversations(torch: Any, model: Any, inputs: list, family: Golden, generator: Any) -> dict[str, np.ndarray]:
    """Encoder rows of each picture, and prompts around one and two of them with their logits."""
    arrays: dict[str, np.ndarray] = {}
    rows = [_features(torch, model, one) for one in inputs]
    for index, features in enumerate(rows):
        arrays[f"features_{index}"] = features.numpy()
    text = torch.randint(4, 90, (3, 5), generator=generator).tolist()
    before, after = ([token] if token is not None else [] for token in family.around)
    for count in (1, 2):
        short, tokens = list(text[0]), list(text[0])
        for index in range(count):
            short += [IMAGE_TOKEN, *text[index + 1]]
            tokens += [*before, *[IMAGE_TOKEN] * len(rows[index]), *after, *text[index + 1]]
        ids = torch.tensor([tokens])
        media = {key: torch.cat([one[key] for one in inputs[:count]]) for key in inputs[0] if key != "num_patches"}
        if "image_grid_thw" in media:
            media["mm_token_type_ids"] = (ids == IMAGE_TOKEN).int()
            positions, _ = model.model.get_rope_index(ids, media["mm_token_type_ids"], media["image_grid_thw"])
            arrays[f"positions_{count}"] = positions[:, 0].numpy()
        arrays[f"prompt_{count}"] = np.asarray(short, np.int32)
        arrays[f"tokens_{count}"] = np.asarray(tokens, np.int32)
        arrays[f"logits_{count}"] = model(ids, **media, use_cache=False).logits[0].numpy()
    return arrays


def _video(torch: Any, model: Any, processor: Any) -> dict[str, np.ndarray]:
    """Three frames, of which the last is repeated: two steps in time, 1.5 seconds apart, between two texts."""
    frames = pictures(((30, 22),) * 3)
    pixels = [processor(images=[frame], return_tensors="pt") for frame in frames]
    _, height, width = pixels[0]["image_grid_thw"][0].tolist()
    shape = (height * width, 3, 2, 4, 4)
    pairs = [[pixels[at]["pixel_values"].reshape(shape)[:, :, 0] for at in pair] for pair in ((0, 1), (2, 2))]
    video = torch.cat([torch.stack(pair, dim=2).reshape(height * width, -1) for pair in pairs])
    grid = torch.tensor([[2, height, width]])
    tokens = [5, 6, BEFORE_TOKEN, *[VIDEO_TOKEN] * (height * width // 2), AFTER_TOKEN, 7, 8]
    ids = torch.tensor([tokens])
    media = {
        "video_grid_thw": grid,
        "second_per_grid_ts": torch.tensor([1.5]),
        "mm_token_type_ids": 2 * (ids == VIDEO_TOKEN).int(),
    }
    positions, _ = model.model.get_rope_index(ids, **media)
    return {
        "frames": np.stack(frames),
        "video_features": torch.cat(list(model.model.get_video_features(video, grid).pooler_output)).numpy(),
        "video_positions": positions[:, 0].numpy(),
        "video_tokens": np.asarray(tokens, np.int32),
        "video_logits": model(ids, pixel_values_videos=video, **media, use_cache=False).logits[0].numpy(),
    }


def _features(torch: Any, model: Any, one: Mapping[str, Any]) -> Any:
    take: Callable[..., Any] = model.model.get_image_features
    arguments = [one["pixel_values"]] + ([one["image_grid_thw"]] if "image_grid_thw" in one else [])
    rows = take(*arguments, return_dict=True).pooler_output
    rows = torch.cat(list(rows), dim=0) if isinstance(rows, list | tuple) else rows
    return rows.reshape(-1, rows.shape[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description="Make golden vision models with the transformers library.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("families", nargs="*", help=f"any of {', '.join(FAMILIES)}; all by default")
    arguments = parser.parse_args()
    for name in arguments.families or FAMILIES:
        make_golden(name, arguments.folder / name)
        print(name)


if __name__ == "__main__":
    main()
