"""Transport "grpc" of an instance over several hosts: what is fetched stays on the leader's host, from where it goes to all hosts (page_mover.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from triptych.runtime.transfer.transports.grpc import GrpcTransport
from triptych.sharding.devices import Device


class HostBytes(GrpcTransport):
    """Fetches arrays of numpy."""

    async def _place(self, arrays: Sequence[np.ndarray], devices: Sequence[Device]) -> tuple[Any, ...]:
        return tuple(arrays)
