"""The load generator's client for an OpenAI-compatible HTTP server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from triptych.runtime.core.errors import ConfigError, InstanceLostError, Status, TriptychError
from triptych.tools.bench.client import Received
from triptych.tools.bench.workload import Item

STATUSES = {
    400: Status.INVALID_ARGUMENT,
    401: Status.UNAUTHENTICATED,
    404: Status.NOT_FOUND,
    408: Status.DEADLINE_EXCEEDED,
    413: Status.INVALID_ARGUMENT,
    429: Status.RESOURCE_EXHAUSTED,
    503: Status.UNAVAILABLE,
    504: Status.DEADLINE_EXCEEDED,
}
LIMIT = 600.0  # seconds for one answer: a benchmark that gives up early measures nothing


class HttpLoadClient:
    """Greedy, streamed /v1/completions. Tokens are counted by the usage that each chunk carries (`continuous_usage_stats`, as in vLLM), because a
    chunk may hold several. Salts are as in `GrpcLoadClient`.
    """

    def __init__(self, url: str, api_key: str | None, *, model: str, share_prefixes: bool, run: str):
        try:
            import httpx2
        except ModuleNotFoundError as error:
            raise ConfigError(f"{error.name} is not installed; pip install 'triptych[http]'") from error
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        limits = httpx2.Limits(max_connections=None)  # an open loop: no request waits for a connection
        self._failures: type[Exception] = httpx2.HTTPError
        self._client = httpx2.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=LIMIT)
        self._model = model
        self._share = share_prefixes
        self._run = run
        self._sent = 0

    async def stream(self, item: Item) -> AsyncIterator[Received]:
        self._sent += 1
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": item.prompt if isinstance(item.prompt, str) else list(item.prompt),
            "max_tokens": item.output_tokens,
            "temperature": 0,
            "ignore_eos": item.ignore_eos,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        if not self._share:
            body["cache_salt"] = f"{self._run}-{self._sent}"
        try:
            async for received in self._stream(body):
                yield received
        except self._failures as error:
            raise InstanceLostError(f"{type(error).__name__}: {error}") from error

    async def close(self) -> None:
        await self._client.aclose()

    async def _stream(self, body: dict[str, Any]) -> AsyncIterator[Received]:
        async with self._client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                raise _failure(response.status_code, (await response.aread()).decode(errors="replace"))
            counted = 0
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                payload = line.removeprefix("data: ")
                if payload == "[DONE]":
                    return
                chunk = json.loads(payload)
                if "error" in chunk:
                    raise TriptychError(chunk["error"]["message"])
                usage = chunk["usage"]
                yield Received(usage["completion_tokens"] - counted, usage["prompt_tokens"])
                counted = usage["completion_tokens"]
        raise InstanceLostError("the stream ended without [DONE]")


def _failure(status: int, text: str) -> TriptychError:
    error = TriptychError(f"HTTP {status}: {text[:500]}")
    error.status = STATUSES.get(status, Status.INTERNAL)
    return error
