"""What the load generator needs of a client, and nothing else, so that it can be tested without a server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from triptych.tools.bench.workload import Item


@dataclass(frozen=True)
class Received:
    """One message of a stream. `tokens` new output tokens; `prompt_tokens` once the server has said it, else None."""

    tokens: int
    prompt_tokens: int | None = None


class LoadClient(Protocol):
    """Sends one item and yields what comes back; raises TriptychError when the request failed."""

    def stream(self, item: Item) -> AsyncIterator[Received]: ...

    async def close(self) -> None: ...
