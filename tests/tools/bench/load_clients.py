"""Clients that other processes of a load generator can make."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

from triptych.tools.bench.client import Received
from triptych.tools.bench.workload import Item


class Counting:
    """Says the process by its prompt tokens, and gives as many tokens as are wanted."""

    async def stream(self, item: Item) -> AsyncIterator[Received]:
        yield Received(0, prompt_tokens=os.getpid())
        for _ in range(item.output_tokens):
            await asyncio.sleep(0.002)
            yield Received(1)

    async def close(self) -> None:
        pass


class Dying(Counting):
    """Ends its process."""

    async def stream(self, item: Item) -> AsyncIterator[Received]:
        os._exit(3)
        yield Received(1)
