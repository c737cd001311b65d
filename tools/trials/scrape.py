"""Metrics of a deployment's processes as Prometheus would read them, and ports where they are shown."""

from __future__ import annotations

import asyncio
import random
import socket
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from triptych.runtime.core.errors import ConfigError

TIMEOUT = 2.0  # seconds for an answer
PORTS = (20_000, 30_000)  # below those that systems give to outgoing connections
TRIES = 50


async def scrape(port: int) -> dict[str, float]:
    """Samples by name, summed over their labels. Raises OSError if nothing answers."""
    text = await asyncio.to_thread(_get, f"http://127.0.0.1:{port}/metrics")
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def free_ports(count: int) -> int:
    """The first of so many consecutive ports that are free now. Raises ConfigError if none are found."""
    for _ in range(TRIES):
        first = random.randrange(*PORTS)
        if all(map(_free, range(first, first + count))):
            return first
    raise ConfigError(f"no {count} consecutive ports are free between {PORTS[0]} and {PORTS[1]}")


def _free(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
        return answer.read().decode()
