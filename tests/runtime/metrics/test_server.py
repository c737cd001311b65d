"""The port of its own: metrics and probes, and nothing that a client sends breaks it."""

from __future__ import annotations

import asyncio

import pytest

from triptych.runtime.core.errors import ConfigError, InstanceLostError
from triptych.runtime.metrics import server as module
from triptych.runtime.metrics.registry import Metrics
from triptych.runtime.metrics.server import MetricsServer


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.read(), 60)
    finally:
        writer.close()
        await writer.wait_closed()


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode()


def test_metrics_and_probes() -> None:
    async def main() -> None:
        asked: list[int] = []
        reasons: list[str | None] = [None]
        metrics = Metrics()
        metrics.gauge("things", "Things").set(3)

        async def refresh() -> None:
            asked.append(1)
            if len(asked) > 1:
                raise InstanceLostError("it does not answer")

        server = MetricsServer(metrics, "127.0.0.1", 0, refresh=refresh, ready=lambda: reasons[0])
        await server.start()
        for count in (1, 2):
            answer = await ask(server.port, get("/metrics?name=x"))
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and b"\ntriptych_things 3.0\n" in answer
            assert len(asked) == count, "values are asked for; where that fails the known ones are shown"
        assert b"200 OK" in await ask(server.port, get("/live")) and b"200 OK" in await ask(server.port, get("/readyz"))
        reasons[0] = "no scheduler"
        answer = await ask(server.port, get("/ready"))
        assert b"503 Service Unavailable" in answer and answer.endswith(b"no scheduler\n")
        assert b"404 Not Found" in await ask(server.port, get("/"))
        assert b"405 Method" in await ask(server.port, b"POST /metrics HTTP/1.1\r\n\r\n")
        head = await ask(server.port, b"HEAD /metrics HTTP/1.1\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200") and head.endswith(b"\r\n\r\n")
        await server.stop()

    asyncio.run(main())


def test_garbage_and_silence_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.2)

    async def main() -> None:
        server = MetricsServer(Metrics(), "127.0.0.1", 0)
        await server.start()
        assert await ask(server.port, b"GET /metrics") == b"", "what never ends is given up"
        monkeypatch.setattr(module, "TIMEOUT", 60.0)
        assert await ask(server.port, b"x" * 100_000) == b""
        assert b"405" in await ask(server.port, b"\xff\x00\r\n\r\n")
        assert b"200 OK" in await ask(server.port, get("/live"))
        await server.stop()

    asyncio.run(main())


def test_a_taken_port_is_told() -> None:
    async def main() -> None:
        first = MetricsServer(Metrics(), "127.0.0.1", 0)
        await first.start()
        with pytest.raises(ConfigError, match="cannot serve metrics"):
            await MetricsServer(Metrics(), "127.0.0.1", first.port).start()
        await first.stop()

    asyncio.run(main())
