"""Real deployments of the toy model for tests: `triptych serve` in processes of its own, and what its workers hold."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc

from triptych.proto.v1 import control_pb2, control_pb2_grpc, worker_pb2, worker_pb2_grpc
from triptych.tools.supervisor import Supervisor

START_LIMIT = 240.0
STOP_LIMIT = 60.0
HEARTBEAT_TIMEOUT = 5.0  # a busy machine may keep a process waiting for seconds, and that is no death
NOISE = ("WARNING", "ERROR", "Traceback", "did not end")
SMALL = (
    "--model=dummy:toy",
    "--served-model-name=toy",
    "--port=0",
    "--device=cpu",
    "--max-model-len=160",
    "--max-num-batched-tokens=32",
    "--num-pages=129",
    "--heartbeat-interval=0.2",
    f"--heartbeat-timeout={HEARTBEAT_TIMEOUT:g}",
)


@dataclass
class Deployment:
    """A running server: where clients call it, where its scheduler is, the pids of its processes by name, and what it has said so far.

    `processes` follows restarts.
    """

    address: str = ""
    scheduler: str = ""
    processes: dict[str, int] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    def hear(self, line: str) -> None:
        """One line of the server's output."""
        self.log.append(line)
        print(line, file=sys.stderr, flush=True)
        if "restarted" in line and (text := line.removeprefix("[serve] ")).startswith("{"):
            back = json.loads(text)["restarted"]
            self.processes[back["name"]] = back["pid"]

    def kill(self, name: str) -> None:
        """End a process as the kernel would, with no chance to say anything."""
        os.kill(self.processes[name], signal.SIGKILL)

    def wait_restarted(self, name: str, old: int, limit: float = 120.0) -> int:
        """The pid of the process that follows `old`, once it is ready."""
        until = time.monotonic() + limit
        while self.processes[name] == old:
            assert time.monotonic() < until, f"{name} was not started again"
            time.sleep(0.02)
        return self.processes[name]

    def cluster(self) -> control_pb2.Cluster:
        """What the scheduler knows."""
        with grpc.insecure_channel(self.scheduler) as channel:
            return control_pb2_grpc.ControlStub(channel).GetCluster(control_pb2.GetClusterRequest(), timeout=30)

    def workers(self) -> dict[str, str]:
        """Address of each worker process, by the name of its first instance's worker."""
        return {instance.info.worker: instance.info.address for instance in self.cluster().instances}

    def states(self) -> dict[str, worker_pb2.InstanceState]:
        """What every instance holds now, by instance id."""
        found: dict[str, worker_pb2.InstanceState] = {}
        for address in set(self.workers().values()):
            with grpc.insecure_channel(address) as channel:
                reply = worker_pb2_grpc.WorkerStub(channel).Inspect(worker_pb2.InspectRequest(), timeout=30)
            found |= {state.info.ref.id: state for state in reply.instances}
        return found

    def wait_idle(self, limit: float = 60.0) -> dict[str, worker_pb2.InstanceState]:
        """Until no instance holds anything for a request; AssertionError with what is held after `limit` seconds."""
        until = time.monotonic() + limit
        while True:
            states = self.states()
            held = {name: leaks(state) for name, state in states.items() if leaks(state)}
            if not held:
                return states
            assert time.monotonic() < until, f"still held: {held}"
            time.sleep(0.1)


HELD = (
    "pages_sequence", "pages_staged", "pages_reserved", "staged_keys", "tasks", "waiting", "running", "pulls", "staging_keys",
    "staging_bytes", "media_pages_held", "media_gathering", "shelf_items", "shelf_bytes",
)  # fmt: skip


def leaks(state: worker_pb2.InstanceState) -> dict[str, int]:
    """Everything that an idle instance must not hold and this one does."""
    found = {name: state.resources[name] for name in HELD if state.resources.get(name)}
    if state.resources["slots_free"] != state.resources["slots_total"]:
        found["slots"] = state.resources["slots_total"] - state.resources["slots_free"]
    free = state.resources["pages_free"] + state.resources["pages_cached"]
    if free != state.resources["pages_total"]:
        found["pages"] = state.resources["pages_total"] - free
    return found


@contextmanager
def deployed(*flags: str, start_limit: float = START_LIMIT) -> Iterator[Deployment]:
    """Serve the toy model with SMALL and `flags` until the context is left. `start_limit`: seconds until it must be ready."""
    server = Deployment()
    with Supervisor(log=server.hear) as supervisor:
        argv = [
            sys.executable,
            "-m",
            "triptych.tools.cli",
            "serve",
            *SMALL,
            f"--startup-timeout={start_limit:g}",
            *flags,
        ]
        supervisor.start("serve", argv, dict(os.environ))
        ready = supervisor.wait_ready(start_limit)["serve"]
        server.address, server.scheduler = ready["address"], ready["addresses"]["scheduler"]
        server.processes |= ready["processes"]
        yield server
        supervisor.stop(STOP_LIMIT)
    stopping = next(index for index, line in enumerate(server.log) if line.endswith("triptych serve: stopping"))
    noise = [line for line in server.log[stopping:] if any(word in line for word in NOISE)]
    assert not noise, "a deployment that is told to end has nothing to complain about"
