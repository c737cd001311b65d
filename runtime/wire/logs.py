"""Log lines for people or for machines, with the id of the request that they are about.

The id is a context variable: whoever takes a request in sets it, and every line that is logged on its behalf, in whatever module, carries it.
"""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

FORMATS = ("text", "json")

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the request that the current task works for; empty: none."""


class TextFormatter(logging.Formatter):
    """LEVEL logger: message [request id]."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = super().formatMessage(record)
        id = request_id.get()
        return f"{text} [{id}]" if id else text


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, and where they are known request_id, process and exception."""

    def __init__(self, process: str = ""):
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if self._process:
            entry["process"] = self._process
        if id := request_id.get():
            entry["request_id"] = id
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def configure(level: str, format: str = "text", *, process: str = "", stream: TextIO | None = None) -> None:
    """Log to `stream` (default: stderr) in one of FORMATS. `process`: its name in JSON lines.

    `level` (debug, info, warning, error) is that of our own lines. Others' begin at info: what gRPC and JAX debug is their authors' business.
    """
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter(process) if format == "json" else TextFormatter())
    logging.basicConfig(
        level=max(logging.getLevelNamesMapping()[level.upper()], logging.INFO), handlers=[handler], force=True
    )
    logging.getLogger("triptych").setLevel(level.upper())
