"""A sound that is longer than a window: one request to the scheduler for each of its windows, several at once, and one answer in order.

Windows are transcribed without knowing of each other: a word that lies across a cut may come out wrong. (The cut is made in a pause, if there is one:
models/speech/windows.py.) If one window fails, so does the whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.gateway.live import Write
from triptych.runtime.gateway.media.pieces import Piece
from triptych.runtime.gateway.transcript import Transcript

# Of one request at once: enough to keep a few instances busy, and no more than leaves room for others.
AT_ONCE = 8

Transcribe = Callable[[int, Piece, Write], Awaitable[None]]
"""Transcribes a window: its number, its samples, and where its messages go. Ends when they have all gone there; raises typed errors."""


async def transcribe_windows(
    pieces: Sequence[Piece], transcribe: Transcribe, transcript: Transcript, write: Write
) -> None:
    """Send the answer about all windows. Raises the first error."""
    heard: list[asyncio.Queue[pb.GenerateResponse | None]] = [asyncio.Queue() for _ in pieces]
    places = asyncio.Semaphore(AT_ONCE)

    async def one(index: int) -> None:
        async with places:
            await transcribe(index, pieces[index], heard[index].put)
        heard[index].put_nowait(None)

    async def forward() -> None:
        for queue in heard:
            while (response := await queue.get()) is not None:
                shown = transcript.feed(response)
                if shown is not None:
                    await write(shown)
        for response in transcript.end():
            await write(response)

    tasks = [asyncio.create_task(work) for work in (forward(), *(one(index) for index in range(len(pieces))))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
