"""What a worker process gives to each of its instances."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass

from triptych.runtime.core.clock import Clock
from triptych.runtime.core.instance import InstanceInfo, InstanceRef, TransportKind
from triptych.runtime.core.tasks import TaskReport
from triptych.runtime.instance.messages import Emit, EmitPrompt
from triptych.runtime.instance.plan import StepPlan
from triptych.runtime.transfer.transports.base import Transport
from triptych.runtime.transfer.transports.grpc import Channels


@dataclass(frozen=True)
class Surroundings:
    """Clock, threads and transports, and whom to tell what."""

    clock: Clock
    loop: asyncio.AbstractEventLoop
    threads: Executor
    transports: Mapping[TransportKind, Transport]
    channels: Channels
    report: Callable[[InstanceRef, TaskReport], None]
    emit: Callable[[Emit | EmitPrompt], None]
    reset: Callable[[InstanceRef, InstanceInfo, str], None]
    roles_refused: Callable[[InstanceRef, str], None]
    died: Callable[[str], None]
    on_step: Callable[[str, StepPlan, float, float], None] | None = None
    """See `WorkerConfig.on_step`."""
