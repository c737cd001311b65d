"""Device calls as messages: what the leader has its followers do, in one order.

An instance is the same programs on all its hosts, called in the same order with the same arguments; arrays that are on the devices follow from the calls
before. So a call is a plan, or pages to move, and nothing of what is on the devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from triptych.proto.v1 import hosts_pb2
from triptych.runtime.instance.plan import StepPlan
from triptych.runtime.worker.hosts.plans import plan_message


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
