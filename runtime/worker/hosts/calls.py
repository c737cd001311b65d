"""Device calls as messages: what the leader has its followers do, in one order, and how a follower does it.

An instance is the same programs on all its hosts, called in the same order with the same arguments; arrays that are on the devices follow from the calls
before. So a call is a plan, or pages to move, and nothing of what is on the devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from triptych.proto.v1 import hosts_pb2
from triptych.runtime.core.errors import EngineError
from triptych.runtime.engine.engine import Engine
from triptych.runtime.engine.page_programs import PageMover
from triptych.runtime.instance.plan import StepPlan
from triptych.runtime.worker.hosts.plans import plan_message, read_plan


class DeviceCalls(Protocol):
    """Where the leader sends calls."""

    def send(self, call: hosts_pb2.DeviceCall) -> None:
        """To every follower, numbered, in the order of sending. Called by the thread that then makes the call itself; does not wait. The
        message is the receiver's from then on."""
        ...


def plan_call(plan: StepPlan) -> hosts_pb2.DeviceCall:
    return hosts_pb2.DeviceCall(plan=plan_message(plan))


def gather_call(pages: Sequence[int], heads: int, layer_group: int) -> hosts_pb2.DeviceCall:
    """See `PageMover.gather`."""
    return hosts_pb2.DeviceCall(gather=hosts_pb2.GatherPages(pages=pages, heads=heads, layer_group=layer_group))


def scatter_call(
    pages: Sequence[int], chunks: Sequence[np.ndarray], heads: int, layer_group: int
) -> hosts_pb2.DeviceCall:
    """See `PageMover.scatter`; `chunks` in chunk order."""
    data = [chunk.tobytes() for chunk in chunks]
    message = hosts_pb2.ScatterPages(pages=pages, heads=heads, layer_group=layer_group, chunks=data)
    return hosts_pb2.DeviceCall(scatter=message)


class Replay:
    """A follower's device half: makes the leader's calls on its own engine and mover, on one thread."""

    def __init__(self, engine: Engine, mover: PageMover):
        self._engine, self._mover = engine, mover
        self.calls = 0

    def make(self, call: hosts_pb2.DeviceCall) -> None:
        """Dispatch it; waits for nothing, and what comes of it is the leader's to read.

        Raises EngineError for a call out of order, or one that fails: the hosts do not have the same any more.
        """
        if call.order != self.calls:
            raise EngineError(f"call {call.order} came, expected {self.calls}: calls of the leader are missing")
        self.calls += 1
        match call.WhichOneof("kind"):
            case "plan":
                self._engine.dispatch(read_plan(call.plan))
            case "gather":
                wanted = call.gather
                self._mover.gather(self._engine.pools, wanted.pages, wanted.heads, wanted.layer_group)
            case "scatter":
                self._scatter(call.scatter)
            case other:
                raise EngineError(f"call {call.order} is {other}, which this version does not know")

    def _scatter(self, wanted: hosts_pb2.ScatterPages) -> None:
        shape, dtype = self._mover.chunk_shape(wanted.heads, wanted.layer_group), self._mover.chunk_dtype
        chunks = [np.frombuffer(data, dtype).reshape(shape) for data in wanted.chunks]
        self._engine.pools, _ = self._mover.scatter(
            self._engine.pools, wanted.pages, chunks, wanted.heads, wanted.layer_group
        )
