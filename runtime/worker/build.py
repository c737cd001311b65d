"""Making an instance's parts: mesh, weights, engine, page mover, header. Slow (loads and compiles), so done in a thread, with progress.

Every part is complete and warm when this returns; nothing compiles afterwards.
"""

from __future__ import annotations

import dataclasses
import logging
import random
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from triptych.models.hub.bundle import ModelBundle, open_model
from triptych.models.hub.media import open_multimodal
from triptych.models.hub.resolve import resolve_model
from triptych.models.kernels.auto import kernel_for
from triptych.models.kernels.names import REFERENCE
from triptych.models.kv import CODE_BYTES, DTYPE_BYTES, KVGroup
from triptych.models.speech.bundle import SpeechBundle, is_speech
from triptych.models.speech.load import load_decoder as load_speech_decoder
from triptych.models.weight_formats import AUTO
from triptych.models.weights.dummy import DummySource
from triptych.models.weights.load import LoadedDecoder, load_decoder
from triptych.models.weights.on_device import makes_weights
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Compatibility, InstanceInfo, Role
from triptych.runtime.engine.compiling import usual_threads
from triptych.runtime.engine.config import EngineConfig, engine_config
from triptych.runtime.engine.decoders import ServedDecoder, self_group
from triptych.runtime.engine.draft_stage import DraftStage
from triptych.runtime.engine.encode_engine import EncodeEngine
from triptych.runtime.engine.engine import Engine
from triptych.runtime.engine.media_stage import MediaStage
from triptych.runtime.engine.memory import free_bytes, pages_that_fit
from triptych.runtime.engine.paced import PacedEngine
from triptych.runtime.engine.page_programs import PageMover
from triptych.runtime.engine.pools import layout_of
from triptych.runtime.instance.composer import COMPOSERS, TakingTurns
from triptych.runtime.instance.config import InstanceConfig
from triptych.runtime.instance.core import InstanceCore
from triptych.runtime.instance.speculation import Speculation
from triptych.runtime.instance.termination import StopProbeFactory
from triptych.runtime.transfer.header import CHUNK_ORDER, PROTOCOL_VERSION, KvHeader, group_headers
from triptych.runtime.transfer.layer_groups import LayerGroups, cut_layers
from triptych.runtime.worker.config import InstancePlan, WorkerConfig
from triptych.runtime.worker.draft_parts import load_draft, open_draft
from triptych.runtime.worker.hosts.parts import SharedHost
from triptych.runtime.worker.kept import kept_programs
from triptych.runtime.worker.media_parts import (
    WorkerModel,
    encode_patches,
    media_header,
    media_mover,
    media_pages,
    media_stage,
)
from triptych.runtime.worker.speech_parts import open_speech_bundle
from triptych.runtime.worker.start_times import NOTHING_TIMED, StartTimes
from triptych.sharding.devices import Device
from triptych.sharding.mesh import make_mesh

log = logging.getLogger(__name__)

Progress = Callable[[str], None]


@dataclass(frozen=True)
class PoolParts:
    """What moves the pages of one pool of an instance, and what they are."""

    mover: PageMover
    header: KvHeader


@dataclass(frozen=True)
class InstanceParts:
    """The device side of one instance, ready to run. `kv` is None if it only encodes, `media` if it has no media pool. `start`: what building it took."""

    plan: InstancePlan
    mesh: Mesh
    engine: Engine | EncodeEngine
    kv: PoolParts | None
    media: PoolParts | None = None
    start: StartTimes = NOTHING_TIMED


