"""Images in `triptych simulate`: flags, and what a model's encoder makes of an image."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from triptych.models.config import ModelConfig
from triptych.models.errors import MediaShapeError, UnsupportedModelError
from triptych.models.hub.media import read_multimodal
from triptych.models.multimodal.plans import CropProcessing, DynamicProcessing, Processing, plan_image
from triptych.models.multimodal.presets import VLM_PRESETS
from triptych.models.vision.config import ConnectorConfig, VisionConfig
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.simulation.hardware import find_hardware
from triptych.runtime.simulation.steptime_encode import EncoderShape, RooflineEncoder
from triptych.runtime.simulation.steptime_table import EncodeTable, load_table
from triptych.runtime.simulation.study import RateResult
from triptych.runtime.simulation.study_fleet import Kind
from triptych.runtime.simulation.study_layout import Limits, MediaDevice, table_media
from triptych.runtime.simulation.workload_images import Images

SEQUENCES, ENCODE_PATCHES = (
    4,
    2048,
)  # defaults of a worker (runtime/worker/media_parts.py), so that a study has them too


@dataclass(frozen=True)
class Vision:
    """An encoder and how images come to it."""

    config: VisionConfig
    processing: Processing


def _clip_l_336(hidden: int) -> Vision:
    config = VisionConfig(
        "clip", 1024, 24, (23,), 16, 4096, 14, "quick_gelu", position_grid=24, class_token=True, patch_bias=False,
        norm_eps=1e-5, pre_norm=True, connector=ConnectorConfig(hidden, hidden),
    )  # fmt: skip
    return Vision(config, CropProcessing((336, 336), shortest=336))


def _qwen2_5_vl(hidden: int) -> Vision:
    connector = ConnectorConfig(hidden, 5120, merge=2, patch_norm="rms")
    config = VisionConfig(
        "qwen2_5_vl", 1280, 32, (32,), 16, 3420, 14, "silu", temporal_patch=2, rope_theta=10000.0, patch_bias=False,
        norm="rms", gated=True, window=8, full_layers=(7, 15, 23, 31), connector=connector,
    )  # fmt: skip
    return Vision(config, DynamicProcessing(max_pixels=28 * 28 * 16384))


VISIONS: dict[str, Callable[[int], Vision]] = {"clip-l-336": _clip_l_336, "qwen2.5-vl": _qwen2_5_vl}
"""Encoders by name, for a language model of the given hidden size: that of LLaVA-1.5 (arXiv 2310.03744) and that of
Qwen2.5-VL (arXiv 2502.13923), sizes as in their published configurations."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("images")
    group.add_argument("--image-share", type=float, default=0.0, help="share of requests with images (default 0)")
    group.add_argument("--images-per-request", type=int, default=1, help="of those that have any (default 1)")
    group.add_argument("--image-uses", type=float, default=1.0, help="how often an image comes, on average (default 1)")
    group.add_argument(
        "--image-size", type=image_size, default=(1024, 1024), metavar="WxH", help="pixels (default 1024x1024)"
    )
    group.add_argument("--image-tokens", type=int, help="embeddings of an image (default: as the encoder makes them)")
    group.add_argument("--image-patches", type=int, help="encoder positions of an image (default: as it takes them)")
    group.add_argument(
        "--vision", metavar="NAME",
        help=f"encoder: {', '.join(VISIONS)}, or a folder with config.json (default: that of --model or --encode-table)",
    )  # fmt: skip
    group.add_argument(
        "--encode-hardware", metavar="NAME", help="what encode instances run on, if it is something else"
    )
    group.add_argument(
        "--encode-table", type=Path, metavar="FILE", help="step times of encode instances, if they differ"
    )
    group.add_argument("--encode-tp", type=int, help="chips an encode instance, if different")
    group.add_argument("--media-pages", type=int, help="pages of embeddings an instance (default: as a worker has)")
    group.add_argument(
        "--encode-patches", type=int, help="most patches of a step (default: 2048, or the largest image)"
    )


