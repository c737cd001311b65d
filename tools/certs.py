"""`triptych certs DIR`: certificates to try TLS with: an authority, a server's and a client's certificate, in DIR.

The server's certificate is for every process of a deployment (each is a server and a client of others), the client's for applications. The
authority's key is forgotten, so nothing else can ever be signed by it: for a deployment that must grow, use a real authority.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from triptych.runtime.core.errors import ConfigError

LOCAL = ("localhost", "127.0.0.1", "::1")
DEFAULT_DAYS = 30
FILES = ("ca.pem", "server.pem", "server-key.pem", "client.pem", "client-key.pem")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="where to write " + ", ".join(FILES))
    parser.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME",
        help=f"host name or address of a machine, beside {', '.join(LOCAL)}; may be given several times",
    )
    parser.add_argument(
        "--days", type=int, default=DEFAULT_DAYS, help=f"how long they are valid (default {DEFAULT_DAYS})"
    )


def run(args: argparse.Namespace) -> int:
    folder = Path(args.folder).expanduser()
    write_certificates(folder, hosts=args.host, days=args.days)
    print(f"wrote {', '.join(FILES)} to {folder}, valid for {args.days} days")
    return 0


def write_certificates(folder: Path, hosts: Sequence[str] = (), days: int = DEFAULT_DAYS) -> None:
    """Write FILES into `folder`, keys readable by the owner only. Raises ConfigError rather than overwrite one."""
    try:
        from triptych.tools.authority import Authority  # late: the package that signs is an extra
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed; pip install 'triptych[tls]'") from error
    if days < 1:
        raise ConfigError(f"--days is {days}; expected at least 1")
    if there := [name for name in FILES if (folder / name).exists()]:
        raise ConfigError(f"{folder} holds {', '.join(there)} already; remove them or name another folder")
    authority = Authority.create(days=days)
    server = authority.issue("triptych server", hosts=(*LOCAL, *hosts), days=days)
    client = authority.issue("triptych client", days=days)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip(FILES, (authority.certificate, *server, *client), strict=True):
        mode = 0o600 if name.endswith("-key.pem") else 0o644
        with open(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
