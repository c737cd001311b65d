"""`triptych version`: what a bug report needs. Reads package metadata only, so it is quick and imports no jax."""

from __future__ import annotations

import argparse
import platform
from importlib import metadata

from triptych import __version__

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "numpy",
    "grpcio",
    "protobuf",
    "tokenizers",
    "orbax-checkpoint",
    "safetensors",
    "gguf",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser  # no options


def run(args: argparse.Namespace) -> int:
    print(f"triptych {__version__}")
    print(f"  python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in PACKAGES:
        print(f"  {name} {installed(name) or 'not installed'}")
    return 0


def installed(name: str) -> str | None:
    """Version of an installed distribution, else None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
