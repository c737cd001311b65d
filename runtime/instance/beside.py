"""Which prompts wait beside the queue for embeddings, and which of them to look at again.

A thousand may wait, and every event of an instance may concern one of them: each is found by the request that it belongs to and by the items
that it needs, and only those that something happened to are looked at (`touch`, `touch_request`, `take`). For those that have no room
only two things count: being the oldest when pages become free, and that somebody else got room for what they need.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from triptych.runtime.instance.media import Gathering


def _age(gathering: Gathering) -> tuple[int, int]:
    return gathering.fill.age


class Beside:
    """The gatherings whose sequences wait beside the queue. Iteration is in no order."""

    def __init__(self) -> None:
        self._all: dict[int, Gathering] = {}
        self._of_request: dict[str, dict[int, Gathering]] = {}
        self._of_item: dict[str, dict[int, Gathering]] = {}
        self._touched: dict[int, Gathering] = {}
        self._roomless: list[Gathering] = []  # by age

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Gathering]:
        return iter(self._all.values())

    def of_request(self, request: str) -> list[Gathering]:
        return list(self._of_request.get(request, {}).values())

    @property
    def first_roomless(self) -> Gathering | None:
        """The oldest that holds nothing yet."""
        return self._roomless[0] if self._roomless else None

    @property
    def touched(self) -> list[Gathering]:
        """Those to be looked at, oldest first."""
        return sorted(self._touched.values(), key=_age)

    def add(self, gathering: Gathering) -> None:
        """It goes beside the queue, holding nothing."""
        number = gathering.fill.sequence.number
        self._all[number] = self._touched[number] = gathering
        self._of_request.setdefault(gathering.fill.task.request.id, {})[number] = gathering
        for name in gathering.sizes:
            self._of_item.setdefault(name, {})[number] = gathering
        insort(self._roomless, gathering, key=_age)

    def remove(self, gathering: Gathering) -> None:
        """It waits no more; its `sizes` are still those with which it came. Others of its request are looked at."""
        number, request = gathering.fill.sequence.number, gathering.fill.task.request.id
        if self._all.pop(number, None) is None:
            return
        self._touched.pop(number, None)
        if not gathering.holds:
            self._forget_roomless(gathering)
        _take_out(self._of_request, request, number)
        for name in gathering.sizes:
            _take_out(self._of_item, name, number)
        self.touch_request(request)

    def got_room(self, gathering: Gathering) -> None:
        """It holds what it needs from now on."""
        self._forget_roomless(gathering)
        gathering.holds = True
        self._touched[gathering.fill.sequence.number] = gathering

    def touch(self, name: str) -> None:
        """Something happened to the item, or to who was to bring it."""
        self._touched.update(self._of_item.get(name, {}))

    def touch_request(self, request: str) -> None:
        """Something happened to a source of the request's embeddings."""
        self._touched.update(self._of_request.get(request, {}))

    def take(self) -> list[Gathering]:
        """`touched`, and they are not any more."""
        touched = self.touched
        self._touched.clear()
        return touched

    def _forget_roomless(self, gathering: Gathering) -> None:
        del self._roomless[bisect_left(self._roomless, _age(gathering), key=_age)]


def _take_out(index: dict[str, dict[int, Gathering]], key: str, number: int) -> None:
    there = index[key]
    del there[number]
    if not there:
        del index[key]
