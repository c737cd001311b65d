"""Messages between the parties of a study: the control plane is party 0, instances are 1, 2, ….

Every message takes a delay, the same for its kind, and nothing is lost. Parties in this process get it from the event
loop; what is for others waits in `outbox` until study_split.py exchanges the batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from triptych.runtime.simulation.events import Action, EventLoop

CONTROL = 0

Sent = tuple[float, int, int, Any]
"""(when it is due, its place among the messages of that time, the target's number, the message)"""
Hear = Callable[[str, str, float], None]
"""(request, what, value): what the gateway learns of a request from the instances: when its "first" and "last" token came
there, tokens "cached", when its prompt began to wait for embeddings ("wanted"), when those were "encoded" and "gathered"."""


class Post:
    """The parties of one process."""

    def __init__(self, loop: EventLoop, parties: int, encode: Callable[[Sent], Any] = lambda sent: sent):
        """`encode`: what to write down of messages that leave the process, at once: what they speak of may be gone soon."""
        self._loop, self._encode = loop, encode
        self._doors: list[Action | None] = [None] * parties
        self.outbox: list[Any] = []

    def attach(self, party: int, door: Action) -> None:
        """Messages to `party` are for `door`."""
        self._doors[party] = door

    def send(self, sender: int, target: int, when: float, message: Any) -> None:
        """Let `target` have `message` at `when`."""
        door, key = self._doors[target], self._loop.key(sender)
        if door is None:
            self.outbox.append(self._encode((when, key, target, message)))
        else:
            self._loop.deliver(when, key, door, message)

    def receive(self, sent: Sent) -> None:
        """A message from another process."""
        when, key, target, message = sent
        door = self._doors[target]
        assert door is not None, f"party {target} is elsewhere"
        self._loop.deliver(when, key, door, message)
