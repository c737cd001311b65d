"""The child's half of supervision: say when ready, say what a restart must know, and end when the parent is gone."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
from collections.abc import Iterable
from typing import Any


def announce_ready(**info: Any) -> None:
    """Print the one line the supervisor waits for; `info` (address, pid, instances) is what `Supervisor.wait_ready` returns.

    What a process holds by now, modules and compiled programs, lives as long as it does: it is taken out of garbage collection. Python
    collects in full when what came since may be a quarter of what the last full collection saw, and of half a million objects that are ten
    megabytes. So there is one more collection after the freeze: it sees next to nothing, and that is what later ones are measured against.
    """
    gc.collect()
    gc.freeze()
    gc.collect()
    sys.stdout.write(json.dumps({"ready": info}) + "\n")
    sys.stdout.flush()


def announce_roles(instance: str, roles: Iterable[str]) -> None:
    """Print that `instance` has `roles` from now on, whatever its command line says: a process that follows this one shall have them, too."""
    sys.stdout.write(json.dumps({"roles": {instance: sorted(roles)}}) + "\n")
    sys.stdout.flush()


def end_with_parent() -> None:
    """Send this process SIGTERM when stdin closes, that is when the supervisor has died. Only for processes that a supervisor started."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
