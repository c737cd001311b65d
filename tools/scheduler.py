"""`triptych scheduler`: the control plane as a process of its own. Workers register at it, gateways submit requests to it.

It needs no model and no device, and holds nothing that it could not ask for: it may be killed and started again on the same port while requests
run. `triptych serve` starts and watches one; by hand it is the centre of a deployment over several machines.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal

from triptych.runtime.metrics.scheduler import SchedulerMetrics
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.server import ControlServerConfig, build_server
from triptych.runtime.wire.listening import local_endpoint
from triptych.tools.child import announce_ready, end_with_parent
from triptych.tools.config import ServeConfig
from triptych.tools.credentials import cluster_token, inside_tls
from triptych.tools.memory import keep_level
from triptych.tools.observing import open_port, start_log
from triptych.tools.settings import add_arguments as add_settings
from triptych.tools.settings import resolve, write_dump


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--supervised", action="store_true", help="end when stdin closes (set by serve)")
    add_settings(parser, ServeConfig)


def run(args: argparse.Namespace) -> int:
    config = resolve(ServeConfig, args)
    if args.dump_config is not None:
        write_dump(config, args.dump_config)
        return 0
    keep_level()
    if args.supervised:
        end_with_parent()
    start_log(config, "scheduler")
    return asyncio.run(_serve(config))


async def _serve(config: ServeConfig) -> int:
    """Run until SIGTERM or SIGINT. A control plane that fails raises: its state is no longer to be trusted, that of a fresh process is."""
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    tls = inside_tls(config)
    server = build_server(control_config(config), credentials=None if tls is None else tls.server_credentials())
    await server.start()
    shown = await open_port(config, SchedulerMetrics(server.control.snapshot).metrics)
    announce_ready(address=local_endpoint(config.host, server.port), pid=os.getpid())
    stopping, failing = asyncio.create_task(stop.wait()), asyncio.create_task(server.wait())
    try:
        await asyncio.wait({stopping, failing}, return_when=asyncio.FIRST_COMPLETED)
        if failing.done():
            failing.result()
        return 0
    finally:
        for task in (stopping, failing):
            task.cancel()
        await asyncio.gather(stopping, failing, return_exceptions=True)
        await shown.stop()
        await server.stop()


def control_config(config: ServeConfig) -> ControlServerConfig:
    """The scheduler's part of the deployment's settings."""
    return ControlServerConfig(
        host=config.host,
        port=config.port,
        token=cluster_token(config),
        role_controller=config.role_controller,
        scheduler=SchedulerConfig(
            max_queued=config.max_waiting,
            heartbeat_interval=config.heartbeat_interval,
            heartbeat_timeout=config.heartbeat_timeout,
            lease_seconds=config.lease_seconds,
            max_attempts=config.max_attempts,
            patience=config.patience,
        ),
    )
