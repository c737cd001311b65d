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
from triptych.runtime.worker.hosts.plans import write_plan


class DeviceCalls(Protocol):
    """Where the leader sends calls."""

    def send(self, message: hosts_pb2.LeaderMessage) -> None:
        """To every follower, numbered, in the order of sending. Called by the thread that then makes the call itself; does not wait. The
        message is the receiver's from then on."""
        ...


# Messages are filled where they belong: one that is handed to another's constructor is written and read again.


def plan_call(plan: StepPlan) -> hosts_pb2.LeaderMessage:
    message = hosts_pb2.LeaderMessage()
    message.call.plan.SetInParent()
    write_plan(plan, message.call.plan)
    return message


def gather_call(pages: Sequence[int], heads: int, layer_group: int) -> hosts_pb2.LeaderMessage:
    """See `PageMover.gather`."""
    message = hosts_pb2.LeaderMessage()
    wanted = message.call.gather
    wanted.pages.extend(pages)
    wanted.heads, wanted.layer_group = heads, layer_group
    return message


def scatter_call(
    pages: Sequence[int], chunks: Sequence[np.ndarray], heads: int, layer_group: int
) -> hosts_pb2.LeaderMessage:
    """See `PageMover.scatter`; `chunks` in chunk order."""
    message = hosts_pb2.LeaderMessage()
    wanted = message.call.scatter
    wanted.pages.extend(pages)
    wanted.heads, wanted.layer_group = heads, layer_group
    wanted.chunks.extend(chunk.tobytes() for chunk in chunks)
    return message
