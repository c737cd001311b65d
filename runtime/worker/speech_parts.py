"""Whisper on a worker: decoder, window pool and encoder of an instance. The pool holds whole windows, and every instance of the model has one."""

from __future__ import annotations

import dataclasses

from jax.sharding import Mesh

from triptych.models.hub.resolve import ResolvedModel
from triptych.models.kv import KVGroup
from triptych.models.speech.bundle import SpeechBundle, open_speech
from triptych.models.speech.config import WhisperConfig
from triptych.models.speech.kv import whisper_kv_groups
from triptych.models.speech.layers import whisper_heads
from triptych.models.speech.load import load_listener
from triptych.models.speech.presets import WhisperDummySource
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role
from triptych.runtime.engine.media_pool import CrossPool
from triptych.runtime.engine.media_stage import MediaStage
from triptych.runtime.engine.shelf import MediaShelf
from triptych.runtime.engine.speech_encoder import SpeechMediaEncoder
from triptych.runtime.worker.config import InstancePlan, WorkerConfig
from triptych.sharding.rules import ShardingRules

# Windows that fit a pool by default beyond one for each sequence: what is pulled or encoded while all of those run.
SPARE_WINDOWS = 2
# Windows of the largest encode program by default: encoding two costs little more than one, and decoding beside it waits no longer than that.
ENCODE_WINDOWS = 2


def open_speech_bundle(resolved: ResolvedModel, load_dummy: bool) -> SpeechBundle:
    """A speech model's parts; with `load_dummy` random weights of the same shapes."""
    bundle = open_speech(resolved)
    if not load_dummy:
        return bundle
    source, revision = WhisperDummySource(bundle.config), f"dummy-{bundle.config.fingerprint()}"
    return dataclasses.replace(bundle, tensor_source=source, revision=revision)


def window_pages(config: WorkerConfig, model: WhisperConfig) -> int:
    """Pages that one window takes."""
    return -(-model.audio_positions // config.page_size)


def speech_media_pages(config: WorkerConfig, plan: InstancePlan, model: WhisperConfig) -> int:
    """Pages of an instance's pool, the null page included. Raises ConfigError if not even one window fits."""
    window = window_pages(config, model)
    if config.media_pages is None:
        return (config.max_num_seqs + SPARE_WINDOWS) * window + 1
    if config.media_pages < window + 1:
        raise ConfigError(
            f"{plan.id}: {config.media_pages} media pages cannot hold one window of {config.model} ({window} pages and the null page); raise "
            "media_pages, or leave it out"
        )
    return config.media_pages


def speech_encode_patches(config: WorkerConfig, plan: InstancePlan, model: WhisperConfig) -> int:
    """Slots of the largest encode program; 0 where nothing is encoded. Raises ConfigError if not even one window fits."""
    if Role.ENCODE not in plan.possible:
        return 0
    if config.encode_patches is not None and config.encode_patches < model.audio_positions:
        raise ConfigError(
            f"{plan.id}: encode_patches is {config.encode_patches}; a window of {config.model} takes {model.audio_positions}"
        )
    return config.encode_patches or ENCODE_WINDOWS * model.audio_positions


def cross_group(config: WorkerConfig, model: WhisperConfig) -> KVGroup:
    """What the pool holds."""
    return whisper_kv_groups(model, config.kv_dtype)[1]


def speech_stage(config: WorkerConfig, bundle: SpeechBundle, mesh: Mesh, pages: int, encode_patches: int) -> MediaStage:
    """Pool and, with `encode_patches`, encoder of an instance (its weights are loaded here)."""
    model, rules = bundle.config, ShardingRules(mesh)
    pool = CrossPool(rules, cross_group(config, model), whisper_heads(model, rules), config.page_size, pages)
    if not encode_patches:
        return MediaStage(pool)
    listener = load_listener(model, bundle.tensor_source, mesh, config.dtype)
    return MediaStage(pool, SpeechMediaEncoder(listener), MediaShelf(config.media_bytes), encode_patches)
