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
from triptych.models.hub.resolve import resolve_model
from triptych.models.kv import KVGroup, kv_groups
from triptych.models.weights.dummy import DummySource
from triptych.models.weights.load import load_decoder
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import InstanceInfo
from triptych.runtime.engine.config import engine_config
from triptych.runtime.engine.engine import Engine
from triptych.runtime.engine.memory import free_bytes, pages_that_fit
from triptych.runtime.engine.paced import PacedEngine
from triptych.runtime.engine.page_programs import PageMover
from triptych.runtime.instance.composer import DefaultComposer, TakingTurns
from triptych.runtime.instance.config import InstanceConfig
from triptych.runtime.instance.core import InstanceCore
from triptych.runtime.instance.termination import StopProbeFactory
from triptych.runtime.transfer.header import KvHeader, group_headers
from triptych.runtime.worker.config import InstancePlan, WorkerConfig
from triptych.sharding.devices import Device
from triptych.sharding.mesh import make_mesh

log = logging.getLogger(__name__)

Progress = Callable[[str], None]


@dataclass(frozen=True)
class InstanceParts:
    """The device side of one instance, ready to run."""

    plan: InstancePlan
    mesh: Mesh
    engine: Engine
    mover: PageMover
    header: KvHeader
    num_pages: int


def open_bundle(config: WorkerConfig) -> ModelBundle:
    """The model's parts; fetches it if it is not at hand. With `load_dummy` the weights are random ones of the same shapes."""
    resolved = resolve_model(config.model, config.cache, progress=lambda text: log.info("%s", text))
    bundle = open_model(resolved)
    if config.load_dummy:
        return dataclasses.replace(
            bundle, tensor_source=DummySource(bundle.config), revision=f"dummy-{bundle.config.fingerprint()}"
        )
    return bundle


def build_instances(config: WorkerConfig, bundle: ModelBundle, progress: Progress) -> list[InstanceParts]:
    """All instances of the process, on consecutive devices.

    Raises ConfigError when the process has too few devices, IncompatibleTpError when the model's heads do not fit a mesh.
    """
    devices = jax.devices()[config.first_device :]
    if len(devices) < config.devices:
        raise ConfigError(
            f"worker {config.name} needs {config.devices} devices for {', '.join(p.id for p in config.instances)}, "
            f"this process has {len(devices)} for it ({jax.default_backend()})"
        )
    built, first = [], 0
    for plan in config.instances:
        built.append(build_instance(config, plan, bundle, devices[first : first + plan.tp], progress))
        first += plan.tp
    return built


def build_instance(
    config: WorkerConfig, plan: InstancePlan, bundle: ModelBundle, devices: Sequence[Device], progress: Progress
) -> InstanceParts:
    """One instance on the given devices."""
    started = time.monotonic()
    mesh = make_mesh(devices, plan.tp)
    loaded = load_decoder(bundle.config, bundle.tensor_source, mesh, config.dtype)
    weights_seconds = time.monotonic() - started
    progress(f"{plan.id}: weights on {plan.tp} device(s) in {weights_seconds:.1f} s")
    (group,) = kv_groups(bundle.config, config.kv_dtype)
    max_model_len = min(config.max_model_len, bundle.config.max_position)
    if max_model_len < config.max_model_len:
        log.warning("max_model_len %d is more than the model's %d, which holds", config.max_model_len, max_model_len)
    num_pages = config.num_pages or pages_that_fit(
        loaded.structure,
        page_size=config.page_size,
        kv_dtype=config.kv_dtype,
        max_model_len=max_model_len,
        bytes_per_device=config.kv_cache_memory or free_bytes(devices, config.memory_fraction),
    )
    limits = engine_config(
        num_pages=num_pages,
        max_num_seqs=config.max_num_seqs,
        max_model_len=max_model_len,
        chunk_tokens=config.chunk_tokens,
        page_size=config.page_size,
        max_prefill_rows=config.max_prefill_rows,
        kv_dtype=config.kv_dtype,
        roles=plan.possible,
        compile_threads=config.compile_threads,
    )
    engine = Engine(limits, loaded, mesh) if config.pace is None else PacedEngine(limits, loaded, mesh, config.pace)
    report = engine.compile(lambda name, done, total: progress(f"{plan.id}: compiled {done}/{total} {name}"))
    mover = PageMover(
        mesh,
        loaded.head_layout,
        bundle.config.num_layers,
        num_pages,
        config.page_size,
        group.head_dim,
        group.dtype,
        config.export_pages,
        pool_sharding=loaded.structure.pool_struct(group, num_pages, config.page_size).sharding,  # type: ignore[arg-type]
    )
    mover.compile(lambda name, done, total: progress(f"{plan.id}: compiled {done}/{total} {name}"))
    progress(f"{plan.id}: ready in {time.monotonic() - started:.1f} s ({report})")
    return InstanceParts(plan, mesh, engine, mover, kv_header(config, bundle, group), num_pages)


def kv_header(config: WorkerConfig, bundle: ModelBundle, group: KVGroup) -> KvHeader:
    """What this instance's KV is, wherever it is sharded."""
    return KvHeader(
        model=config.served_model_name,
        revision=f"{bundle.revision}/{config.dtype}",
        groups=group_headers((group,)),
        dtype=config.kv_dtype,
        page_size=config.page_size,
        granule=config.export_pages,
        layer_groups=((0, bundle.config.num_layers),),
    )


def make_core(
    parts: InstanceParts,
    info: InstanceInfo,
    *,
    max_waiting: int,
    prefix_cache: bool,
    eos_ids: tuple[int, ...],
    stop_probe: StopProbeFactory,
) -> InstanceCore:
    """The pure half for these parts."""
    config = parts.engine.config
    return InstanceCore(
        InstanceConfig(
            ref=info.ref,
            address=info.address,
            digest=parts.header.digest(),
            roles=info.roles,
            switchable=info.switchable,
            num_pages=config.num_pages,
            page_size=config.page_size,
            max_num_seqs=config.max_num_seqs,
            max_model_len=config.max_model_len,
            chunk_tokens=config.chunk_tokens,
            max_prefill_rows=config.max_prefill_rows,
            max_waiting=max_waiting,
            groups=tuple(group.name for group in parts.header.groups),
            export_pages=parts.header.granule,
            eos_ids=eos_ids,
            prefix_cache=prefix_cache,
        ),
        stop_probe=stop_probe,
        random=random.Random(secrets.randbits(128)),
        composer=TakingTurns() if parts.plan.taking_turns else DefaultComposer(),
    )
