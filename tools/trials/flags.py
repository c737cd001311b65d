"""The flags that every trial has, and the deployment that they mean: one that is started for it, or one that runs already."""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from triptych.runtime.core.errors import ConfigError
from triptych.tools.connection import TlsSettings
from triptych.tools.settings import add_flags, resolve, setting
from triptych.tools.trials.deployment import Access, Deployment, deployed


@dataclass(frozen=True)
class AccessSettings(TlsSettings):
    """Tokens and certificates as flags; see Access."""

    api_key: str | None = setting(None, "bearer token of a client", secret=True, group="connection")
    cluster_token: str | None = setting(
        None, "bearer token of the deployment's processes (auto: --api-key)", secret=True, group="connection"
    )


def add_arguments(parser: argparse.ArgumentParser, topology: str) -> None:
    """Flags that every trial has: what is started, how to be let in, where its processes' words go."""
    parser.add_argument("--topology", default=topology, help=f"of the deployment that is started (default {topology})")
    parser.add_argument("--log", type=Path, help="file for what the deployment's processes say (default: stderr)")
    parser.add_argument("flags", nargs="*", metavar="-- FLAG", help="further flags of `triptych serve`")
    add_flags(parser, AccessSettings)


def add_address_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of a trial that can do without processes of its own."""
    parser.add_argument("--address", metavar="HOST:PORT", help="gateway of a deployment that runs already")
    parser.add_argument("--scheduler", metavar="HOST:PORT", help="its scheduler")
    parser.add_argument("--http", metavar="HOST:PORT", help="its HTTP server, if it has one")


@asynccontextmanager
async def opened(args: argparse.Namespace, *more: str) -> AsyncIterator[Deployment]:
    """The deployment that the flags name, or else one that is started with --topology, `more` and what follows `--`."""
    given = resolve(AccessSettings, args)
    access = Access(given.api_key, given.cluster_token, given.tls)
    if getattr(args, "address", None) is not None:
        if args.scheduler is None:
            raise ConfigError("--address needs --scheduler, which knows the workers")
        yield Deployment(args.address, args.scheduler, None, args.http, access)
        return
    with Log(args.log) as log:
        async with deployed([f"--topology={args.topology}", *more, *args.flags], access, log) as deployment:
            yield deployment


class Log:
    """Where the lines of a deployment's processes go: a file, or stderr. A context manager."""

    def __init__(self, path: Path | None):
        self._file = sys.stderr if path is None else path.open("w", encoding="utf-8")

    def __call__(self, line: str) -> None:
        print(line, file=self._file, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not sys.stderr:
            self._file.close()
