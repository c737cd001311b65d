"""The server: uvicorn around the application, on one event loop with the gRPC client.

At the end new connections are refused, running requests get `shutdown_timeout`, and what is left then ends with an error in OpenAI's form.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator

import uvicorn

from triptych.runtime.client import AsyncClient
from triptych.runtime.core.clock import MonotonicClock
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.gateway.http.answer import Service
from triptych.runtime.gateway.http.app import Api, ServedName, build
from triptych.runtime.gateway.http.config import HttpConfig
from triptych.runtime.gateway.http.errors import HttpError
from triptych.runtime.gateway.http.limits import Keys
from triptych.runtime.gateway.http.probes import Readiness
from triptych.runtime.metrics.http import HttpMetrics
from triptych.runtime.metrics.registry import Metrics
from triptych.runtime.metrics.requests import RequestMetrics
from triptych.runtime.wire.listening import endpoint, local_endpoint
from triptych.runtime.wire.rate import RateLimiter
from triptych.runtime.wire.tls import load_tls

BACKLOG = 2048
KEEP_ALIVE = (
    75  # seconds that an idle connection stays open; longer than common proxies keep theirs, so that they close first
)
CLOSING = 2.0  # seconds for answers that were told to end


class HttpServer:
    """Started by `start`, ended by `stop`; `wait` raises if the server fails."""

    def __init__(self, config: HttpConfig):
        self._config = config
        self.address = ""
        self.url = ""

    async def start(self) -> None:
        """Raises ConfigError if the address is taken or a certificate cannot be read. Does not wait for the gateway."""
        config, clock = self._config, MonotonicClock()
        listener = listen(config.host, config.port)
        try:
            self._client = AsyncClient(config.target, config.token, config.target_tls)
            served = ServedName(self._client, clock)
            metrics = Metrics(lambda: {"model_name": served.known or ""})
            self._stopping: asyncio.Future[HttpError] = asyncio.get_running_loop().create_future()
            self._readiness = Readiness(self._client, config, clock)
            requests = RequestMetrics(metrics, clock)
            service = Service(self._client, config, requests, self._stopping, self._readiness.served)
            api = Api(service, metrics, served, self._readiness)
            limiter = None if config.rate is None else RateLimiter(config.rate)
            app = build(api, Keys(config.api_keys), limiter, HttpMetrics(metrics), clock)
            self._server = _Server(_uvicorn_config(config, app))
        except BaseException:
            listener.close()
            raise
        port = listener.getsockname()[1]
        self.address = local_endpoint(config.host, port)
        self.url = f"{'https' if config.tls else 'http'}://{self.address}"
        self._running = asyncio.create_task(self._server.serve([listener]), name="http server")
        while not self._server.started and not self._running.done():
            await asyncio.sleep(0.01)
        if self._running.done():
            self._running.result()

    async def wait(self) -> None:
        await asyncio.shield(self._running)

    async def stop(self) -> None:
        """In order, within `shutdown_timeout` and a little more."""
        self._server.should_exit = True
        await asyncio.wait({self._running}, timeout=self._config.shutdown_timeout)
        self._stopping.set_result(HttpError(503, "the server is shutting down", retry_after=1.0))
        with contextlib.suppress(asyncio.CancelledError):
            await self._running
        await self._readiness.close()
        await self._client.close()


class _Server(uvicorn.Server):
    """uvicorn's, but signals are the command's business."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override]
        yield


def listen(host: str, port: int) -> socket.socket:
    """A listening socket on one address. Raises ConfigError if it is taken or not of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(f"cannot listen on {endpoint(host, port)}: {error.strerror or error}") from error
    # Connections inherit it. asyncio sets it only on sockets made with an explicit IPPROTO_TCP, and without it each event waits 40 ms for an ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _uvicorn_config(config: HttpConfig, app: object) -> uvicorn.Config:
    tls = config.tls
    if tls is not None:
        load_tls(tls.ca_certs, tls.certificate, tls.key)  # says by name what is wrong with a file
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http="h11",
        ws="none",
        lifespan="off",
        loop="none",
        log_config=None,
        log_level="warning",  # what it does in good order is the command's to say
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the peer's address is a rate limit's key: a header that anybody can send is none
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(config.shutdown_timeout + CLOSING + 1),
        ssl_certfile=None if tls is None else tls.certificate,
        ssl_keyfile=None if tls is None else str(tls.key),
        ssl_ca_certs=None if tls is None or tls.ca_certs is None else str(tls.ca_certs),
        ssl_cert_reqs=ssl.CERT_REQUIRED if tls is not None and tls.ca_certs is not None else ssl.CERT_NONE,
    )
