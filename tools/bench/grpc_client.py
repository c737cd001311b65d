"""The load generator's client for a Triptych server."""

from __future__ import annotations

from collections.abc import AsyncIterator

from triptych.runtime.client import AsyncClient
from triptych.tools.bench.client import Received
from triptych.tools.bench.workload import Item


class GrpcLoadClient:
    """Greedy requests over gRPC. Each has a cache salt of its own unless `share_prefixes`, so that repeated rounds meet a cold prefix cache."""

    def __init__(self, client: AsyncClient, *, share_prefixes: bool, run: str):
        self._client = client
        self._share = share_prefixes
        self._run = run
        self._sent = 0

    async def stream(self, item: Item) -> AsyncIterator[Received]:
        self._sent += 1
        text = isinstance(item.prompt, str)
        async with self._client.generate(
            prompt=item.prompt if isinstance(item.prompt, str) else None,
            token_ids=None if text else [int(t) for t in item.prompt],
            cache_salt="" if self._share else f"{self._run}-{self._sent}",
            max_tokens=item.output_tokens,
            temperature=0.0,
            ignore_eos=item.ignore_eos,
        ) as stream:
            async for chunk in stream:
                if chunk.tokens:
                    yield Received(len(chunk.tokens))
            yield Received(0, stream.result.prompt_tokens)

    async def close(self) -> None:
        await self._client.close()
