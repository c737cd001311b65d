"""`triptych serve`: start the scheduler and the workers of a topology, say when they are ready, end them together.

stdout carries exactly one line, {"ready": {"address": ...}}, for scripts; everything for people is on stderr. The command ends with status 0
when it was asked to (SIGTERM, Ctrl-C), and with 1 when the scheduler died or no instance is left for some stage.
"""

from __future__ import annotations

import argparse
import os
import queue
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from triptych.runtime.core.errors import ConfigError
from triptych.tools import launch
from triptych.tools.child import announce_ready
from triptych.tools.config import ServeConfig
from triptych.tools.settings import add_arguments as add_settings
from triptych.tools.settings import dump, resolve, write_dump
from triptych.tools.supervisor import Child, StartupTimeoutError, Supervisor, describe_exit

_SLACK = 5.0  # seconds that a process gets to close its ports and devices
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
    return serve(config)


def serve(config: ServeConfig) -> int:
    """Run the deployment until it is asked to stop or cannot serve any more; returns the exit status."""
    asked: list[int] = []

    def on_signal(signum: int, frame: FrameType | None) -> None:
        asked.append(signum)

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, on_signal)
    ended: queue.SimpleQueue[Child] = queue.SimpleQueue()

    def on_exit(child: Child) -> None:
        if not child.asked:
            ended.put(child)

    device = launch.detect_device() if config.device == "auto" else config.device
    with tempfile.TemporaryDirectory(prefix="triptych-") as folder, Supervisor(on_exit) as supervisor:
        config_file = Path(folder) / "config.json"
        config_file.write_text(dump(config))
        first = launch.scheduler_process(config, config_file, os.environ)
        scheduler = supervisor.start(first.name, first.argv, first.env)
        _say(f"starting {config.topology} of {config.model} on {device}")
        if not _wait_ready(config, supervisor, asked) or scheduler.ready is None:
            return 0
        address = scheduler.ready["address"]
        workers = launch.worker_processes(config, config_file, address, device, os.environ)
        for spec in workers:
            supervisor.start(spec.name, spec.argv, spec.env)
        if not _wait_ready(config, supervisor, asked):
            return 0
        _say(f"ready on {address}")
        announce_ready(address=address, pid=os.getpid(), processes={c.name: c.pid for c in supervisor.children})
        status = _watch(config, supervisor, workers, asked, ended)
        _say("stopping")
        supervisor.stop(
            config.shutdown_timeout + _SLACK, [first.name]
        )  # it lets running requests end; they need the workers
        supervisor.stop(_SLACK)
    return status


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


def _watch(
    config: ServeConfig,
    supervisor: Supervisor,
    workers: tuple[launch.ProcessSpec, ...],
    asked: list[int],
    ended: queue.SimpleQueue[Child],
) -> int:
    """Wait for a signal (0) or for the deployment to become useless (1)."""
    while not asked:
        try:
            child = ended.get(timeout=_POLL)
        except queue.Empty:
            continue
        living = {c.name for c in supervisor.children if c.alive}
        left = [spec for worker in workers if worker.name in living for spec in worker.instances]
        if launch.SCHEDULER not in living or not launch.still_serves(config.plan, left):
            _say(
                f"{child.name} ended ({describe_exit(child.exit_code or 0)}) and what is left cannot serve {config.topology}"
            )
            return 1
        _say(f"{child.name} ended ({describe_exit(child.exit_code or 0)}); going on with {len(left)} instances")
    return 0


def _say(text: str) -> None:
    print(f"triptych serve: {text}", file=sys.stderr, flush=True)
