"""From a ServeConfig to the processes of a deployment on this machine: command lines and environments, computed, not started.

A scheduler, a gateway, and the workers: one per instance, or one for all. (http.py has the process that may stand before the gateway.) Ports are
chosen by whoever starts them, so that a process that is started again is found where it was. Devices are handed out in the order of
`Topology.instances`; processes on GPUs see only their own.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role
from triptych.runtime.core.topology import InstanceSpec, Topology
from triptych.runtime.worker.hosts.config import HostsConfig
from triptych.tools.config import ServeConfig
from triptych.tools.settings import child_environment

SCHEDULER = "scheduler"
GATEWAY = "gateway"
DEVICE_COUNT_FLAG = "--xla_force_host_platform_device_count"
_VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"

QUIET_GRPC = {
    "GRPC_VERBOSITY": "ERROR"
}  # its own log tells of every connection that closes, which is nobody's news; what is set already wins


@dataclass(frozen=True)
class ProcessSpec:
    """A process to start: its name in logs, exact command line and environment, and the instances it will run."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    instances: tuple[InstanceSpec, ...] = ()


def detect_device(dev: Path = Path("/dev")) -> str:
    """What `--device auto` means here: cuda or tpu if the machine has one and jax was installed for it, else cpu. Imports no jax."""
    if (dev / "nvidia0").exists() and any(map(_installed, ("jax_cuda13_plugin", "jax_cuda12_plugin"))):
        return "cuda"
    if _installed("libtpu") and (any(dev.glob("accel*")) or any(dev.glob("vfio/[0-9]*"))):
        return "tpu"
    return "cpu"


def scheduler_process(config: ServeConfig, config_file: Path, port: int, environ: Mapping[str, str]) -> ProcessSpec:
    """The scheduler, listening on `port`."""
    argv = (*_command("scheduler", config_file), "--port", str(port), *_metrics_port(config, 0))
    return ProcessSpec(SCHEDULER, argv, QUIET_GRPC | child_environment(config, environ))


def gateway_process(
    config: ServeConfig, config_file: Path, scheduler: str, port: int, environ: Mapping[str, str]
) -> ProcessSpec:
    """The gateway, listening on `port`, for the scheduler at host:port."""
    argv = (*_command("gateway", config_file), "--port", str(port), "--scheduler", scheduler, *_metrics_port(config, 1))
    return ProcessSpec(GATEWAY, argv, QUIET_GRPC | child_environment(config, environ))


def worker_processes(
    config: ServeConfig,
    config_file: Path,
    scheduler: str,
    device: str,
    environ: Mapping[str, str],
    dev: Path = Path("/dev"),
) -> tuple[ProcessSpec, ...]:
    """The workers, which register at `scheduler` (host:port). `device` is cpu, cuda or tpu (see `detect_device`).

    Raises:
        ConfigError: the layout cannot work on this kind of device, or needs more GPUs than there are.
    """
    specs = config.plan.instances()
    if device == "cuda":
        _check_gpus(config, environ, dev)
    groups = [specs] if config.processes == "one" else [(spec,) for spec in specs]
    if device == "tpu" and len(groups) > 1:
        raise ConfigError("the TPU chips of a host belong to one process: use --processes one")
    processes, first = [], 0
    for group in groups:
        needed = config.devices_of(*group)
        name = group[0].id if len(groups) > 1 else "worker"
        argv = (
            *_command("worker", config_file), "--scheduler", scheduler, "--name", name, "--instances",
            ",".join(spec.id for spec in group), *_metrics_port(config, 2 + len(processes)),
        )  # fmt: skip
        env = (
            QUIET_GRPC | child_environment(config, environ) | device_environment(config, device, first, needed, environ)
        )
        processes.append(ProcessSpec(name, argv, env, group))
        first += needed
    return tuple(processes)


def with_roles(spec: ProcessSpec, roles: Mapping[str, Sequence[str]]) -> ProcessSpec:
    """A worker that starts its instances with these roles, by instance, whatever the topology says; its devices stay the same."""
    if not roles:
        return spec
    switched = ",".join(f"{instance}={'+'.join(names)}" for instance, names in roles.items())
    return replace(spec, argv=(*spec.argv, "--switched", switched))