def open_worker_model(config: WorkerConfig) -> WorkerModel:
    """The model's parts; fetches it if it is not at hand. With `load_dummy` the weights are random ones of the same shapes."""
    resolved = resolve_model(config.model, config.cache, progress=lambda text: log.info("%s", text))
    if is_speech(resolved):
        for name, only in (("weights", AUTO), ("attention", REFERENCE)):
            if (asked := getattr(config, name)) not in (only, AUTO):
                raise ConfigError(f"{name} is {asked!r}; speech models are served with {only!r} only")
        if config.kv_dtype in CODE_BYTES:
            raise ConfigError(f"the KV dtype is {config.kv_dtype}; speech models keep KV in {', '.join(DTYPE_BYTES)}")
        speech = WorkerModel(resolved, open_speech_bundle(resolved, config.load_dummy))
        return dataclasses.replace(speech, draft=open_draft(config, speech))
    bundle = open_model(resolved)
    if config.load_dummy:
        bundle = _with_random_weights(bundle)
    model = WorkerModel(resolved, bundle, open_multimodal(resolved))
    draft = open_draft(config, model)
    if draft is not None and config.load_dummy:
        draft = _with_random_weights(draft)
    return dataclasses.replace(model, draft=draft)


def _with_random_weights(bundle: ModelBundle) -> ModelBundle:
    return dataclasses.replace(
        bundle, tensor_source=DummySource(bundle.config), revision=f"dummy-{bundle.config.fingerprint()}"
    )


def build_instances(config: WorkerConfig, model: WorkerModel, progress: Progress) -> list[InstanceParts]:
    """All instances of the process, on consecutive devices.

    Raises ConfigError when the process has too few devices, IncompatibleTpError when the model's heads do not fit a mesh.
    """
    devices = jax.devices()[config.first_device :]
    if len(devices) < config.devices:
        raise ConfigError(
            f"worker {config.name} needs {config.devices} devices for {', '.join(p.id for p in config.instances)}, "
            f"this process has {len(devices)} for it ({jax.default_backend()})"
        )
    config = dataclasses.replace(config, attention=_kernel(config, model, devices[0]))
    built, first = [], 0
    for plan in config.instances:
        built.append(build_instance(config, plan, model, devices[first : first + plan.tp], progress))
        first += plan.tp
    return built


def build_shared(config: WorkerConfig, model: WorkerModel, progress: Progress, host: SharedHost) -> list[InstanceParts]:
    """This host's share of the instance of several hosts. Returns when all of them are ready."""
    (plan,) = config.instances
    devices = host.devices(plan.tp)
    config = dataclasses.replace(config, attention=_kernel(config, model, jax.local_devices()[0]))
    built = build_instance(config, plan, model, devices, progress, host)
    host.meet("ready")
    return [built]


def _kernel(config: WorkerConfig, model: WorkerModel, device: Device) -> str:
    """The attention kernel of the model and its draft model, by name; speech models have the reference."""
    if model.speech is not None:
        return REFERENCE
    bundles = (model.bundle, model.draft)
    head_dims = [bundle.config.head_dim for bundle in bundles if bundle is not None]
    kernel = kernel_for(config.attention, device, config.page_size, *head_dims)
    log.info("attention: %s (heads of %s, %s)", kernel, " and ".join(map(str, head_dims)), device.device_kind)
    return kernel


