"""The child process of a study, and the pipe to it.

What crosses is pickled: between these two processes, parent and child on one machine, and for nothing else. No wire of
Triptych carries any.

The parent writes first and the child reads first, always, so that two large batches cannot wait for each other. A child
that fails says why before it ends; one that dies is found by the end of the pipe, and so is a parent.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Self

from triptych.runtime.simulation.study_cluster import StudyError

GRACE = 5.0  # seconds that a child has to end by itself


class Batch(NamedTuple):
    """What a process has to say after a window.

    Attributes:
        first: when its next event is, or the first of the messages is due.
        going: whether requests are still to come or to end (of the parent; the child repeats it).
        messages: for parties of the other process (study_codec.py).
        notes: names of requests that ended (of the parent), what the gateway is to hear (of the child).
    """

    first: float
    going: bool
    messages: tuple[Any, ...]
    notes: tuple[Any, ...]


class _Failure(NamedTuple):
    trace: str


class Line:
    """One end of the pipe."""

    def __init__(self, pipe: Connection):
        self._pipe = pipe

    def send(self, what: Any) -> None:
        """Raises OSError if the other process is gone."""
        self._pipe.send_bytes(pickle.dumps(what, pickle.HIGHEST_PROTOCOL))

    def receive(self) -> Any:
        """Waits. Raises EOFError or OSError if the other process is gone."""
        return pickle.loads(self._pipe.recv_bytes())

    def close(self) -> None:
        self._pipe.close()


class Child:
    """Runs `work(line, argument)` in a process of its own, as long as the context lasts."""

    def __init__(self, work: Callable[[Line, Any], None], argument: Any):
        context = multiprocessing.get_context("spawn")  # a fork would take threads' locks along
        mine, theirs = context.Pipe()
        self._line = Line(mine)
        self._process = context.Process(target=_live, args=(theirs, work, argument), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the child: it ends by itself when it finds nobody at the other end."""
        self._line.close()
        self._process.join(GRACE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def send(self, what: Any) -> None:
        """Raises StudyError if the child is gone or has failed."""
        try:
            self._line.send(what)
        except OSError:
            self.receive()  # it may have said why
            raise self._gone() from None

    def receive(self) -> Any:
        """Waits. Raises StudyError if the child is gone or has failed."""
        try:
            what = self._line.receive()
        except (EOFError, OSError):
            raise self._gone() from None
        if isinstance(what, _Failure):
            raise StudyError(f"the process that simulates the other instances failed:\n{what.trace}")
        return what

    def _gone(self) -> StudyError:
        self._process.join(GRACE)
        return StudyError(
            f"the process that simulates the other instances is gone (exit code {self._process.exitcode}; -9 often means that memory ran out)"
        )


def _live(pipe: Connection, work: Callable[[Line, Any], None], argument: Any) -> None:
    """The child. Ctrl-C is the parent's business: its end of the pipe closes then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = Line(pipe)
    try:
        work(line, argument)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # nobody is there any more
    except Exception:  # noqa: BLE001 - whatever it is, the parent raises it
        try:
            line.send(_Failure(traceback.format_exc()))
        except OSError:
            pass
    finally:
        line.close()
