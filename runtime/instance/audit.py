"""Who holds what, for leak tests: a frozen snapshot, and the assertion that nothing is owned twice or by nobody.
O(pages); not for the hot path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from triptych.runtime.core.instance import Role
from triptych.runtime.instance.lifecycle import State
from triptych.runtime.instance.sequence import Sequence
from triptych.runtime.instance.state import InstanceState
from triptych.runtime.instance.tasks import Task


@dataclass(frozen=True)
class Resources:
    """Everything that can leak. Pages are distinct; a shared one counts for the first of sequence, staged, reserved.

    `cached_pages` are held by nobody: they are free for the taking.
    """

    free_pages: int
    cached_pages: int
    sequence_pages: int
    staged_pages: int
    reserved_pages: int
    free_slots: int
    staged_keys: tuple[int, ...]
    tasks: tuple[tuple[str, Role], ...]
    waiting: int
    running: int
    in_flight: int

    @property
    def idle(self) -> bool:
        """Whether no page, slot, key or task is held."""
        held = self.sequence_pages + self.staged_pages + self.reserved_pages + len(self.staged_keys) + len(self.tasks)
        return held + self.waiting + self.running == 0


_RESERVED = (State.RESERVED, State.IMPORTING)


def resources(state: InstanceState) -> Resources:
    """A snapshot."""
    kinds: dict[str, set[int]] = {"sequence": set(), "staged": set(), "reserved": set()}
    for task in state.tasks.values():
        kind = "staged" if task.state is State.STAGED else "reserved" if task.state in _RESERVED else "sequence"
        for sequence in _sequences(task):
            kinds[kind].update(sequence.held())
    staged = kinds["staged"] - kinds["sequence"]
    pool = state.memory.pool
    return Resources(
        free_pages=pool.free,
        cached_pages=pool.cached,
        sequence_pages=len(kinds["sequence"]),
        staged_pages=len(staged),
        reserved_pages=len(kinds["reserved"] - kinds["sequence"] - staged),
        free_slots=state.slots.free,
        staged_keys=tuple(state.staged),
        tasks=tuple(state.tasks),
        waiting=len(state.waiting),
        running=len(state.running) + len(state.filling),
        in_flight=len(state.in_flight),
    )


def audit(state: InstanceState) -> None:
    """Raises AssertionError unless every page, slot, queue entry and key has exactly the owner that the tasks say."""
    tasks = list(state.tasks.values())
    expected = Counter(page for task in tasks for sequence in _sequences(task) for page in sequence.held())
    state.memory.pool.audit(dict(expected))
    state.slots.audit([stream.slot for task in tasks for stream in task.streams if stream.slot is not None])

    numbers = [sequence.number for task in tasks for sequence in _sequences(task)]
    _expect(len(numbers) == len(set(numbers)), "a sequence has two owners")
    _expect(not state.waiting.keys() & state.filling.keys(), "a sequence waits and computes at once")
    for number, fill in [*state.waiting.items(), *state.filling.items()]:
        _expect(
            fill.sequence.number == number and fill.task is state.tasks.get(fill.task.key),
            "a queue holds a fill of no task",
        )
    for fill in state.waiting.values():
        _expect(not fill.sequence.held(), "a waiting sequence holds pages")
        _expect(all(stream.slot is None for stream in fill.streams), "a waiting sample holds a slot")
    for stream in state.running:
        _expect(stream.slot is not None and stream.sequence is not None, "a running sample lacks a slot or sequence")
        _expect(
            stream.task is state.tasks.get(stream.task.key) and stream in stream.task.streams,
            "a sample of no task runs",
        )
    orders = [stream.order for stream in state.running]
    _expect(orders == sorted(set(orders)), "running samples are not in order of age")

    for task in tasks:
        _expect(state.by_serial.get(task.serial) is task, "a task is not known by its serial")
        for stream in task.streams:
            _expect(_places(state, task, stream.sequence) <= 1, "a sample is in two places")
            if task.state is State.DECODING and stream.finish is None:
                _expect(_places(state, task, stream.sequence) == 1, "a live sample is nowhere")
    _expect(len(state.by_serial) == len(tasks), "a serial outlives its task")
    staged = {key: task.staging_key for key, task in state.staged.items()}
    _expect(all(key == mine for key, mine in staged.items()), "a staging key names another task")
    _expect(all(task is state.tasks.get(task.key) for task in state.staged.values()), "a staging key outlives its task")


def _sequences(task: Task) -> Iterator[Sequence]:
    if task.sequence is not None:
        yield task.sequence
    for stream in task.streams:
        if stream.sequence is not None:
            yield stream.sequence


def _places(state: InstanceState, task: Task, sequence: Sequence | None) -> int:
    if sequence is None:
        return 0
    running = sum(stream.sequence is sequence for stream in state.running)
    return running + (sequence.number in state.waiting) + (sequence.number in state.filling)


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)
