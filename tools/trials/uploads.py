"""What one client of a trial has uploaded, and so names by handle."""

from __future__ import annotations

from triptych.runtime.client import AsyncClient, Uploaded


class Uploads:
    """Handles by content. A gateway that was started again knows none of them: `forget` then."""

    def __init__(self) -> None:
        self._known: dict[bytes, Uploaded] = {}

    async def given(self, client: AsyncClient, data: bytes) -> Uploaded:
        """The handle of `data`, which is uploaded the first time. Raises what `upload_media` raises."""
        if data not in self._known:
            self._known[data] = await client.upload_media(data)
        return self._known[data]

    def forget(self) -> None:
        self._known.clear()
