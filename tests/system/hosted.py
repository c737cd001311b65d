"""Deployments by hand with instances over several hosts: here processes with emulated devices each, in one jax.distributed job an instance."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from tests.system.deployment import SMALL, START_LIMIT, STOP_LIMIT, Deployment
from triptych.tools.launch import DEVICE_COUNT_FLAG
from triptych.tools.ports import ReservedPort
from triptych.tools.supervisor import Supervisor

HOST = "127.0.0.1"
# Each process emulates what its flags ask for.
ENVIRON = os.environ | {
    "XLA_FLAGS": " ".join(
        flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(DEVICE_COUNT_FLAG)
    )
}


@dataclass(frozen=True)
class Shared:
    """An instance: the roles flag, its devices, and over how many hosts."""

    mode: str
    tp: int
    hosts: int = 1


@dataclass
class Hosted(Deployment):
    """A scheduler, a gateway and the hosts of some instances: processes called "decode/1" for host 1 of the instance "decode"."""

    supervisor: Supervisor = field(default_factory=Supervisor)
    commands: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def run(self, name: str, *argv: str) -> None:
        self.commands[name] = (sys.executable, "-m", "triptych.tools.cli", *argv)
        self.again(name)

    def again(self, name: str) -> None:
        """Start a process, as before if it ran before."""
        self.processes[name] = self.supervisor.start(name, self.commands[name], ENVIRON).pid

    def exit_code(self, name: str, limit: float = 30.0) -> int:
        """Of a process that is about to end."""
        child = next(child for child in self.supervisor.children if child.name == name)
        until = time.monotonic() + limit
        while child.exit_code is None:
            assert time.monotonic() < until, f"{name} did not end"
            time.sleep(0.05)
        return child.exit_code

    def said(self, name: str, words: str) -> bool:
        return any(line.startswith(f"[{name}]") and words in line for line in self.log)


@contextmanager
def hosted(*instances: Shared, flags: tuple[str, ...] = ()) -> Iterator[Hosted]:
    """Serve the toy model with SMALL and `flags` by these instances, each named after its mode."""
    server = Hosted()
    common = (*(flag for flag in SMALL if not flag.startswith("--port")), *flags)
    with ExitStack() as stack:
        server.supervisor = stack.enter_context(Supervisor(log=server.hear))

        def port() -> int:
            return stack.enter_context(ReservedPort(HOST, 0)).port

        scheduler, gateway = port(), port()
        server.scheduler, server.address = f"{HOST}:{scheduler}", f"{HOST}:{gateway}"
        server.run("scheduler", "scheduler", "--port", str(scheduler), *common)
        server.run("gateway", "gateway", "--port", str(gateway), "--scheduler", server.scheduler, *common)
        for instance in instances:
            leader = f"{HOST}:{port()}"
            for index in range(instance.hosts):
                shared = ("--hosts", str(instance.hosts), "--host-index", str(index), "--leader", leader)
                server.run(
                    f"{instance.mode}/{index}", "worker", "--scheduler", server.scheduler, "--roles", instance.mode,
                    "--name", instance.mode, "--tp", str(instance.tp), "--transport=grpc", *common,
                    *(shared if instance.hosts > 1 else ()),
                )  # fmt: skip
        server.supervisor.wait_ready(START_LIMIT)
        yield server
        server.supervisor.stop(STOP_LIMIT)
    assert not any("did not end" in line for line in server.log)
