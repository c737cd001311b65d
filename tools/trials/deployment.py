"""A deployment of the toy model under trial: started by `triptych serve` in processes of its own, asked through its own services.

Processes are looked up in /proc each time, as children of `serve`: a supervised process that was killed comes back under another pid.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from triptych.proto.v1 import control_pb2, control_pb2_grpc, worker_pb2, worker_pb2_grpc
from triptych.runtime.client import AsyncClient
from triptych.runtime.wire.auth import bearer_metadata
from triptych.runtime.wire.tls import Tls, open_channel
from triptych.tools.supervisor import Supervisor
from triptych.tools.trials import watch

START_LIMIT = 300.0  # seconds; four jax processes that compile on two shared cores
DECODER = "triptych.runtime.media.child"  # the module that a process which decodes media runs
ASK_LIMIT = 10.0  # seconds for one question to a service

TOY = (
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

HELD = (
    "pages_sequence", "pages_staged", "pages_reserved", "staged_keys", "tasks", "waiting", "running", "pulls", "staging_keys",
    "staging_bytes", "media_pages_held", "media_gathering", "shelf_items", "shelf_bytes",
)  # fmt: skip


@dataclass(frozen=True)
class Access:
    """What one has to show: tokens of the two planes, certificates."""

    token: str | None = field(default=None, repr=False)
    cluster_token: str | None = field(default=None, repr=False)
    tls: Tls | None = None


@dataclass(frozen=True)
class Deployment:
    """A running deployment: the addresses of its gateway, its scheduler and its HTTP server if it has one, and `serve`'s pid (None: it runs elsewhere)."""

    address: str
    scheduler: str
    pid: int | None = None
    http: str | None = None
    access: Access = field(default_factory=Access)

    def client(self) -> AsyncClient:
        """A client of its own connection, as an application has it."""
        return AsyncClient(self.address, self.access.token, self.access.tls)

    def channel(self, address: str) -> grpc.aio.Channel:
        """To any of its processes. It shares no connection: the last one may lead to a process that was killed."""
        return open_channel(address, self.access.tls, (("grpc.use_local_subchannel_pool", 1),))

    async def cluster(self) -> control_pb2.Cluster:
        """What the scheduler knows."""
        async with self.channel(self.scheduler) as channel:
            ask = control_pb2_grpc.ControlStub(channel).GetCluster
            return await ask(control_pb2.GetClusterRequest(), timeout=ASK_LIMIT, metadata=self._inside)

    async def states(self, names: frozenset[str] | None = None) -> dict[str, worker_pb2.InstanceState]:
        """What every instance that the scheduler knows, or these of them, holds now, by instance id; and others in the same processes."""
        instances = [one.info for one in (await self.cluster()).instances if names is None or one.info.ref.id in names]
        addresses = {info.address for info in instances}
        replies = await asyncio.gather(*map(self._inspect, sorted(addresses)))
        return {state.info.ref.id: state for reply in replies for state in reply.instances}

    async def held(self) -> dict[str, dict[str, int]]:
        """Everything that an idle deployment must not hold and this one does, by owner; a process that does not answer is one, too."""
        try:
            cluster, states = await self.cluster(), await self.states()
        except grpc.aio.AioRpcError as error:
            return {f"no answer: {error.code().name} {error.details()}": {}}
        held = {name: leaks(state) for name, state in states.items()}
        held["scheduler"] = {
            "queued": cluster.queued,
            "active": cluster.active,
            "tasks": sum(one.tasks for one in cluster.instances),
        }
        return {owner: found for owner, what in held.items() if (found := {name: n for name, n in what.items() if n})}

    async def wait_idle(self, limit: float = 30.0) -> dict[str, dict[str, int]]:
        """What is held still after `limit` seconds; empty as soon as nothing is."""
        until = asyncio.get_running_loop().time() + limit
        while (held := await self.held()) and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.2)
        return held

    def processes(self) -> dict[str, int]:
        """Pids of the processes that live now, by name; none for a deployment that runs elsewhere."""
        return {} if self.pid is None else {"serve": self.pid, **children(self.pid)}

    def decoders(self) -> dict[str, int]:
        """Pids of the processes in which the gateway decodes media now, by their order."""
        gateway = self.processes().get("gateway")
        if gateway is None:
            return {}
        pids = (pid for pid, argv in _children(gateway) if DECODER in argv)
        return {f"{watch.DECODER}{number}": pid for number, pid in enumerate(sorted(pids))}

    @property
    def _inside(self) -> Any:
        return bearer_metadata(self.access.cluster_token or self.access.token)

    async def _inspect(self, address: str) -> worker_pb2.InspectReply:
        async with self.channel(address) as channel:
            ask = worker_pb2_grpc.WorkerStub(channel).Inspect
            return await ask(worker_pb2.InspectRequest(), timeout=ASK_LIMIT, metadata=self._inside)


@asynccontextmanager
async def deployed(
    flags: Sequence[str], access: Access | None = None, log: Callable[[str], None] | None = None
) -> AsyncIterator[Deployment]:
    """Serve the toy model with TOY and `flags` until the context is left; `log` gets what the processes say (None: stderr)."""
    loop = asyncio.get_running_loop()
    supervisor = Supervisor(log=log)
    try:
        argv = [sys.executable, "-m", "triptych.tools.cli", "serve", *TOY, *flags]
        pid = supervisor.start("serve", argv, dict(os.environ)).pid
        ready = (await loop.run_in_executor(None, supervisor.wait_ready, START_LIMIT))["serve"]
        addresses = ready["addresses"]
        yield Deployment(ready["address"], addresses["scheduler"], pid, addresses.get("http"), access or Access())
    finally:
        await loop.run_in_executor(None, supervisor.stop, 30.0)


def children(parent: int) -> dict[str, int]:
    """The triptych processes that `parent` has started, by name: that of the command, or what --name says."""
    found: dict[str, int] = {}
    for pid, argv in _children(parent):
        if "triptych.tools.cli" in argv:
            command = argv[argv.index("triptych.tools.cli") + 1]
            found[argv[argv.index("--name") + 1] if "--name" in argv else command] = pid
    return found


def _children(parent: int) -> Iterator[tuple[int, list[str]]]:
    """Pid and arguments of the processes that `parent` has started and that live."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            status, argv = (entry / "stat").read_text(), (entry / "cmdline").read_text().split("\0")
        except OSError:  # it ended meanwhile
            continue
        if int(status.rpartition(")")[2].split()[1]) == parent:
            yield int(entry.name), argv


def leaks(state: worker_pb2.InstanceState) -> dict[str, int]:
    """Everything that an idle instance must not hold and this one does."""
    found = {name: state.resources[name] for name in HELD if state.resources[name]}
    if state.resources["slots_free"] != state.resources["slots_total"]:
        found["slots"] = state.resources["slots_total"] - state.resources["slots_free"]
    free = state.resources["pages_free"] + state.resources["pages_cached"]
    if free != state.resources["pages_total"]:
        found["pages"] = state.resources["pages_total"] - free
    return found
