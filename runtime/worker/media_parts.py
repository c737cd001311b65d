"""The media side of an instance being built: its pool, its encoder if it has the role, and what travels between such pools."""

from __future__ import annotations

from dataclasses import dataclass

from jax.sharding import Mesh

from triptych.models.hub.bundle import ModelBundle
from triptych.models.hub.encoder import load_model_encoder
from triptych.models.hub.resolve import ResolvedModel
from triptych.models.kv import KVGroup
from triptych.models.multimodal.config import MultimodalConfig
from triptych.models.multimodal.plans import DynamicProcessing, Processing, plan_image
from triptych.models.speech.bundle import SpeechBundle
from triptych.models.vision.config import VisionConfig
from triptych.models.weights.vision import dummy_encoder
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role
from triptych.runtime.engine.encoder import MediaEncoder
from triptych.runtime.engine.media_pool import EmbeddingPool, MediaPool, media_group
from triptych.runtime.engine.media_stage import MediaStage
from triptych.runtime.engine.page_programs import PageMover
from triptych.runtime.engine.shelf import MediaShelf
from triptych.runtime.engine.vision_encoder import VisionMediaEncoder
from triptych.runtime.transfer.header import KvHeader, group_headers
from triptych.runtime.worker.config import InstancePlan, WorkerConfig
from triptych.runtime.worker.speech_parts import (
    cross_group,
    speech_encode_patches,
    speech_media_pages,
    speech_stage,
)
from triptych.sharding.rules import ShardingRules

# Prompts of full length whose embeddings fit a media pool by default: they are small beside the KV of one.
SEQUENCES = 4
# Slots of the largest encode program by default, unless one item has more: a few pictures a step, so that decoding beside it goes on.
ENCODE_PATCHES = 2048


@dataclass(frozen=True)
class WorkerModel:
    """A model opened by a worker. `multimodal` is None for text models, and for those of speech, whose bundle says all. `draft`: the model that guesses
    its tokens, if one does."""

    resolved: ResolvedModel
    bundle: ModelBundle | SpeechBundle
    multimodal: MultimodalConfig | None = None
    draft: ModelBundle | None = None

    @property
    def speech(self) -> SpeechBundle | None:
        """The bundle of a speech model."""
        return self.bundle if isinstance(self.bundle, SpeechBundle) else None

    @property
    def mrope(self) -> bool:
        """Whether its positions have three parts."""
        return not isinstance(self.bundle, SpeechBundle) and self.bundle.config.rope.sections is not None

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end what it says."""
        return (self.bundle.tokens.end,) if isinstance(self.bundle, SpeechBundle) else self.bundle.config.eos_token_ids


def takes_media(config: WorkerConfig, model: WorkerModel) -> bool:
    """Whether instances of this process have to do with media at all."""
    return model.speech is not None or (model.multimodal is not None and config.media_pages != 0)


def media_pages(config: WorkerConfig, plan: InstancePlan, model: WorkerModel, max_model_len: int) -> int:
    """Pages of an instance's media pool, the null page included; 0 where it has none.

    Raises ConfigError if it is to encode for a model without an encoder.
    """
    if model.speech is not None:
        return speech_media_pages(config, plan, model.speech.config)
    if not takes_media(config, model):
        if Role.ENCODE in plan.possible:
            raise ConfigError(
                f"{plan.id} has the role encode, but {config.model} takes no media (media_pages is {config.media_pages}); "
                "leave E out of the topology, or serve a multimodal model"
            )
        return 0
    if not plan.possible & {Role.ENCODE, Role.PREFILL}:
        return 0
    pages = -(-max_model_len // config.page_size)
    return config.media_pages or min(config.max_num_seqs, SEQUENCES) * pages + 1


def encode_patches(config: WorkerConfig, plan: InstancePlan, model: WorkerModel) -> int:
    """Slots of the largest encode program of an instance; 0 where it does not encode."""
    if model.speech is not None:
        return speech_encode_patches(config, plan, model.speech.config)
    if Role.ENCODE not in plan.possible or model.multimodal is None:
        return 0
    return config.encode_patches or max(ENCODE_PATCHES, _largest_item(model.multimodal))


def _largest_item(model: MultimodalConfig) -> int:
    """Encoder slots of the largest item that an image or a step of a video becomes."""
    return max(
        _largest_piece(processing, model.vision) for processing in (model.processing, model.video_processing.frame)
    )


def _largest_piece(processing: Processing, vision: VisionConfig) -> int:
    if isinstance(processing, DynamicProcessing):
        return processing.max_pixels // vision.patch_size**2 + vision.class_token
    # Others cut pieces of one size, whatever the image has.
    return max(vision.slots(grid.rows, grid.columns) for grid in plan_image(processing, vision, 64, 64).grids)


def media_stage(
    config: WorkerConfig, plan: InstancePlan, model: WorkerModel, mesh: Mesh, pages: int
) -> MediaStage | None:
    """Pool and encoder (its weights are loaded here) of an instance with so many media pages; None for none."""
    if model.speech is not None:
        return speech_stage(config, model.speech, mesh, pages, encode_patches(config, plan, model))
    if not pages or model.multimodal is None:
        return None
    pool = EmbeddingPool.of(
        ShardingRules(mesh),
        model.multimodal.vision.output_size,
        config.dtype,
        config.page_size,
        pages,
        model.multimodal.injections,
    )
    slots = encode_patches(config, plan, model)
    if not slots:
        return MediaStage(pool)
    return MediaStage(pool, _encoder(config, model, model.multimodal, mesh), MediaShelf(config.media_bytes), slots)


def _encoder(config: WorkerConfig, model: WorkerModel, multimodal: MultimodalConfig, mesh: Mesh) -> MediaEncoder:
    if config.load_dummy:
        return VisionMediaEncoder(dummy_encoder(multimodal.vision, mesh, config.dtype))
    return VisionMediaEncoder(load_model_encoder(model.resolved, multimodal, mesh, config.dtype))


def media_header(config: WorkerConfig, model: WorkerModel) -> KvHeader | None:
    """What a media pool of this model holds, wherever it is sharded; None where no media are taken."""
    group = _group(config, model)
    if group is None:
        return None
    return KvHeader(
        model=config.served_model_name,
        revision=f"{model.bundle.revision}/{config.dtype}",
        groups=group_headers((group,)),
        dtype=group.dtype,
        page_size=config.page_size,
        granule=config.export_pages,
        layer_groups=((0, len(group.layers)),),
    )


def _group(config: WorkerConfig, model: WorkerModel) -> KVGroup | None:
    if model.speech is not None:
        return cross_group(config, model.speech.config)
    if model.multimodal is None or not takes_media(config, model):
        return None
    return media_group(model.multimodal.vision.output_size, config.dtype)


def media_mover(config: WorkerConfig, mesh: Mesh, pool: MediaPool) -> PageMover:
    """Page programs of a media pool, not compiled yet."""
    keys, _ = pool.structs[0]
    return PageMover(
        mesh,
        pool.layout,
        len(pool.group.layers),
        pool.num_pages,
        pool.page_size,
        pool.group.head_dim,
        pool.dtype,
        config.export_pages,
        pool_sharding=keys.sharding,  # type: ignore[arg-type]
        what="media",
    )