def find_vision(args: argparse.Namespace, text: ModelConfig | None) -> Vision | None:
    """The encoder that the flags name, or that the model has; None for a text model."""
    if args.vision in VISIONS:
        if text is None:
            raise ConfigError(f"--vision {args.vision} needs --model: its connector has the language model's size")
        return VISIONS[args.vision](text.hidden_size)
    name = args.vision or args.model
    preset = VLM_PRESETS.get(name.removeprefix("dummy:"))
    folder = Path(name)
    if preset is None and (folder / "config.json").is_file():
        try:
            preset = read_multimodal(folder)
        except UnsupportedModelError as error:
            raise ConfigError(str(error)) from error
    if preset is not None:
        return Vision(preset.vision, preset.processing)
    if args.vision is not None:
        raise ConfigError(
            f"no encoder {name!r}; there are {', '.join(VISIONS)}, or name a folder of a multimodal model"
        )
    return None


def make_images(args: argparse.Namespace, vision: Vision | None, table: EncodeTable | None) -> Images | None:
    """The images of the load; None if it has none. A picture that is cut into pieces counts as so many images."""
    if not args.image_share:
        return None
    pieces, tokens, patches = 1, args.image_tokens, args.image_patches
    if table is not None:
        patches, tokens = patches or table.image[0], tokens or table.image[1]
    elif vision is not None and not (tokens and patches):
        try:
            plan = plan_image(vision.processing, vision.config, *args.image_size)
        except MediaShapeError as error:
            raise ConfigError(f"--image-size: {error}") from error
        pieces, grid = len(plan.grids), plan.grids[0]
        tokens, patches = tokens or plan.piece_rows[0], patches or vision.config.slots(grid.rows, grid.columns)
    if not (tokens and patches):
        raise ConfigError("--image-share needs an encoder: --vision, a multimodal --model, or a table of one")
    return Images(args.image_share, args.images_per_request * pieces, tokens, patches, args.image_uses)


def media_device(
    args: argparse.Namespace,
    hardware: str | None,
    table: EncodeTable | None,
    tp: int,
    limits: Limits,
    vision: Vision | None,
    images: Images | None,
    value_bytes: int,
) -> MediaDevice | None:
    """What an instance of this hardware, or with this table, does with media; None without an encoder."""
    pages = args.media_pages
    if pages is None:
        pages = 1 + min(limits.max_num_seqs, SEQUENCES) * -(-limits.max_model_len // limits.page_size)
    if pages < 2:
        raise ConfigError(f"--media-pages is {pages}; expected at least 2: the null page and one to use")
    if table is not None:
        return table_media(table, pages)
    if vision is None or hardware is None:
        return None
    encoder = EncoderShape.of(vision.config, value_bytes)
    patches = args.encode_patches or max(ENCODE_PATCHES, images.patches if images else 0)
    embedding = vision.config.output_size * value_bytes
    times = RooflineEncoder(find_hardware(hardware), encoder, tp)
    return MediaDevice(times, pages, patches, embedding, encoder.weight_bytes)


def encode_table(path: Path | None) -> EncodeTable | None:
    """What a step table knows of an encoder."""
    return None if path is None else load_table(path).encode


def table(results: Sequence[RateResult]) -> list[str]:
    """What requests with images waited for, a line a rate; means in milliseconds."""
    names = ("gather", "encode_wait", "encode", "feed")
    lines = [
        f"{'req/s':>8}{'gather':>9}{'enc wait':>10}{'encode':>9}{'E to P':>9}{'of TTFT':>9}   means of requests with images"
    ]
    for r in results:
        times = [r.latencies[name].mean * 1e3 if name in r.latencies else math.nan for name in names]
        share = r.latencies["share"].mean if "share" in r.latencies else math.nan
        cells = "".join(f"{value:>{width}.1f}" for value, width in zip(times, (9, 10, 9, 9), strict=True))
        lines.append(f"{r.rate:>8g}{cells}{share:>9.1%}")
    return lines


def memory(kinds: Sequence[Kind]) -> str:
    """Bytes that instances hold, by kind: what an encode instance does without is what another one has for KV."""
    lines = [f"{'instance':<12}{'weights':>10}{'KV pool':>10}{'media pool':>12}{'all':>10}   GB of an instance"]
    for kind in kinds:
        parts = [kind.weight_bytes, kind.kv_bytes, kind.media_bytes]
        cells = "".join(
            f"{value / 1e9:>{width}.2f}" for value, width in zip((*parts, sum(parts)), (10, 10, 12, 10), strict=True)
        )
        lines.append(f"{kind.name:<12}{cells}")
    return "\n".join(lines)


def image_size(text: str) -> tuple[int, int]:
    """Width and height of "1024x768"."""
    try:
        width, height = map(int, text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 1024x768") from None
    return width, height
