"""What one worker process runs, in one frozen value."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.models.errors import QuantisationError
from triptych.models.kernels.names import AUTO_KERNEL, CHOICES, kv_problem
from triptych.models.weight_formats import AUTO, weight_format
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role, TransportKind
from triptych.runtime.instance.composer import COMPOSERS, DEFAULT_COMPOSER
from triptych.runtime.instance.plan import StepPlan
from triptych.runtime.instance.speculation import Speculation
from triptych.runtime.wire.tls import Tls
from triptych.runtime.worker.hosts.config import HostsConfig, check_hosts

if TYPE_CHECKING:  # it imports jax, which reads the environment then: tools/worker.py sets that first
    from triptych.runtime.transfer.transports.base import Transport

DEFAULT_CONTEXT = (
    2048  # tokens; models declare up to millions, and every compiled table is as wide as the longest sequence
)


_READ_BY_COMPILERS = re.compile(r"XLA_|JAX_(?!COMPILATION_CACHE|PERSISTENT_CACHE)|LIBTPU_|TF_|NVIDIA_TF32")


def read_by_compilers(environ: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The variables that can make other programs of the same sources, with their values."""
    return tuple(sorted((name, value) for name, value in environ.items() if _READ_BY_COMPILERS.match(name)))


@dataclass(frozen=True)
class InstancePlan:
    """One instance of the process: its name, its roles, and how many devices it takes (devices are handed out in order).

    `switchable`: roles that it may take on later. Their programs are compiled before it is ready, too, so that nothing compiles at the switch.
    `taking_turns`: decode rows and prefill chunks go into separate steps, in turns (topology (P-D)); else into the same ones (PD).
    """

    id: str
    roles: frozenset[Role]
    tp: int = 1
    switchable: frozenset[Role] = frozenset()
    taking_turns: bool = False

    @property
    def possible(self) -> frozenset[Role]:
        """The roles that it has at some time."""
        return self.roles | self.switchable


@dataclass(frozen=True)
class WorkerConfig:
    """Settings of a worker process.

    Attributes:
        name: of the process, unique in the cluster.
        scheduler: address of the Control service.
        host, port: where Worker and Transfer listen; port 0 takes a free one.
        model: spec for `models.hub.resolve_model`; `cache` is where fetched models go.
        served_model_name: compatibility record and requests use it.
        dtype, kv_dtype: "float32" or "bfloat16"; KV also as codes with scales, "int8" or "float8_e4m3fn" (models/kv.py).
        weights: how matrices of the decoder are stored, a name of `models/weight_formats.py`; "auto": in `dtype`. The same on every worker.
        num_pages: pages of each instance's pool, null page included; None: as many as fit `kv_cache_memory` bytes a device, or, without
            that, `memory_fraction` of an accelerator's memory.
        media_pages: pages of each media pool, null page included, of a model that takes media; 0: none are taken; None: enough for a few
            prompts of full length. On an accelerator they come out of `memory_fraction` before KV pages.
        encode_patches: slots of the largest encode program, and so of one item; None: enough for the model's largest image.
        composer: what composes the steps of instances, a name of `COMPOSERS` (runtime/instance/composer.py), but where their stages have loops of their own.
        media_bytes: most bytes of pixels that wait to be encoded, on each instance that encodes.
        transports: which ways KV may move, best first.
        export_pages: pages an offer; its chunks are padded to it.
        kv_layer_groups: layers an offer; fewer than the model has: prompts are computed in as many programs, and KV of the first layers leaves
            while later ones are computed. None: all. The same on every worker.
        attention: kernel of text decoders, one of `models/kernels/names.py`, or auto. Workers may differ in it.
        speculation: how instances that decode guess tokens; None: they do not.
        token: that the processes of the deployment show each other; None: none is asked for.
        tls: certificates for every connection, both ways; None: plain text.
        device_without_tls: with `tls`, allow transport "device" all the same, which can be neither encrypted nor authenticated.
        compile_threads: programs compiled at once; None: what suits the host (`compiling.usual_threads`).
        orphan_seconds: without a scheduler for so long, everything that runs here ends.
        pace: seconds that a step takes on the device that this one stands in for (runtime/engine/paced.py); None: as long as it takes.
        link: puts something around each transport, such as the cost of another link (transports/handshake.py); None: nothing.
        on_step: told of every step as it is read: the instance, the plan, and when (in seconds of the monotonic clock) it was dispatched and was
            done. Called on the device loop; must return at once.
        first_device: index of the first of this process's devices that is its own.
        hosts: which of several hosts this is that share the one instance; None: the instances are this process's alone.
        environment: what compilers read of it (`read_by_compilers`); None: compiled programs are not kept for the next start.
    """

    name: str
    scheduler: str
    instances: tuple[InstancePlan, ...]
    model: str
    cache: Path
    served_model_name: str
    host: str = "127.0.0.1"
    port: int = 0
    load_dummy: bool = False
    dtype: str = "float32"
    weights: str = AUTO
    kv_dtype: str = "float32"
    max_model_len: int = DEFAULT_CONTEXT
    max_num_seqs: int = 8
    chunk_tokens: int = 256
    max_prefill_rows: int = 4
    page_size: int = 16
    num_pages: int | None = None
    kv_cache_memory: int | None = None
    memory_fraction: float = 0.9
    media_pages: int | None = None
    encode_patches: int | None = None
    media_bytes: int = 1 << 30
    prefix_cache: bool = True
    composer: str = DEFAULT_COMPOSER
    max_waiting: int = 256
    transports: tuple[TransportKind, ...] = (TransportKind.LOCAL, TransportKind.DEVICE, TransportKind.GRPC)
    interface: str = "127.0.0.1"
    export_pages: int = 8
    kv_layer_groups: int | None = None
    attention: str = AUTO_KERNEL
    speculation: Speculation | None = None
    token: str | None = field(default=None, repr=False)
    tls: Tls | None = None
    device_without_tls: bool = False
    heartbeat_interval: float = 1.0
    compile_threads: int | None = None
    orphan_seconds: float = 30.0
    pace: Callable[[StepPlan], float] | None = None
    link: Callable[[Transport], Transport] | None = None
    on_step: Callable[[str, StepPlan, float, float], None] | None = None
    first_device: int = 0
    hosts: HostsConfig | None = None
    environment: tuple[tuple[str, str], ...] | None = None

    def __post_init__(self) -> None:
        if not self.instances:
            raise ConfigError("a worker needs at least one instance")
        names = [plan.id for plan in self.instances]
        if len(set(names)) != len(names):
            raise ConfigError(f"instance names must be unique in a worker, got {', '.join(names)}")
        if self.composer not in COMPOSERS:
            raise ConfigError(f"composer is {self.composer!r}; expected one of {', '.join(COMPOSERS)}")
        try:
            weight_format(self.weights)
        except QuantisationError as error:
            raise ConfigError(str(error)) from error
        if self.attention not in CHOICES:
            raise ConfigError(f"attention {self.attention!r} is unknown; known: {', '.join(CHOICES)}")
        if (problem := kv_problem(self.attention, self.kv_dtype)) is not None:
            raise ConfigError(problem)
        if self.orphan_seconds <= 0:
            raise ConfigError(f"orphan_seconds is {self.orphan_seconds}; expected more than 0")
        if self.hosts is not None:
            check_hosts(self, self.hosts)

    @property
    def devices(self) -> int:
        return sum(plan.tp for plan in self.instances)
