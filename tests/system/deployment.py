"""Real deployments of the toy model for tests: `triptych serve` in processes of its own, and what its workers hold."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc

from triptych.proto.v1 import control_pb2, control_pb2_grpc, worker_pb2, worker_pb2_grpc
from triptych.tools.supervisor import Supervisor

START_LIMIT = 240.0
SMALL = (
    "--model=dummy:toy",
    "--served-model-name=toy",
    "--port=0",
    "--device=cpu",
    "--max-model-len=160",
    "--max-num-batched-tokens=32",
    "--num-pages=129",
    "--heartbeat-interval=0.2",
    "--heartbeat-timeout=2",
    f"--startup-timeout={START_LIMIT:g}",
)


@dataclass(frozen=True)
class Deployment:
    """A running server: where clients call it, and the pids of its processes by name."""

    address: str
    processes: dict[str, int]

    def workers(self) -> dict[str, str]:
        """Address of each worker process, by the name of its first instance's worker."""
        with grpc.insecure_channel(self.address) as channel:
            cluster = control_pb2_grpc.ControlStub(channel).GetCluster(control_pb2.GetClusterRequest(), timeout=10)
        return {instance.info.worker: instance.info.address for instance in cluster.instances}

    def states(self) -> dict[str, worker_pb2.InstanceState]:
        """What every instance holds now, by instance id."""
        found: dict[str, worker_pb2.InstanceState] = {}
        for address in set(self.workers().values()):
            with grpc.insecure_channel(address) as channel:
                reply = worker_pb2_grpc.WorkerStub(channel).Inspect(worker_pb2.InspectRequest(), timeout=10)
            found |= {state.info.ref.id: state for state in reply.instances}
        return found

    def wait_idle(self, limit: float = 20.0) -> dict[str, worker_pb2.InstanceState]:
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
    "staging_bytes",
)  # fmt: skip


def leaks(state: worker_pb2.InstanceState) -> dict[str, int]:
    """Everything that an idle instance must not hold and this one does."""
    found = {name: state.resources[name] for name in HELD if state.resources[name]}
    if state.resources["slots_free"] != state.resources["slots_total"]:
        found["slots"] = state.resources["slots_total"] - state.resources["slots_free"]
    free = state.resources["pages_free"] + state.resources["pages_cached"]
    if free != state.resources["pages_total"]:
        found["pages"] = state.resources["pages_total"] - free
    return found


@contextmanager
def deployed(*flags: str) -> Iterator[Deployment]:
    """Serve the toy model with SMALL and `flags` until the context is left."""
    with Supervisor() as supervisor:
        argv = [sys.executable, "-m", "triptych.tools.cli", "serve", *SMALL, *flags]
        supervisor.start("serve", argv, dict(os.environ))
        ready = supervisor.wait_ready(START_LIMIT)["serve"]
        yield Deployment(ready["address"], ready["processes"])
