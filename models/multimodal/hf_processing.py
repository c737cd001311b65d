"""How a Hugging Face folder says that images are processed: preprocessor_config.json, or its place in a newer file."""

from collections.abc import Mapping
from typing import Any, get_args

from triptych.models.errors import UnsupportedModelError
from triptych.models.multimodal.plans import (
    CropProcessing,
    DynamicProcessing,
    Processing,
    Resample,
    Size,
    StretchProcessing,
    TileProcessing,
)
from triptych.models.multimodal.video import VideoProcessing
from triptych.models.vision.config import VisionConfig

Json = Mapping[str, Any]

# Pillow's numbers of its filters, in order.
_RESAMPLES: tuple[Resample, ...] = get_args(Resample)


def image_processor(preprocessor: Json) -> Json:
    """The image processor's own settings; newer files have them beside those of other processors."""
    return preprocessor.get("image_processor", preprocessor)


def normalisation(preprocessor: Json, vision: VisionConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel; the encoder's own where the file has none."""
    settings = image_processor(preprocessor)
    mean, std = settings.get("image_mean") or vision.mean, settings.get("image_std") or vision.std
    return tuple(float(value) for value in mean), tuple(float(value) for value in std)


def processing_from_hf(preprocessor: Json, model_type: str, vision: VisionConfig) -> Processing:
    """The processing of a model (or of an encoder alone, by its model type). Absent settings get its defaults.

    Raises UnsupportedModelError for settings that are not carried out here.
    """
    settings = image_processor(preprocessor)
    _refuse_unsupported(settings)
    resample = _RESAMPLES[int(settings.get("resample", 3))]
    side = (vision.position_grid or 0) * vision.patch_size
    size = settings.get("size")
    if model_type == "qwen2_5_vl":
        limits = size if isinstance(size, Mapping) else {}
        least = settings.get("min_pixels") or limits.get("shortest_edge") or 56 * 56
        most = settings.get("max_pixels") or limits.get("longest_edge") or 28 * 28 * 1280
        return DynamicProcessing(int(least), int(most), resample)
    if model_type == "internvl":
        # Its processor always cuts into tiles, whatever crop_to_patches says.
        return TileProcessing(
            _size(size, side),
            int(settings.get("min_patches") or 1),
            int(settings.get("max_patches") or 12),
            resample,
        )
    if not settings.get("do_center_crop", vision.family != "siglip"):
        return StretchProcessing(_size(size, side), resample)
    pad = None
    if settings.get("do_pad", False):
        mean, _ = normalisation(settings, vision)
        pad = (int(mean[0] * 255), int(mean[1] * 255), int(mean[2] * 255))
    crop = _size(settings.get("crop_size"), side)
    if isinstance(size, Mapping) and "shortest_edge" not in size:
        return CropProcessing(crop, exact=_size(size, side), pad=pad, resample=resample)
    shortest = size["shortest_edge"] if isinstance(size, Mapping) else size or side
    return CropProcessing(crop, shortest=int(shortest), pad=pad, resample=resample)


def video_from_hf(settings: Json) -> VideoProcessing:
    """How Qwen2.5-VL takes videos. Absent settings get the defaults of its processor; pixels are those of one frame.

    Raises UnsupportedModelError for settings that are not carried out here.
    """
    settings = settings.get("video_processor", settings)
    _refuse_unsupported(settings)
    size = settings.get("size")
    limits = size if isinstance(size, Mapping) else {}
    least = settings.get("min_pixels") or limits.get("shortest_edge") or 128 * 28 * 28
    most = settings.get("max_pixels") or limits.get("longest_edge") or 768 * 28 * 28
    return VideoProcessing(
        DynamicProcessing(int(least), int(most), _RESAMPLES[int(settings.get("resample", 3))]),
        rate=float(settings.get("fps") or 2.0),
        least=int(settings.get("min_frames") or 4),
        most=int(settings.get("max_frames") or 768),
    )


def _size(size: Any, default: int) -> Size:
    """(width, height) of {"height", "width"}, of one number, or the default for both."""
    if size is None:
        return default, default
    if isinstance(size, Mapping):
        if not {"width", "height"} <= size.keys():
            raise UnsupportedModelError(f"an image size needs width and height, the configuration says {dict(size)}")
        return int(size["width"]), int(size["height"])
    return int(size), int(size)


def _refuse_unsupported(settings: Json) -> None:
    for key in ("do_resize", "do_rescale", "do_normalize"):
        if not settings.get(key, True):
            raise UnsupportedModelError(f"image processing with {key} off is not supported")
    if abs(float(settings.get("rescale_factor") or 1 / 255) * 255 - 1) > 1e-6:
        raise UnsupportedModelError("image processing with another rescale_factor than 1/255 is not supported")
