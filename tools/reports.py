"""Files that a command writes when its work is done: whether they can be written is asked before it begins, so that a
wrong path costs no measurement."""

from __future__ import annotations

import os
from pathlib import Path

from triptych.runtime.core.errors import ConfigError

STDOUT = Path("-")  # as commands that print their report instead spell it


def check_outputs(*paths: Path | None) -> None:
    """Raises ConfigError for a path at which no file can be written; None is a report that nobody asked for."""
    for path in paths:
        if path is None or path == STDOUT:
            continue
        if not path.parent.is_dir():
            raise ConfigError(f"there is no folder {path.parent} to write {path.name} to")
        if path.is_dir():
            raise ConfigError(f"{path} is a folder; expected a file to write")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ConfigError(f"{path} cannot be written: permission denied")
