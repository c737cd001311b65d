"""What an instance's compiled programs are made from."""

from __future__ import annotations

import dataclasses

from jax.sharding import Mesh

from triptych.runtime.engine.config import EngineConfig
from triptych.runtime.engine.kept_programs import KeptPrograms, kept_beside_the_cache
from triptych.runtime.worker.config import InstancePlan, WorkerConfig
from triptych.runtime.worker.media_parts import WorkerModel

# What of a worker's settings no program depends on. What is not listed counts, needed or not.
ELSEWHERE = (
    "name", "scheduler", "instances", "model", "cache", "served_model_name", "host", "port", "num_pages", "kv_cache_memory", "memory_fraction", "media_bytes",
    "prefix_cache", "composer", "max_waiting", "transports", "interface", "token", "tls", "device_without_tls", "heartbeat_interval", "compile_threads",
    "orphan_seconds", "pace", "link", "on_step", "first_device", "hosts",
)  # fmt: skip


def kept_programs(
    config: WorkerConfig, plan: InstancePlan, model: WorkerModel, limits: EngineConfig, mesh: Mesh
) -> KeptPrograms | None:
    """The kept programs of an instance; None where none are kept."""
    if config.environment is None:
        return None
    counting = [field.name for field in dataclasses.fields(config) if field.name not in ELSEWHERE]
    made_from = (
        [(name, getattr(config, name)) for name in counting],
        (plan.tp, plan.possible, tuple(mesh.shape.items())),
        dataclasses.replace(limits, compile_threads=1),
        (model.bundle.config, model.bundle.revision, model.multimodal),
        None if model.draft is None else (model.draft.config, model.draft.revision),
    )
    return kept_beside_the_cache(made_from, list(mesh.devices.flat), config.environment)
