"""The child's half of supervision: say when ready, and end when the parent is gone."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Any


def announce_ready(**info: Any) -> None:
    """Print the one line the supervisor waits for; `info` (address, pid, instances) is what `Supervisor.wait_ready` returns."""
    sys.stdout.write(json.dumps({"ready": info}) + "\n")
    sys.stdout.flush()


def end_with_parent() -> None:
    """Send this process SIGTERM when stdin closes, that is when the supervisor has died. Only for processes that a supervisor started."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
