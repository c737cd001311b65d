"""`triptych serve`: start the processes of a topology, say when they are ready, start again those that die, end them together.

stdout carries JSON lines for scripts: one {"ready": {...}} with the gateway's address and the address and pid of every process, then one
{"restarted": {...}} for each process that is ready again; everything for people is on stderr. The command ends with status 0 when it was asked to
(SIGTERM, Ctrl-C), and with 1 when a process dies before all are ready.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from triptych.runtime.core.errors import ConfigError
from triptych.tools import http, launch
from triptych.tools.child import announce_ready
from triptych.tools.config import ServeConfig
from triptych.tools.credentials import check_security
from triptych.tools.keeper import Keeper
from triptych.tools.ports import ReservedPort
from triptych.tools.settings import add_arguments as add_settings
from triptych.tools.settings import dump, resolve, write_dump
from triptych.tools.supervisor import Child, StartupTimeoutError, Supervisor

_SLACK = 10.0  # seconds that a process gets to close its ports and devices; an interpreter with jax takes one or two by itself
_POLL = 0.2  # seconds between looks at whether a signal came


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model_name", nargs="?", metavar="MODEL", help="same as --model")
    add_settings(parser, ServeConfig)


def run(args: argparse.Namespace) -> int:
    if args.model_name is not None:
        if getattr(args, "model", args.model_name) != args.model_name:
            raise ConfigError(f"two models are named, {args.model_name} and --model {args.model}; give one of them")
        args.model = args.model_name
    config = resolve(ServeConfig, args)
    if args.dump_config is not None:
        write_dump(config, args.dump_config)
        return 0
    check_security(config)
    return serve(config)


def serve(config: ServeConfig) -> int:
    """Run the deployment until it is asked to stop, at once if it is asked twice; returns the exit status. Raises ChildExitedError if it cannot start."""
    asked: list[int] = []
    supervisors: list[Supervisor] = []

    def on_signal(signum: int, frame: FrameType | None) -> None:
        asked.append(signum)
        if len(asked) > 1:
            for one in supervisors:
                one.kill()

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, on_signal)
    device = launch.detect_device() if config.device == "auto" else config.device
    with contextlib.ExitStack() as stack:
        config_file = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="triptych-"))) / "config.json"
        config_file.write_text(dump(config))
        door, control, *web = [
            stack.enter_context(ReservedPort(config.host, port))
            for port in (config.port, config.scheduler_port, config.http_port)
            if port is not None
        ]
        if len({port.port for port in (door, control, *web)}) != 2 + len(web):
            raise ConfigError("port, scheduler_port and http_port must differ: each process needs one of its own")
        front = [
            launch.scheduler_process(config, config_file, control.port, os.environ),
            launch.gateway_process(config, config_file, control.address, door.port, os.environ),
            *(http.http_process(config, door.address, port.port, os.environ) for port in web),
        ]
        workers = launch.worker_processes(config, config_file, control.address, device, os.environ)
        keeper = Keeper(config.plan, (*front, *workers), _say, _announce_back)
        with keeper.supervisor as supervisor:
            supervisors.append(supervisor)
            _say(f"starting {config.topology} of {config.model} on {device}")
            # The gateway fetches the model, if need be, before the workers look for it.
            for group in (front, workers):
                for spec in group:
                    keeper.start(spec.name)
                if not _wait_ready(config, supervisor, asked):
                    return 0
            also = "".join(f", http on {port.address}" for port in web)
            _say(f"ready on {door.address}, scheduler on {control.address}{also}")
            _announce(door, supervisor)
            while not asked:
                keeper.watch(_POLL)
            _say("stopping")
            # The doors let running requests end, for which they need the workers, and those leave at the scheduler.
            for spec in reversed(front[1:]):
                supervisor.stop(config.shutdown_timeout + _SLACK, [spec.name])
            supervisor.stop(_SLACK, [spec.name for spec in workers])
            supervisor.stop(_SLACK)
    return 0


def _wait_ready(config: ServeConfig, supervisor: Supervisor, asked: list[int]) -> bool:
    """Wait until every child is ready; False when a signal came first. Raises as Supervisor.wait_ready does."""
    deadline = time.monotonic() + config.startup_timeout
    while not asked:
        try:
            supervisor.wait_ready(_POLL)
        except StartupTimeoutError as late:
            if time.monotonic() > deadline:
                raise StartupTimeoutError(f"{late.message}, {config.startup_timeout:g} s after the start") from late
        else:
            return True
    return False


def _announce(door: ReservedPort, supervisor: Supervisor) -> None:
    children = supervisor.children
    announce_ready(
        address=door.address,
        pid=os.getpid(),
        processes={child.name: child.pid for child in children},
        addresses={child.name: child.ready["address"] for child in children if child.ready is not None},
    )


def _announce_back(child: Child) -> None:
    address = (child.ready or {}).get("address")
    print(json.dumps({"restarted": {"name": child.name, "pid": child.pid, "address": address}}), flush=True)


def _say(text: str) -> None:
    print(f"triptych serve: {text}", file=sys.stderr, flush=True)
