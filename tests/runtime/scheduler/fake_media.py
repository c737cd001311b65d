"""The media half of a toy instance: what a prompt needs and pulls, and what an encode task waits for. Computes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from triptych.runtime.core.handle import Handle
from triptych.runtime.core.instance import Role
from triptych.runtime.core.request import Request
from triptych.runtime.core.tasks import EncodeDone, EncodeStaged, FeedMedia, MediaWanted, Refused, TaskReport

MOST_PATCHES = 90
"""Items above it are refused for good, though instances declare to take more."""
_PATIENCE = 8  # steps that an encode task waits for pixels


@dataclass
class Needs:
    """The items that a task has not got, and where they can be pulled from."""

    request: Request
    attended: bool = False  # it needs only those
    missing: set[int] = field(default_factory=set)
    feeds: dict[int, tuple[int, ...]] = field(default_factory=dict)  # key -> items

    def want(self, stored: set[str]) -> list[TaskReport]:
        """Right after the task was accepted."""
        media = enumerate(self.request.media)
        self.missing = {i for i, item in media if item.hash not in stored and (item.attended or not self.attended)}
        return self._wanted(self.missing)

    def feed(self, command: FeedMedia) -> None:
        assert set(command.items) <= self.missing, "fed what it has not wanted"
        fed = {item for items in self.feeds.values() for item in items}
        assert fed.isdisjoint(command.items), "fed twice"
        self.feeds[command.source.key] = command.items

    def pull(self, complete: Mapping[int, bool], released: set[int], stored: set[str]) -> list[TaskReport]:
        """Every pull takes a step: it brings its items, waits, or finds that its source is gone, and they are wanted again."""
        lost: list[TaskReport] = []
        for key, items in list(self.feeds.items()):
            if complete.get(key):
                released.add(key)
                self.missing -= set(items)
                stored |= {self.request.media[item].hash for item in items}
                del self.feeds[key]
            elif key not in complete:
                del self.feeds[key]
                lost += self._wanted(set(items))
        return lost

    def lose(self) -> list[TaskReport]:
        """Every pull under way fails."""
        lost = {item for items in self.feeds.values() for item in items}
        self.feeds.clear()
        return self._wanted(lost)

    def _wanted(self, items: set[int]) -> list[TaskReport]:
        return [MediaWanted(self.request.id, tuple(sorted(items)), self.request.attempt)] if items else []


@dataclass
class Encoding:
    """Items being encoded; the pixels of each must come first."""

    request: Request
    items: tuple[int, ...]
    for_decode: bool
    waited: int = 0

    def refusal(self) -> Refused | None:
        if any(self.request.media[item].patches > MOST_PATCHES for item in self.items):
            attempt = self.request.attempt
            return Refused(self.request.id, Role.ENCODE, "never fits", True, attempt, self.for_decode)
        return None

    def staged(self, handle: Handle, here: set[str]) -> EncodeStaged:
        lacking = tuple(item for item in self.items if self.request.media[item].hash not in here)
        return EncodeStaged(self.request.id, handle, lacking, self.request.attempt, self.for_decode)

    def gave_up(self) -> bool:
        """Whether the pixels are late by now."""
        return self.waited > _PATIENCE

    def encode(self, pixels: set[str], stored: set[str]) -> EncodeDone | None:
        """Everything is encoded, if everything is here."""
        hashes = {self.request.media[item].hash for item in self.items}
        if not hashes <= pixels | stored:
            self.waited += 1
            return None
        stored |= hashes
        return EncodeDone(self.request.id, len(hashes), attempt=self.request.attempt, for_decode=self.for_decode)
