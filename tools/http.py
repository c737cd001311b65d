"""`triptych http`: the OpenAI-compatible HTTP server before a gRPC gateway, as a process of its own. It owns no device and imports no jax."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.wire import logs
from triptych.runtime.wire.rate import Rate
from triptych.runtime.wire.tls import ClientCertificates, Tls, load_tls
from triptych.tools import launch
from triptych.tools.child import announce_ready, end_with_parent
from triptych.tools.config import DEFAULT_PORT, ServeConfig
from triptych.tools.credentials import client_tokens, door_tls
from triptych.tools.memory import keep_level
from triptych.tools.settings import add_arguments as add_settings
from triptych.tools.settings import child_environment, describe, resolve, setting, write_dump

if TYPE_CHECKING:
    from triptych.runtime.gateway.http.config import HttpConfig, TlsFiles

HTTP = "http"
DEFAULT_HTTP_PORT = 8000


@dataclass(frozen=True)
class HttpSettings:
    """Settings of one HTTP server. Raises ConfigError listing all that is wrong."""

    target: str = setting(f"127.0.0.1:{DEFAULT_PORT}", "gRPC gateway to call, host:port", group="gateway")
    token: str | None = setting(
        None, "bearer token for the gateway (auto: the first API key)", secret=True, group="gateway"
    )
    target_tls: bool = setting(False, "call the gateway over TLS", group="gateway")
    target_ca_certs: str | None = setting(
        None, "authorities that sign the gateway's certificate, PEM (auto: the system's)", group="gateway"
    )
    target_certfile: str | None = setting(None, "certificate to show to the gateway, PEM", group="gateway")
    target_keyfile: str | None = setting(None, "its key, PEM", group="gateway")

    host: str = setting("127.0.0.1", "address to listen on", group="network")
    port: int = setting(DEFAULT_HTTP_PORT, "HTTP port; 0 takes a free one and prints it", group="network")
    api_key: str | None = setting(
        None,
        "bearer tokens that clients may present, separated by commas (auto: the token for the gateway; better in the environment)",
        secret=True,
        group="network",
    )
    ssl_certfile: str | None = setting(None, "certificate, PEM: serve HTTPS", group="network")
    ssl_keyfile: str | None = setting(None, "its key, PEM", group="network")
    ssl_ca_certs: str | None = setting(
        None, "authorities, PEM: clients must present a certificate that one of them signed", group="network"
    )

    max_body_mb: float = setting(32.0, "largest request body, in MB (media in it are base64)", group="limits")
    max_bodies_mb: float = setting(
        512.0, "bodies of all open requests together, in MB; more are refused", group="limits"
    )
    body_timeout: float = setting(30.0, "seconds that a body may take to arrive", group="limits")
    max_in_flight: int = setting(512, "requests that are generated at once; more are refused", group="limits")
    max_prompts: int = setting(64, "prompts in one completion request", group="limits")
    rate_limit: float | None = setting(
        None, "requests per second of one client, by API key or address (auto: no limit)", group="limits"
    )
    rate_burst: int = setting(20, "requests that a client may send at once before the rate holds", group="limits")
    request_timeout: float = setting(600.0, "seconds that a request may take", group="limits")
    ready_ttl: float = setting(5.0, "seconds that an answer of /ready is good for", group="limits")
    ready_timeout: float = setting(5.0, "seconds that the request behind /ready may take", group="limits")
    shutdown_timeout: float = setting(10.0, "seconds that running requests get at shutdown", group="limits")

    log_level: str = setting(
        "info", "what to log", choices=("debug", "info", "warning", "error"), group="files and logs"
    )
    log_format: str = setting("text", "how to log", choices=logs.FORMATS, group="files and logs")

    def __post_init__(self) -> None:
        problems = []
        host, _, port = self.target.rpartition(":")
        if not host or not port.isdigit():
            problems.append(f"target is {self.target!r}; expected host:port, such as 127.0.0.1:{DEFAULT_PORT}")
        if not 0 <= self.port <= 65535:
            problems.append(f"port is {self.port}; expected 0 (any free port) to 65535")
        for pair in (("ssl_certfile", "ssl_keyfile"), ("target_certfile", "target_keyfile")):
            given = [name for name in pair if getattr(self, name) is not None]
            if len(given) == 1:
                problems.append(f"{given[0]} is set alone; expected {' and '.join(pair)} together")
        if self.ssl_ca_certs is not None and self.ssl_certfile is None:
            problems.append("ssl_ca_certs asks clients for certificates; it needs ssl_certfile and ssl_keyfile")
        if not self.target_tls and (self.target_ca_certs or self.target_certfile):
            problems.append("target_ca_certs and target_certfile mean nothing without target_tls")
        if problems:
            raise ConfigError(describe(problems))

    def server(self) -> HttpConfig:
        """What the server is started with. Reads the TLS files of the gateway's side."""
        from triptych.runtime.gateway.http.config import HttpConfig

        keys = tuple(key.strip() for key in (self.api_key or self.token or "").split(",") if key.strip())
        return HttpConfig(
            target=self.target,
            host=self.host,
            port=self.port,
            token=self.token or next(iter(keys), None),
            api_keys=keys,
            target_tls=self._target_tls(),
            tls=self._tls(),
            max_body_bytes=round(self.max_body_mb * 10**6),
            max_bodies_bytes=round(self.max_bodies_mb * 10**6),
            body_timeout=self.body_timeout,
            max_in_flight=self.max_in_flight,
            max_prompts=self.max_prompts,
            rate=None if self.rate_limit is None else Rate(self.rate_limit, self.rate_burst),
            request_timeout=self.request_timeout,
            ready_ttl=self.ready_ttl,
            ready_timeout=self.ready_timeout,
            shutdown_timeout=self.shutdown_timeout,
        )

    def _tls(self) -> TlsFiles | None:
        from triptych.runtime.gateway.http.config import TlsFiles

        if self.ssl_certfile is None or self.ssl_keyfile is None:
            return None
        return TlsFiles(
            Path(self.ssl_certfile).expanduser(), Path(self.ssl_keyfile).expanduser(), _path(self.ssl_ca_certs)
        )

    def _target_tls(self) -> Tls | None:
        if not self.target_tls:
            return None
        return load_tls(_path(self.target_ca_certs), _path(self.target_certfile), _path(self.target_keyfile))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--supervised", action="store_true", help="end when stdin closes (set by serve)")
    add_settings(parser, HttpSettings)


