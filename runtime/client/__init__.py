"""The Python client: `Client` (blocking) and `AsyncClient` (asyncio). Needs grpcio and protobuf only; never imports JAX.

    with Client("localhost:8431") as client:
        for chunk in client.generate("The capital of France is", max_tokens=16):
            print(chunk.text, end="")
        print(client.complete(messages=[{"role": "user", "content": "Hi!"}]).text)

Failures are the typed errors of `triptych.runtime.core.errors`, as the server raised them, with `retry_after` where it gave one.
"""

from triptych.runtime.client.aio import AsyncClient, AsyncStream
from triptych.runtime.client.media import Uploaded
from triptych.runtime.client.results import Chunk, Result, Sample, Token
from triptych.runtime.client.sync import Client, Stream
from triptych.runtime.wire.tls import Tls, load_tls

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "Chunk",
    "Client",
    "Result",
    "Sample",
    "Stream",
    "Tls",
    "Token",
    "Uploaded",
    "load_tls",
]
