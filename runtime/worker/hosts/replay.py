"""How a follower makes the leader's device calls."""

from __future__ import annotations

import numpy as np

from triptych.proto.v1 import hosts_pb2
from triptych.runtime.core.errors import EngineError
from triptych.runtime.engine.engine import Engine
from triptych.runtime.worker.hosts.page_mover import SpreadPageMover
from triptych.runtime.worker.hosts.plans import read_plan


class Replay:
    """A follower's device half: makes the leader's calls on its own engine and mover, on one thread."""

    def __init__(self, engine: Engine, mover: SpreadPageMover):
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