def run(args: argparse.Namespace) -> int:
    settings = resolve(HttpSettings, args)
    if args.dump_config is not None:
        write_dump(settings, args.dump_config)
        return 0
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed; pip install 'triptych[http]'") from error
    keep_level()
    if args.supervised:
        end_with_parent()
    logs.configure(settings.log_level, settings.log_format, process="http")
    return asyncio.run(_serve(settings.server()))


async def _serve(config: HttpConfig) -> int:
    """Run until SIGTERM or SIGINT."""
    from triptych.runtime.gateway.http.server import HttpServer

    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    server = HttpServer(config)
    await server.start()
    announce_ready(url=server.url, address=server.address, pid=os.getpid())
    stopping, failing = asyncio.create_task(stop.wait()), asyncio.create_task(server.wait())
    try:
        await asyncio.wait({stopping, failing}, return_when=asyncio.FIRST_COMPLETED)
        if failing.done():
            failing.result()
        return 0
    finally:
        for task in (stopping, failing):
            task.cancel()
        await asyncio.gather(stopping, failing, return_exceptions=True)
        await server.stop()


def http_process(config: ServeConfig, gateway: str, port: int, environ: Mapping[str, str]) -> launch.ProcessSpec:
    """The server that `serve` starts on `port`, before the gateway at host:port. What ServeConfig does not say keeps its default."""
    flags = {
        "request_timeout": f"{config.request_timeout:g}",
        "shutdown_timeout": f"{config.shutdown_timeout:g}",
        "log_level": config.log_level,
        "log_format": config.log_format,
    }
    argv = (*command_line(gateway, config.host, port, flags | _tls_flags(config)), *_tls_switch(config))
    env = launch.QUIET_GRPC | child_environment(config, environ)
    env.pop("TRIPTYCH_CLUSTER_TOKEN", None)  # it belongs to the inside, and this process stands outside
    if tokens := client_tokens(config):
        env["TRIPTYCH_API_KEY"] = ",".join(tokens)
    return launch.ProcessSpec(HTTP, argv, env)


def _tls_flags(config: ServeConfig) -> dict[str, str]:
    """HTTPS with the gateway's own certificates, which are also what the gateway is shown."""
    door = door_tls(config)
    if door is None:
        return {}
    files = {
        "target_ca_certs": config.ssl_ca_certs,
        "target_certfile": config.ssl_certfile,
        "target_keyfile": config.ssl_keyfile,
    }
    files |= {"ssl_certfile": config.ssl_certfile, "ssl_keyfile": config.ssl_keyfile}
    if door[1] is ClientCertificates.REQUIRED:
        files["ssl_ca_certs"] = config.ssl_ca_certs
    return {name: path for name, path in files.items() if path is not None}


def _tls_switch(config: ServeConfig) -> tuple[str, ...]:
    return () if door_tls(config) is None else ("--target-tls",)


def command_line(target: str, host: str, port: int, flags: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The command that a supervisor starts before the gateway at `target`; `flags`: further settings by field name.

    Secrets (`token`, `api_key`) do not belong on it: they go into the environment, as settings.child_environment puts them.
    """
    chosen = {"target": target, "host": host, "port": str(port), **(flags or {})}
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in chosen.items()]
    return (sys.executable, "-m", "triptych.tools.cli", "http", "--supervised", *settings)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text).expanduser()
