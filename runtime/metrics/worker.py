"""A worker process: its own instances, asked between two steps of their device loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from triptych.runtime.core.instance import InstanceInfo, Load
from triptych.runtime.metrics.instances import Instances, Occupancy
from triptych.runtime.metrics.registry import Metrics

RESOURCES = {
    "staging_bytes": "kv_staging_bytes",
    "pulls": "kv_pulls",
    "tasks": "tasks",
    "device_decoder_bytes": "device_decoder_bytes",
    "device_encoder_bytes": "device_encoder_bytes",
    "device_kv_pool_bytes": "device_kv_pool_bytes",
    "device_media_pool_bytes": "device_media_pool_bytes",
    "device_draft_bytes": "device_draft_bytes",
    "device_draft_kv_pool_bytes": "device_draft_kv_pool_bytes",
    "media_pages_total": "media_pages",
    "media_pages_held": "media_pages_held",
    "media_gathering": "media_prompts_gathering",
    "shelf_items": "media_shelf_items",
    "shelf_bytes": "media_shelf_bytes",
}
"""Names of a snapshot's resources and of their gauges."""

COUNTERS: dict[str, tuple[str, float]] = {
    "steps": ("engine_steps", 1.0),
    "device_wait_us": ("engine_device_wait_seconds", 1e-6),
    "compiled_after_ready": ("engine_programs_compiled_after_ready", 1.0),
    "start_weights_us": ("engine_start_weights_seconds", 1e-6),
    "start_lowering_us": ("engine_start_lowering_seconds", 1e-6),
    "start_compiling_us": ("engine_start_compiling_seconds", 1e-6),
    "start_warm_up_us": ("engine_start_warm_up_seconds", 1e-6),
    "start_programs": ("engine_start_programs", 1.0),
    "start_programs_cached": ("engine_start_programs_cached", 1.0),
    "preemptions": ("num_preemptions", 1.0),
    "stale": ("stale_commands", 1.0),
    "verifications": ("spec_decode_num_drafts", 1.0),
    "tokens_drafted": ("spec_decode_num_draft_tokens", 1.0),
    "tokens_accepted": ("spec_decode_num_accepted_tokens", 1.0),
    "role_switches": ("role_switches", 1.0),
    "role_switch_us": ("role_switch_seconds", 1e-6),
    "prefill_tokens": ("prefill_tokens", 1.0),
    "pulls_failed": ("kv_num_failed_transfers", 1.0),
    "kv_bytes_offered": ("kv_bytes_offered", 1.0),
    "kv_bytes_received": ("kv_bytes_received", 1.0),
    "encoded_items": ("media_items_encoded", 1.0),
    "media_items_found": ("media_items_found", 1.0),
    "media_items_pulled": ("media_items_pulled", 1.0),
    "media_bytes_offered": ("media_bytes_offered", 1.0),
    "media_bytes_received": ("media_bytes_received", 1.0),
    "kv_pull_us": ("kv_pull_seconds", 1e-6),
    "kv_pull_exposed_us": ("kv_pull_exposed_seconds", 1e-6),
}
"""Names of a snapshot's counters, and of their metrics with the factor to its unit."""


class Snapshot(Protocol):
    """What a worker tells of one instance."""

    @property
    def info(self) -> InstanceInfo: ...
    @property
    def load(self) -> Load: ...
    @property
    def resources(self) -> Mapping[str, int]: ...
    @property
    def counters(self) -> Mapping[str, int]: ...


class Inspected(Protocol):
    async def snapshot(self) -> Snapshot: ...


class WorkerMetrics:
    """`refresh` asks every instance; `metrics` then shows it."""

    def __init__(self, instances: Callable[[], Sequence[Inspected]], model: str):
        self.metrics = Metrics(lambda: {"model_name": model})
        self._instances = instances
        self._shown = Instances()
        self.metrics.add(self._shown)

    async def refresh(self) -> None:
        """Raises InstanceLostError if a device loop does not answer."""
        snapshots = await asyncio.gather(*(instance.snapshot() for instance in self._instances()))
        self._shown.values = [occupancy(snapshot) for snapshot in snapshots]


def occupancy(snapshot: Snapshot) -> Occupancy:
    info, load = snapshot.info, snapshot.load
    return Occupancy(
        info.ref.id,
        [str(role) for role in info.roles],
        running=load.running,
        waiting=load.waiting,
        free_pages=load.free_pages,
        num_pages=info.capacity.num_pages,
        free_slots=load.free_slots,
        staged=load.staged,
        resources={
            metric: snapshot.resources[name] for name, metric in RESOURCES.items() if name in snapshot.resources
        },
        counters={
            metric: snapshot.counters[name] * factor
            for name, (metric, factor) in COUNTERS.items()
            if name in snapshot.counters
        },
    )