def build_instance(
    config: WorkerConfig,
    plan: InstancePlan,
    model: WorkerModel,
    devices: Sequence[Device],
    progress: Progress,
    host: SharedHost | None = None,
) -> InstanceParts:
    """One instance on the given devices; with a `host`, this host's share of it."""
    started = time.monotonic()
    mesh, bundle = make_mesh(devices, plan.tp), model.bundle
    max_model_len = min(config.max_model_len, bundle.config.max_position)
    if max_model_len < config.max_model_len:
        log.warning("max_model_len %d is more than the model's %d, which holds", config.max_model_len, max_model_len)
    pages = media_pages(config, plan, model, max_model_len)
    decodes = bool(plan.possible & {Role.PREFILL, Role.DECODE})
    loaded = _load_decoder(config, model, mesh) if decodes else None
    draft = load_draft(config, plan, model, mesh)
    stage = media_stage(config, plan, model, mesh, pages)
    weights = time.monotonic() - started
    progress(f"{plan.id}: weights on {plan.tp} device(s) in {weights:.1f} s")
    limits = engine_config(
        num_pages=1 if loaded is None else _kv_pages(config, loaded, draft, devices, max_model_len, stage, host),
        max_num_seqs=config.max_num_seqs,
        max_model_len=max_model_len,
        chunk_tokens=config.chunk_tokens,
        page_size=config.page_size,
        max_prefill_rows=config.max_prefill_rows,
        kv_dtype=config.kv_dtype,
        roles=plan.possible,
        compile_threads=config.compile_threads or usual_threads(devices[0].platform),
        media_pages=pages,
        encode_patches=encode_patches(config, plan, model),
        attended=0 if model.speech is None else model.speech.config.audio_positions,
        suppressed=() if model.speech is None else model.speech.tokens.suppressed,
        mrope=model.mrope,
        layer_groups=layer_groups(config, bundle),
        attention=config.attention,
        speculative_tokens=0 if config.speculation is None else config.speculation.tokens,
        draft_model=draft is not None,
    )
    drafts = None if draft is None else DraftStage(limits, draft)
    engine = _engine(config, limits, loaded, mesh, stage, drafts, host)

    def compiled(name: str, done: int, total: int) -> None:
        progress(f"{plan.id}: compiled {done}/{total} {name}")

    kv = media = None
    if loaded is not None:
        group = self_group(bundle.config, config.kv_dtype)
        mover = PageMover if host is None else host.mover
        kv = PoolParts(_kv_mover(mover, config, loaded, group, limits), kv_header(config, bundle, group))
    header = media_header(config, model)
    if stage is not None and header is not None:
        media = PoolParts(media_mover(config, mesh, stage.pool), header)
    movers = [pool.mover for pool in (kv, media) if pool is not None]
    kept = kept_programs(config, plan, model, limits, mesh) if host is None else None
    times = StartTimes.of(weights, engine.compile(compiled, movers, kept))
    progress(f"{plan.id}: ready in {time.monotonic() - started:.1f} s ({times})")
    return InstanceParts(plan, mesh, engine, kv, media, times)


def _load_decoder(config: WorkerConfig, model: WorkerModel, mesh: Mesh) -> ServedDecoder:
    bundle = model.bundle
    if isinstance(bundle, SpeechBundle):
        return load_speech_decoder(bundle.config, bundle.tensor_source, mesh, config.dtype)
    return load_decoder(bundle.config, bundle.tensor_source, mesh, config.dtype, config.weights)


def _kv_pages(
    config: WorkerConfig,
    loaded: ServedDecoder,
    draft: LoadedDecoder | None,
    devices: Sequence[Device],
    max_model_len: int,
    stage: MediaStage | None,
    host: SharedHost | None,
) -> int:
    """Pages of the KV pool, and of a draft model's: what is asked for, or what fits, on every host. A media pool comes out of an accelerator's memory first."""
    if config.num_pages:
        return config.num_pages
    media_bytes = 0 if stage is None else stage.pool.num_pages * stage.pool.page_bytes
    own = [device for device in devices if device.process_index == jax.process_index()]
    pages = pages_that_fit(
        loaded.structure,
        page_size=config.page_size,
        kv_dtype=config.kv_dtype,
        max_model_len=max_model_len,
        bytes_per_device=config.kv_cache_memory or free_bytes(own, config.memory_fraction) - media_bytes,
        attention=config.attention,
        draft=None if draft is None else draft.structure,
    )
    return pages if host is None else host.meet("pages", pages)


def _engine(
    config: WorkerConfig,
    limits: EngineConfig,
    loaded: ServedDecoder | None,
    mesh: Mesh,
    stage: MediaStage | None,
    draft: DraftStage | None,
    host: SharedHost | None,
) -> Engine | EncodeEngine:
    if loaded is None:
        assert stage is not None, "media_pages refuses an encode role without a pool"
        return EncodeEngine(limits, mesh, stage)
    if host is not None:
        return host.engine(limits, loaded, mesh)
    if config.pace is None:
        return Engine(limits, loaded, mesh, stage, draft)
    return PacedEngine(limits, loaded, mesh, config.pace, stage, draft)


def _kv_mover(
    make: Callable[..., PageMover], config: WorkerConfig, loaded: ServedDecoder, group: KVGroup, limits: EngineConfig
) -> PageMover:
    num_pages = limits.num_pages
    return make(
        loaded.rules.mesh,
        loaded.head_layout,
        loaded.config.num_layers,
        num_pages,
        config.page_size,
        group.head_dim,
        group.dtype,
        config.export_pages,
        limits.layer_groups,
        pool_sharding=loaded.rules.pool(),
        pool_layout=layout_of(loaded.structure, limits.attention, group.dtype),
    )


