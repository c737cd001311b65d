"""Pages in and out of pools that lie on several hosts, by way of the leader.

Whoever pulls knows one address, and a transport publishes arrays of its own process. So gathering copies every chunk to every host (an all-gather over the
mesh), from which the leader takes it, and scattering begins with all chunks on each host, which places those that its devices hold. Chunks are the
canonical ones, so the other side need not know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from triptych.runtime.engine.page_programs import Gathered, PageMover
from triptych.runtime.worker.hosts.calls import DeviceCalls, gather_call, scatter_call
from triptych.sharding.devices import Device


class SpreadPageMover(PageMover):
    """A PageMover of one of the hosts; all of them make the same calls. Arguments are those of PageMover."""

    def __init__(self, *args: Any, **named: Any):
        super().__init__(*args, **named)
        self._sums = self._whole  # whoever verifies sees all of them

    def destinations(self, g: int) -> tuple[tuple[int, Device], ...]:
        """Each chunk once: where it goes from here is this class's to say. `transports.HostBytes` leaves it on the host."""
        return tuple((chunk, self.devices[0]) for chunk in range(self.layout.num_chunks(g)))

    def gather(self, pools: Any, pages: Sequence[int], g: int, layer_group: int = 0) -> Gathered:
        start, stop = self.layer_groups[layer_group]
        leaves = jax.tree.leaves(pools)[self._arrays(start, stop)]
        *chunks, sums = self._program(self._gather, g, stop - start)(self._padded(pages), *leaves)
        places = tuple((h.device, h.block) for h in self.layout.senders(g))
        return Gathered(tuple(chunk.addressable_data(0) for chunk in chunks), sums, places)

    def scatter(
        self, pools: Any, pages: Sequence[int], chunks: Sequence[Any], g: int, layer_group: int = 0
    ) -> tuple[Any, jax.Array]:
        """`chunks` are all of them, in chunk order, on the host."""
        return super().scatter(pools, pages, chunks, g, layer_group)

    def _gathering(self, program: Callable[..., Any], g: int, layers: int) -> tuple[Callable[..., Any], Any]:
        senders = self.layout.senders(g)

        def gather_whole(pages: jax.Array, *pools: jax.Array) -> tuple[jax.Array, ...]:
            *blocks, sums = program(pages, *pools)
            return (*(blocks[h.block][h.device * layers : (h.device + 1) * layers] for h in senders), sums)

        return gather_whole, (self._whole,) * (len(senders) + 1)

    def _places(self, chunks: Sequence[Any], g: int) -> dict[tuple[int, int], jax.Array]:
        here = set(self._own)
        return {
            (h.device, h.block): jax.device_put(chunks[h.chunk], self.devices[h.device])
            for h in self.layout.holders(g)
            if h.device in here
        }


class LeadingPageMover(SpreadPageMover):
    """The leader's: has the others make every call, and makes it itself."""

    def __init__(self, calls: DeviceCalls, *args: Any, **named: Any):
        super().__init__(*args, **named)
        self._calls = calls

    def gather(self, pools: Any, pages: Sequence[int], g: int, layer_group: int = 0) -> Gathered:
        self._calls.send(gather_call(pages, g, layer_group))
        return super().gather(pools, pages, g, layer_group)

    def scatter(
        self, pools: Any, pages: Sequence[int], chunks: Sequence[Any], g: int, layer_group: int = 0
    ) -> tuple[Any, jax.Array]:
        arrays = [np.asarray(chunk) for chunk in chunks]
        self._calls.send(scatter_call(pages, arrays, g, layer_group))
        return super().scatter(pools, pages, arrays, g, layer_group)
