"""The hand-over of fetched chunks to the device loop, and of the verdict back.

A delivery writes pages that belong to a reservation. When the pull ends first (cancelled, failed, past its deadline), the instance gives those
pages to somebody else, so a delivery must be claimed on the device loop before it writes, and an ended pull's deliveries cannot be claimed any
more. What was claimed was dispatched before any step that could reuse the pages, and the device keeps that order.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax

from triptych.runtime.core.errors import EngineError

if TYPE_CHECKING:
    from triptych.runtime.engine.page_programs import PageMover


class PullGate:
    """Open while a pull lives; shut once and for all when it ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = True

    def shut(self) -> bool:
        """True for the one caller that shut it."""
        with self._lock:
            was_open, self._open = self._open, False
            return was_open

    @property
    def is_open(self) -> bool:
        with self._lock:
            return self._open


@dataclass(frozen=True)
class Delivery:
    """Chunks of one offer on the devices of this instance, to be written into `pages` of `layer_group`.

    `arrays` are in the order of `PageMover.destinations(heads_per_chunk)`; `expected` holds one checksum a chunk. The device loop calls
    `scatter`; the pull awaits `verified`.
    """

    request: str
    layer_group: int
    pages: tuple[int, ...]
    heads_per_chunk: int
    arrays: Sequence[jax.Array]
    expected: tuple[int, ...]
    gate: PullGate
    threads: Executor
    loop: asyncio.AbstractEventLoop
    verified: asyncio.Future[None]

    def scatter(self, mover: PageMover, pools: Any) -> Any:
        """Device loop: writes the pages if the pull still lives, and returns the pools, which are donated. Does not wait.

        Raises:
            EngineError: the program failed, and the pools are lost.
        """
        if not self.gate.is_open:
            return pools
        try:
            pools, checksums = mover.scatter(pools, self.pages, self.arrays, self.heads_per_chunk, self.layer_group)
        except Exception as error:  # donated pools are gone whatever was raised
            lost = EngineError(f"writing pulled pages of request {self.request} failed: {error}")
            self._settle(lost)
            raise lost from error
        self.threads.submit(self._verify, mover, checksums)
        return pools

    def _verify(self, mover: PageMover, checksums: jax.Array) -> None:
        try:
            mover.verify(checksums, self.expected, self.heads_per_chunk)
        except Exception as error:  # noqa: BLE001 - a checksum, or whatever the device raised, ends the pull
            self._settle(error)
        else:
            self._settle(None)

    def _settle(self, error: Exception | None) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._set, error)

    def _set(self, error: Exception | None) -> None:
        if self.verified.done():
            return
        if error is None:
            self.verified.set_result(None)
        else:
            self.verified.set_exception(error)
