"""How client commands reach a server and how they ask for tokens: the flags that generate, chat, info and bench share."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.wire.tls import Tls, load_tls
from triptych.tools.config import DEFAULT_PORT
from triptych.tools.settings import setting, split_secrets

if TYPE_CHECKING:
    from triptych.runtime.client.requests import Sampling


@dataclass(frozen=True)
class TlsSettings:
    """Certificates of a command that calls a server."""

    tls_ca: str | None = setting(
        None,
        "authorities that the server's certificate must come from, PEM, or the word system (auto: no TLS)",
        group="connection",
    )
    tls_cert: str | None = setting(None, "certificate to show to the server, PEM", group="connection")
    tls_key: str | None = setting(None, "its key, PEM", group="connection")
    tls_server_name: str | None = setting(
        None, "name that the server's certificate carries (auto: the address that is called)", group="connection"
    )

    @property
    def tls(self) -> Tls | None:
        """Read and checked; None: plain text. Raises TlsError."""
        if self.tls_ca is None:
            if self.tls_cert is not None or self.tls_key is not None:
                raise ConfigError("--tls-cert and --tls-key are for TLS, which --tls-ca FILE (or system) asks for")
            return None
        ca = None if self.tls_ca == "system" else Path(self.tls_ca)
        certificate, key = (None if text is None else Path(text) for text in (self.tls_cert, self.tls_key))
        return load_tls(ca, certificate, key, self.tls_server_name)


@dataclass(frozen=True)
class Connection(TlsSettings):
    """Where the server is, the token it wants, and certificates."""

    address: str = setting(
        f"127.0.0.1:{DEFAULT_PORT}", "server to call, host:port", flags=("-a", "--server"), group="connection"
    )
    api_key: str | None = setting(None, "bearer token (better in the environment)", secret=True, group="connection")
    wait: float = setting(0.0, "seconds to wait for the server to be ready", group="connection")

    @property
    def token(self) -> str | None:
        """The first of several."""
        return next(iter(split_secrets(self.api_key)), None)

    def __post_init__(self) -> None:
        host, _, port = self.address.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(f"address is {self.address!r}; expected host:port, such as 127.0.0.1:{DEFAULT_PORT}")
        if not self.wait >= 0:
            raise ConfigError(f"wait is {self.wait}; expected seconds")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Flags for the common sampling fields; what is not given is left to the model's defaults."""
    group = parser.add_argument_group("sampling (unset: the model's defaults)")
    group.add_argument("--max-tokens", type=int, help="most tokens to generate")
    group.add_argument("--temperature", type=float, help="0 takes the most likely token")
    group.add_argument("--top-p", type=float)
    group.add_argument("--top-k", type=int)
    group.add_argument("--min-p", type=float)
    group.add_argument("--presence-penalty", type=float)
    group.add_argument("--frequency-penalty", type=float)
    group.add_argument("--repetition-penalty", type=float)
    group.add_argument("--seed", type=int, help="the same seed gives the same tokens")
    group.add_argument(
        "--stop", action="append", metavar="TEXT", help="end before this text; may be given several times"
    )


def sampling_of(args: argparse.Namespace) -> Sampling:
    """The sampling keywords of `Client.generate` from parsed flags."""
    return {
        "max_tokens": args.max_tokens,
        "temperature": args.temperature,
        "top_p": args.top_p,
        "top_k": args.top_k,
        "min_p": args.min_p,
        "presence_penalty": args.presence_penalty,
        "frequency_penalty": args.frequency_penalty,
        "repetition_penalty": args.repetition_penalty,
        "seed": args.seed,
        "stop": args.stop,
    }
