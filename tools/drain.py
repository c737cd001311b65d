"""`triptych drain INSTANCE`: take an instance out of a running cluster; what it has ends there or goes on elsewhere. Returns when it is gone."""

from __future__ import annotations

import argparse

from triptych.tools import control
from triptych.tools.control import ControlConnection
from triptych.tools.settings import add_flags, resolve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("instance", metavar="INSTANCE", help="such as decode-1; `triptych info` lists them")
    parser.add_argument("--force", action="store_true", help="even if no other instance is left for what it does")
    add_flags(parser, ControlConnection)


def run(args: argparse.Namespace) -> int:
    seconds = control.drain(resolve(ControlConnection, args), args.instance, force=args.force)
    print(f"{args.instance} left after {seconds:.2f} s")
    return 0
