"""What every serving process does to be watched: its log's form, and the port where it shows metrics and answers probes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from triptych.runtime.metrics.registry import Metrics
from triptych.runtime.metrics.server import MetricsServer, always, nothing
from triptych.runtime.wire import logs
from triptych.tools.config import ServeConfig


def start_log(config: ServeConfig, process: str) -> None:
    """Log to stderr as the settings say. `process`: what it is called in JSON lines."""
    logs.configure(config.log_level, config.log_format, process=process)


async def open_port(
    config: ServeConfig,
    metrics: Metrics,
    *,
    refresh: Callable[[], Awaitable[None]] = nothing,
    ready: Callable[[], str | None] = always,
) -> MetricsServer:
    """Serve `metrics` where the settings say, if they do. The caller stops it. Raises ConfigError if the port is taken."""
    server = MetricsServer(metrics, config.metrics_host, config.metrics_port, refresh=refresh, ready=ready)
    if config.metrics_port:
        await server.start()
    return server