def device_environment(
    config: ServeConfig, device: str, first: int, count: int, environ: Mapping[str, str]
) -> dict[str, str]:
    """Variables that jax reads when it is imported: platform, compile cache, and devices `first` to `first + count` of this machine."""
    env = {
        "JAX_PLATFORMS": device,
        "JAX_COMPILATION_CACHE_DIR": str(config.compile_cache_path),
        # Start-up compiles many small programs: cache those too, or each start compiles them again.
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    if device == "cpu":
        others = [flag for flag in environ.get("XLA_FLAGS", "").split() if not flag.startswith(DEVICE_COUNT_FLAG)]
        env["XLA_FLAGS"] = " ".join([*others, f"{DEVICE_COUNT_FLAG}={config.emulate_devices or count}"])
    if device == "cuda":
        listed = _listed_gpus(environ)
        chosen = map(str, range(first, first + count)) if listed is None else listed[first : first + count]
        env[_VISIBLE_GPUS] = ",".join(chosen)
    return env


def hand_environment(
    config: ServeConfig, specs: tuple[InstanceSpec, ...], environ: Mapping[str, str], shared: HostsConfig | None = None
) -> dict[str, str]:
    """What --device, --emulate-devices and --compile-cache-dir mean to jax, for a worker that no `triptych serve` prepared. For one of several
    hosts, its share of the devices, and their kind in any case.

    Which accelerators it sees stays the operator's choice (CUDA_VISIBLE_DEVICES and the like), and so does what jax's own variables say already.
    """
    device = detect_device() if config.device == "auto" else config.device
    needed = config.devices_of(*specs)
    wanted = device_environment(config, device, 0, needed if shared is None else shared.devices_of(needed), {})
    emulated = {"XLA_FLAGS": f"{environ.get('XLA_FLAGS', '')} {wanted['XLA_FLAGS']}".strip()} if device == "cpu" else {}
    if DEVICE_COUNT_FLAG in environ.get("XLA_FLAGS", ""):
        emulated = {}
    platform = {} if config.device == "auto" and shared is None else {"JAX_PLATFORMS": device}
    cache = {
        k: v for k, v in wanted.items() if k.startswith(("JAX_COMPILATION", "JAX_PERSISTENT")) and k not in environ
    }
    return platform | emulated | cache


def visible_gpus(environ: Mapping[str, str], dev: Path = Path("/dev")) -> tuple[str, ...] | None:
    """The GPUs that this process and its children may use, as CUDA names them: what CUDA_VISIBLE_DEVICES lists, else one
    number for each device file of the driver. None where neither says (WSL has no such files). Imports no jax."""
    listed = _listed_gpus(environ)
    if listed is not None:
        return listed
    return tuple(map(str, range(len(list(dev.glob("nvidia[0-9]*")))))) or None


def _listed_gpus(environ: Mapping[str, str]) -> tuple[str, ...] | None:
    """None if the variable is not set. As CUDA reads it: empty hides all GPUs, and so does -1 those behind it."""
    if _VISIBLE_GPUS not in environ:
        return None
    names = (name.strip() for name in environ[_VISIBLE_GPUS].split(","))
    return tuple(takewhile(lambda name: name not in ("", "-1"), names))


def _check_gpus(config: ServeConfig, environ: Mapping[str, str], dev: Path) -> None:
    """Raises ConfigError if there are fewer GPUs than the instances need together: none is shared."""
    specs, found = config.plan.instances(), visible_gpus(environ, dev)
    needed = config.devices_of(*specs)
    if found is not None and len(found) < needed:
        wanted = ", ".join(f"{spec.id} {config.tp_of(spec.roles)}" for spec in specs)
        where = f"{_VISIBLE_GPUS} has" if _VISIBLE_GPUS in environ else "this machine has"
        raise ConfigError(f"topology {config.topology} needs {needed} GPUs ({wanted}), {where} {len(found)}")


def still_serves(plan: Topology, alive: Iterable[InstanceSpec]) -> bool:
    """Whether the instances that are left can take a request from its prompt to its end."""
    roles = {role for spec in alive for role in spec.roles}
    return {Role.PREFILL, Role.DECODE} <= roles if plan.disaggregated else bool(roles)


def _command(name: str, config_file: Path) -> tuple[str, ...]:
    return (sys.executable, "-m", "triptych.tools.cli", name, "--supervised", "--config", str(config_file))


def _metrics_port(config: ServeConfig, number: int) -> tuple[str, ...]:
    """The flag that gives a process the port of its place in the deployment; none where metrics are off."""
    return ("--metrics-port", str(config.metrics_port + number)) if config.metrics_port else ()


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
