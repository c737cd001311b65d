"""Threads for tokenising and templating: long inputs must not hold up the tokens of other requests.

The queue before the threads is bounded, so that work which no client waits for any more cannot pile up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from triptych.runtime.core.errors import DeadlineError, OverloadedError
from triptych.runtime.gateway.config import GatewayConfig

T = TypeVar("T")


class TextPool:
    """Runs text functions; used from the event loop only."""

    def __init__(self, config: GatewayConfig):
        self._config = config
        self._threads = ThreadPoolExecutor(config.text_threads, thread_name_prefix="text")
        self._pending = 0

    async def run(self, function: Callable[[], T], timeout: float | None = None) -> T:
        """The result of `function`. Raises OverloadedError when too much waits, DeadlineError after `timeout` seconds."""
        if self._pending >= self._config.max_in_flight:
            raise OverloadedError(
                f"{self._pending} texts wait to be tokenised; retry later", retry_after=self._config.retry_after
            )
        self._pending += 1
        future = asyncio.get_running_loop().run_in_executor(self._threads, function)
        future.add_done_callback(self._done)
        done, _ = await asyncio.wait((future,), timeout=timeout)
        if not done:
            raise DeadlineError("the deadline passed while the prompt was being tokenised")
        return future.result()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _done(self, future: asyncio.Future[T]) -> None:
        self._pending -= 1
        if not future.cancelled():
            future.exception()  # looked at, so that a result which nobody waits for any more is not reported as lost
