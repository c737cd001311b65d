"""What load balancers ask. Health is what the gateway says of itself; readiness is a request of one token through the real queue and the real
devices, whose answer is kept for a while so that probing costs next to nothing. A client's own success counts as well.
"""

from __future__ import annotations

import asyncio
import io
import wave

from triptych.runtime.client import AsyncClient
from triptych.runtime.core.clock import Clock
from triptych.runtime.core.errors import TriptychError
from triptych.runtime.gateway.http.config import HttpConfig

FAILED_TTL = (
    1.0  # seconds that a failure is kept: short, so that recovery shows, and not nothing, so that probes do not pile up
)
PROBE_TOKEN = 1  # any id that every vocabulary has


def silence(seconds: float = 0.1) -> bytes:
    """A WAV file of nothing."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(2 * int(16_000 * seconds)))
    return out.getvalue()


SILENCE = silence()


class Readiness:
    """Whether a request would be served now. Probes that come while one runs share its answer."""

    def __init__(self, client: AsyncClient, config: HttpConfig, clock: Clock):
        self._client = client
        self._config = config
        self._clock = clock
        self._reason: str | None = "nothing was probed yet"
        self._until = float("-inf")
        self._probing: asyncio.Task[str | None] | None = None

    def served(self) -> None:
        """A client's request ended well: that is as good as a probe."""
        self._keep(None, self._config.ready_ttl)

    async def reason(self) -> str | None:
        """Why no request would be served; None if one would."""
        if self._clock.now() < self._until:
            return self._reason
        if self._probing is None:
            self._probing = asyncio.create_task(self._probe(), name="readiness probe")
            self._probing.add_done_callback(self._probed)
        return await asyncio.shield(self._probing)

    async def close(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)

    async def _ask(self, limit: float) -> None:
        """For one token: after one of a prompt, or of a moment of silence."""
        if not (info := await self._client.model_info()).transcribes:
            await self._client.complete(token_ids=[PROBE_TOKEN], max_tokens=1, temperature=0.0, timeout=limit)
            return
        language = info.languages[0] if info.languages else None
        await self._client.transcribe(SILENCE, language=language, max_tokens=1, timeout=limit)

    def _probed(self, task: asyncio.Task[str | None]) -> None:
        self._probing = None
        if not task.cancelled() and task.exception() is None:
            reason = task.result()
            self._keep(reason, self._config.ready_ttl if reason is None else FAILED_TTL)

    def _keep(self, reason: str | None, seconds: float) -> None:
        self._reason = reason
        self._until = self._clock.now() + seconds

    async def _probe(self) -> str | None:
        limit = self._config.ready_timeout
        try:
            async with asyncio.timeout(limit + 0.5):
                await self._ask(limit)
        except TriptychError as error:
            return f"{error.status.name}: {error.message}"
        except TimeoutError:
            return f"a request of one token took longer than {limit:g} s"
        return None