def layer_groups(config: WorkerConfig, bundle: ModelBundle | SpeechBundle) -> LayerGroups:
    """The cut of the model's layers into offers of KV. Raises ConfigError if a speech model's are to be cut: its prompts have four tokens."""
    layers = bundle.config.num_layers
    if isinstance(bundle, SpeechBundle) and config.kv_layer_groups not in (None, layers):
        raise ConfigError(f"kv_layer_groups is {config.kv_layer_groups}; KV of a speech model is offered in one piece")
    return cut_layers(layers, config.kv_layer_groups or layers)


def revision(config: WorkerConfig, bundle: ModelBundle | SpeechBundle) -> str:
    """Which numbers the model has here. KV of quantised weights is other KV than that of the weights they were made from, and random weights that
    accelerators made are others than those that CPUs read."""
    stored = "" if config.weights == AUTO else f"/{config.weights}"
    made = isinstance(bundle.tensor_source, DummySource) and makes_weights(jax.default_backend())
    return f"{bundle.revision}/{config.dtype}{stored}{'/made on the device' if made else ''}"


def compatibility(config: WorkerConfig, model: WorkerModel) -> Compatibility:
    """What every instance of this model and these settings declares, whatever its roles."""
    media, groups = media_header(config, model), layer_groups(config, model.bundle)
    return Compatibility(
        protocol=PROTOCOL_VERSION,
        model=config.served_model_name,
        revision=revision(config, model.bundle),
        kv_dtype=config.kv_dtype,
        page_size=config.page_size,
        kv_layout=CHUNK_ORDER if len(groups) == 1 else f"{CHUNK_ORDER}, offers of {groups[0][1]} layers",
        media_layout="" if media is None else media.digest(),
    )


def kv_header(config: WorkerConfig, bundle: ModelBundle | SpeechBundle, group: KVGroup) -> KvHeader:
    """What this instance's KV is, wherever it is sharded."""
    return KvHeader(
        model=config.served_model_name,
        revision=revision(config, bundle),
        groups=group_headers((group,)),
        dtype=config.kv_dtype,
        page_size=config.page_size,
        granule=config.export_pages,
        layer_groups=layer_groups(config, bundle),
    )


def make_core(
    parts: InstanceParts,
    info: InstanceInfo,
    *,
    max_waiting: int,
    prefix_cache: bool,
    composer: str,
    eos_ids: tuple[int, ...],
    stop_probe: StopProbeFactory,
    forbidden_first: tuple[int, ...] = (),
    speculation: Speculation | None = None,
) -> InstanceCore:
    """The pure half for these parts. Tokens are guessed where the engine was built for it."""
    config = parts.engine.config
    return InstanceCore(
        InstanceConfig(
            ref=info.ref,
            address=info.address,
            digest="" if parts.kv is None else parts.kv.header.digest(),
            roles=info.roles,
            switchable=info.switchable,
            num_pages=config.num_pages,
            page_size=config.page_size,
            max_num_seqs=config.max_num_seqs,
            max_model_len=config.max_model_len,
            chunk_tokens=config.chunk_tokens,
            max_prefill_rows=config.max_prefill_rows,
            max_waiting=max_waiting,
            export_pages=next(pool.header.granule for pool in (parts.kv, parts.media) if pool is not None),
            eos_ids=eos_ids,
            forbidden_first=forbidden_first,
            prefix_cache=prefix_cache,
            media_pages=config.media_pages,
            encode_patches=config.encode_patches,
            media_digest="" if parts.media is None else parts.media.header.digest(),
            mrope=config.mrope,
            speculation=speculation if config.speculative_tokens else None,
        ),
        stop_probe=stop_probe,
        random=random.Random(secrets.randbits(128)),
        composer=TakingTurns() if parts.plan.taking_turns else COMPOSERS[composer](),
    )
