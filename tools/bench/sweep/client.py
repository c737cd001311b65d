"""The load generator's client of a sweep: greedy requests with pictures, a time at which all of them end, and what the server timed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable

from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.client import AsyncClient
from triptych.tools.bench.client import Received
from triptych.tools.bench.sweep.prompts import PicturedItem
from triptych.tools.bench.workload import Item

SHORTEST = 0.05  # seconds; a request that is sent after the end still gets an answer, an error


class SweepClient:
    """Sends items; a `LoadClient`. Each has a cache salt of its own: no prompt is found in a cache.

    Attributes:
        end: when requests that still run end with DEADLINE_EXCEEDED, by `clock`. They missed their objectives before.
        timings: of the requests that were completed, as they ended.
    """

    def __init__(self, client: AsyncClient, run: str, end: float, clock: Callable[[], float] = time.monotonic):
        self.end = end
        self.timings: list[pb.Timings] = []
        self._client, self._run, self._clock = client, run, clock
        self._sent = 0

    async def stream(self, item: Item) -> AsyncIterator[Received]:
        self._sent += 1
        call = self._client.generate(
            token_ids=[int(token) for token in item.prompt],
            images=list(item.images) if isinstance(item, PicturedItem) and item.images else None,
            cache_salt=f"{self._run}-{self._sent}",
            timeout=max(SHORTEST, self.end - self._clock()),
            max_tokens=item.output_tokens,
            temperature=0.0,
            ignore_eos=item.ignore_eos,
        )
        async with call as stream:
            async for chunk in stream:
                if chunk.tokens:
                    yield Received(len(chunk.tokens))
            yield Received(0, stream.result.prompt_tokens)
            if stream.result.timings is not None:
                self.timings.append(stream.result.timings)

    async def close(self) -> None:
        await self._client.close()
