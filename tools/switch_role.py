"""`triptych switch-role INSTANCE ROLES`: drain an instance and let it go on with other roles, without loading or compiling anything."""

from __future__ import annotations

import argparse

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role
from triptych.tools import control
from triptych.tools.control import ControlConnection
from triptych.tools.settings import add_flags, resolve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("instance", metavar="INSTANCE", help="such as decode-1; `triptych info` lists them")
    parser.add_argument("roles", metavar="ROLES", help="all that it does afterwards: prefill, decode or prefill,decode")
    parser.add_argument("--force", action="store_true", help="even if no other instance is left for what it gives up")
    add_flags(parser, ControlConnection)


def run(args: argparse.Namespace) -> int:
    roles = parse_roles(args.roles)
    seconds = control.switch_role(resolve(ControlConnection, args), args.instance, roles, force=args.force)
    print(f"{args.instance} does {', '.join(sorted(roles))} after {seconds:.2f} s")
    return 0


def parse_roles(text: str) -> frozenset[Role]:
    """Raises ConfigError for a role that there is not."""
    known = {role.value for role in Role}
    names = [part.strip() for part in text.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"no role {', '.join(map(repr, unknown))}; expected {', '.join(sorted(known))}")
    return frozenset(map(Role, names))
