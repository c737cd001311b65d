"""`triptych worker` on several hosts: its flags, and the life of a follower.

Every host is given the same command line but for --host-index. Index 0 is the leader, a worker as any other; the others follow it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import TransportKind
from triptych.runtime.worker.config import WorkerConfig
from triptych.runtime.worker.hosts.config import HostsConfig
from triptych.tools import launch
from triptych.tools.child import announce_ready
from triptych.tools.config import ServeConfig

if TYPE_CHECKING:
    from triptych.runtime.worker.hosts.process import FollowerProcess

_PLATFORMS = {"cpu": "cpu", "cuda": "gpu", "tpu": "tpu"}  # of kinds of device, as jax calls them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    hosts = parser.add_argument_group("several hosts")
    hosts.add_argument(
        "--hosts", type=int, metavar="N", help="hosts that share the instance; each has the same share of its devices"
    )
    hosts.add_argument("--host-index", type=int, metavar="I", help="which of them this is; 0 is the leader")
    hosts.add_argument(
        "--leader", metavar="HOST:PORT", help="where followers find the leader; it listens on that port of --listen"
    )


def hosts_config(args: argparse.Namespace, config: ServeConfig) -> HostsConfig | None:
    """What the flags say; None for a worker on one host. Raises ConfigError for some of the flags without the others."""
    given = {"--hosts": args.hosts, "--host-index": args.host_index, "--leader": args.leader}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return None
    if missing:
        raise ConfigError(f"an instance over several hosts needs {', '.join(given)}; {', '.join(missing)} is missing")
    device = launch.detect_device() if config.device == "auto" else config.device
    return HostsConfig(args.hosts, args.host_index, args.leader, _PLATFORMS[device], config.startup_timeout)


def on_hosts(chosen: WorkerConfig, config: ServeConfig, hosts: HostsConfig) -> WorkerConfig:
    """The worker as one of several hosts, whose KV moves by gRPC unless the settings say otherwise. Raises ConfigError for what cannot be."""
    moved = (TransportKind.GRPC,) if config.transport == "auto" else chosen.transports
    groups = None if config.kv_layer_groups == "all" else chosen.kv_layer_groups
    return replace(chosen, hosts=hosts, transports=moved, kv_layer_groups=groups)


async def follow(config: WorkerConfig) -> int:
    """The life of a follower: until its leader ends in good order, or SIGTERM (exit status 0); or until something fails (1; 2: settings)."""
    from triptych.runtime.worker.hosts.process import FollowerProcess  # late: it imports jax

    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    process = FollowerProcess(config, progress=lambda text: print(text, file=sys.stderr, flush=True))
    stopping, working = asyncio.create_task(stop.wait()), asyncio.create_task(_start_and_wait(process, config))
    await asyncio.wait({stopping, working}, return_when=asyncio.FIRST_COMPLETED)
    failure, status = None, 0
    if working.done():
        try:
            failure = working.result()
        except Exception as error:  # noqa: BLE001 - whatever it was, the leader must hear of it, and the process end
            failure, status = f"{type(error).__name__}: {error}", 2 if isinstance(error, ConfigError) else 1
        status = status or int(failure is not None)
    working.cancel()
    await process.stop(failure or "it was told to end")
    if failure is not None:
        print(f"host of {config.name} ends: {failure}", file=sys.stderr)
    # Nothing interrupts a collective that waits for another host, and the interpreter would wait for its thread.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


async def _start_and_wait(process: FollowerProcess, config: WorkerConfig) -> str | None:
    await process.start()
    announce_ready(address=None, pid=os.getpid(), instances=[plan.id for plan in config.instances])
    return await process.wait()
