"""`triptych worker`: a process that owns devices and runs some instances of a topology, registered at a scheduler.

`triptych serve` starts these; by hand they make a deployment over several machines. Platform and devices are what jax finds in its environment:
launch.device_environment sets it for children of serve, `launch.hand_environment` for a worker started by hand.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.models.hub.errors import ModelFetchError
from triptych.models.kernels.names import PLATFORMS
from triptych.models.kv import KV_CODES
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role, TransportKind
from triptych.runtime.core.topology import InstanceSpec
from triptych.runtime.instance.plan import StepPlan
from triptych.runtime.instance.speculation import Speculation
from triptych.runtime.metrics.worker import WorkerMetrics
from triptych.runtime.simulation.steptime import StepShape, shape_of
from triptych.runtime.simulation.steptime_table import HostTime, StepTableError, load_table
from triptych.runtime.worker.config import DEFAULT_CONTEXT, InstancePlan, WorkerConfig, read_by_compilers
from triptych.tools import hosts, launch
from triptych.tools.child import announce_ready, announce_roles, end_with_parent
from triptych.tools.config import ServeConfig
from triptych.tools.credentials import check_security, cluster_token, inside_tls
from triptych.tools.kv_times import layers_per_offer
from triptych.tools.observing import open_port, start_log
from triptych.tools.settings import add_arguments as add_settings
from triptych.tools.settings import resolve, write_dump

if TYPE_CHECKING:
    from triptych.runtime.worker.process import WorkerProcess

STOP_LIMIT = 6.0  # seconds; the supervisor waits for 10

_MODES = {
    "encode": frozenset({Role.ENCODE}),
    "prefill": frozenset({Role.PREFILL}),
    "decode": frozenset({Role.DECODE}),
    "null": frozenset({Role.PREFILL, Role.DECODE}),  # SGLang's word for an instance that does both
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    worker = parser.add_argument_group("worker")
    worker.add_argument("--scheduler", metavar="HOST:PORT", help="address of the scheduler to register at")
    worker.add_argument("--name", help="name of this process, unique in the cluster (default: its first instance)")
    worker.add_argument(
        "--listen",
        default="127.0.0.1",
        metavar="HOST",
        help="address of this machine at which gateways and other workers reach it",
    )
    which = worker.add_mutually_exclusive_group()
    which.add_argument(
        "--instances", metavar="IDS", help="instances of --topology to run, such as decode-0,prefill-0 (default: all)"
    )
    which.add_argument(
        "--roles",
        "--disaggregation-mode",
        dest="roles",
        choices=tuple(_MODES),
        help="run one instance with this role instead",
    )
    worker.add_argument(
        "--switched",
        default="",
        metavar="ID=ROLES,...",
        help="roles instances had taken on before a restart (set by serve)",
    )
    worker.add_argument("--supervised", action="store_true", help="end when stdin closes (set by serve)")
    hosts.add_arguments(parser)
    add_settings(parser, ServeConfig)


def run(args: argparse.Namespace) -> int:
    config = resolve(ServeConfig, args)
    if args.dump_config is not None:
        write_dump(config, args.dump_config)
        return 0
    if args.scheduler is None:
        raise ConfigError("--scheduler HOST:PORT is missing; `triptych serve` starts scheduler and workers together")
    check_security(config)
    if args.supervised:
        end_with_parent()
    start_log(config, args.name or "worker")
    specs, shared = chosen_instances(config, args.instances, args.roles, args.name), hosts.hosts_config(args, config)
    if not args.supervised:
        os.environ.update(launch.hand_environment(config, specs, os.environ, shared))
    # jax is imported from here on: it reads the environment, and a wrong flag is reported without waiting for it.
    platform = _platform() if shared is None else shared.platform
    chosen = worker_config(config, specs, args.name or specs[0].id, args.scheduler, args.listen, platform)
    chosen = with_switched(chosen, args.switched)
    if shared is None:
        return asyncio.run(_work(config, chosen, supervised=args.supervised))
    chosen = hosts.on_hosts(chosen, config, shared)
    return asyncio.run(_work(config, chosen, supervised=args.supervised) if shared.leads else hosts.follow(chosen))


def _platform() -> str:
    """What jax calls the devices of this process. Not for one of several hosts: they join before jax looks."""
    import jax

    return jax.default_backend()


def chosen_instances(
    config: ServeConfig, ids: str | None, mode: str | None, name: str | None
) -> tuple[InstanceSpec, ...]:
    """The instances that the flags name. Raises ConfigError for one that the topology does not have."""
    if mode is not None:
        return (InstanceSpec(name or f"{mode if mode != 'null' else 'pd'}-{os.getpid()}", (_MODES[mode],)),)
    known = {spec.id: spec for spec in config.plan.instances()}
    wanted = list(known) if ids is None else [part.strip() for part in ids.split(",")]
    if unknown := [i for i in wanted if i not in known]:
        raise ConfigError(f"topology {config.topology} has no instance {', '.join(unknown)}; it has {', '.join(known)}")
    return tuple(known[i] for i in wanted)


def worker_config(
    config: ServeConfig, specs: tuple[InstanceSpec, ...], name: str, scheduler: str, listen: str, platform: str
) -> WorkerConfig:
    """The worker's part of the deployment's settings, for devices of `platform` (what jax calls it: cpu, gpu, tpu)."""
    made_for = PLATFORMS.get(config.attention)
    if made_for not in (None, platform):
        raise ConfigError(
            f"attention {config.attention!r} is for {made_for}, the devices here are {platform}: use 'reference'"
        )
    dtype = config.dtype if config.dtype != "auto" else "float32" if platform == "cpu" else "bfloat16"
    stages = frozenset({Role.PREFILL, Role.DECODE})
    return WorkerConfig(
        name=name,
        scheduler=scheduler,
        instances=tuple(
            InstancePlan(
                s.id,
                s.roles,
                config.tp_of(s.roles),
                # One that only encodes has no decoder's weights, and would have to load them.
                stages if config.switchable and s.roles & stages else frozenset(),
                taking_turns=len(s.loops) > 1,
            )
            for s in specs
        ),
        model=config.model,
        cache=config.cache_path,
        served_model_name=config.served_name,
        host=listen,
        load_dummy=config.load_format == "dummy",
        dtype=dtype,
        weights=config.weights,
        kv_dtype=kv_dtype_of(config, dtype),
        max_model_len=config.max_model_len or DEFAULT_CONTEXT,
        max_num_seqs=config.max_num_seqs,
        chunk_tokens=config.max_num_batched_tokens,
        page_size=config.page_size,
        num_pages=config.num_pages,
        kv_cache_memory=config.kv_cache_memory,
        memory_fraction=config.gpu_memory_utilization,
        media_pages=config.media_pages,
        encode_patches=config.encode_patches,
        media_bytes=config.media_memory,
        compile_threads=config.compile_threads,
        prefix_cache=config.enable_prefix_caching,
        composer=config.composer,
        max_waiting=config.max_waiting,
        transports=transports(config),
        kv_layer_groups=layers_per_offer(config),
        attention=config.attention,
        speculation=None
        if config.speculative == "off"
        else Speculation(config.speculative_tokens, model=config.speculative_model),
        interface=listen,
        token=cluster_token(config),
        tls=inside_tls(config),
        device_without_tls=config.allow_insecure_device_transport,
        heartbeat_interval=config.heartbeat_interval,
        pace=None if config.step_times is None else table_pace(config, specs),
        environment=read_by_compilers(os.environ),
    )


def kv_dtype_of(config: ServeConfig, dtype: str) -> str:
    """What KV pages are kept in, as numpy names it, by a model in `dtype`."""
    named = config.kv_cache_dtype
    return dtype if named == "auto" else KV_CODES.get(named, named)


def table_pace(config: ServeConfig, specs: tuple[InstanceSpec, ...]) -> Callable[[StepPlan], float]:
    """Step times of the table that --step-times names. Raises ConfigError if it cannot be read, or lacks steps that these instances may take."""
    if config.speculative != "off":
        raise ConfigError("--step-times has no times of steps that verify guesses: leave --speculative off")
    try:
        table = replace(load_table(Path(config.step_times or "")), host=HostTime())  # the host's time is real
        limits, longest = table.limits, config.max_model_len or DEFAULT_CONTEXT
        if limits.page_size != config.page_size:
            raise StepTableError(f"it is for pages of {limits.page_size} tokens, not {config.page_size}")
        roles = frozenset(Role) if config.switchable else frozenset().union(*(spec.roles for spec in specs))
        rows = config.max_num_seqs if Role.DECODE in roles else 0
        tokens = config.max_num_batched_tokens if Role.PREFILL in roles else 0
        prompts = WorkerConfig.max_prefill_rows if tokens else 0
        table.seconds(StepShape(rows, rows * longest, prompts, tokens, longest=longest, draws=rows))
    except StepTableError as error:
        raise ConfigError(f"--step-times {config.step_times}: {error}") from error
    return lambda plan: table.seconds(shape_of(plan)) if plan.rows else 0.0


def with_switched(config: WorkerConfig, switched: str) -> WorkerConfig:
    """The worker whose instances begin with other roles: "decode-1=prefill,prefill-0=decode+prefill". Raises ConfigError for what cannot be."""
    wanted = {name: roles for name, _, roles in (part.partition("=") for part in switched.split(",") if part)}
    plans = {plan.id: plan for plan in config.instances}
    for name, roles in wanted.items():
        plan = plans.get(name)
        if plan is None or not set(roles.split("+")) <= plan.possible:
            able = "there is none of that name" if plan is None else f"it may have {', '.join(sorted(plan.possible))}"
            raise ConfigError(f"--switched names instance {name!r} with roles {roles!r}; {able}")
        plans[name] = replace(plan, roles=frozenset(map(Role, roles.split("+"))), switchable=plan.possible)
    return replace(config, instances=tuple(plans.values()))


def transports(config: ServeConfig) -> tuple[TransportKind, ...]:
    """Ways that KV may move. "device" can be neither authenticated nor encrypted, so where tokens or TLS are asked for it must be named."""
    if config.transport != "auto":
        return (TransportKind(config.transport),)
    open_inside = cluster_token(config) is None and inside_tls(config) is None
    return tuple(kind for kind in TransportKind if kind is not TransportKind.DEVICE or open_inside)


async def _work(settings: ServeConfig, config: WorkerConfig, *, supervised: bool) -> int:
    """Run until SIGTERM or until the last instance was retired (exit status 0), or until a device loop dies or a host is lost (1); then end the
    process."""
    from triptych.runtime.worker.process import WorkerProcess  # late: it imports jax

    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    process = WorkerProcess(
        config,
        progress=lambda text: print(text, file=sys.stderr, flush=True),
        renewed=(lambda info: announce_roles(info.ref.id, info.roles)) if supervised else lambda info: None,
    )
    measured = WorkerMetrics(lambda: process.instances if process.registered else (), config.served_model_name)
    shown = await open_port(
        settings,
        measured.metrics,
        refresh=measured.refresh,
        ready=lambda: None if process.registered else "not registered yet",
    )
    stopping = asyncio.create_task(stop.wait())
    working = asyncio.create_task(_start_and_wait(process))
    done, _ = await asyncio.wait({stopping, working}, return_when=asyncio.FIRST_COMPLETED)
    try:
        reason = working.result() if working in done else None
    except Exception as error:
        if config.hosts is None:
            raise
        # The interpreter would not end: threads, and jax itself, wait for hosts that are gone.
        reason = f"{type(error).__name__}: {error}"
    finally:
        for task in (stopping, working):
            task.cancel()
        await asyncio.gather(stopping, working, return_exceptions=True)
        try:
            async with asyncio.timeout(STOP_LIMIT):
                await process.stop()
                await shown.stop()
        except TimeoutError:
            print(f"worker {config.name} gave up waiting for its instances to stop", file=sys.stderr)
    if reason is not None:
        print(f"worker {config.name} ends: {reason}", file=sys.stderr)
    # Nothing interrupts a compiler, or a transfer from a peer that died, and the interpreter would wait for their threads.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if reason is None else 1)


async def _start_and_wait(process: WorkerProcess) -> str | None:
    try:
        await process.start()
    except (
        ModelFetchError,
        OSError,
        ValueError,
    ) as error:  # what cannot be found, read or laid out: the user's to mend
        raise ConfigError(str(error)) from error
    announce_ready(address=process.address, pid=os.getpid(), instances=[i.info.ref.id for i in process.instances])
    return await process.wait()
