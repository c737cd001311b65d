"""Who holds what, for leak tests: a frozen snapshot, and the assertion that nothing is owned twice or by nobody.
O(pages); not for the hot path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from triptych.runtime.instance.gathering import coming
from triptych.runtime.instance.lifecycle import Kind, State
from triptych.runtime.instance.media import MediaMemory
from triptych.runtime.instance.sequence import Sequence
from triptych.runtime.instance.spans import attended
from triptych.runtime.instance.state import InstanceState
from triptych.runtime.instance.tasks import EncodeTask, Task, TaskKey


@dataclass(frozen=True)
class Resources:
    """Everything that can leak. Pages are distinct; a shared one counts for the first of sequence, staged, reserved.

    `cached_pages` are held by nobody: they are free for the taking. Of the media pool (`media_…`) alike; `pixels` are the items
    that the shell keeps for us, `gatherings` the sequences that need embeddings.
    """

    free_pages: int
    cached_pages: int
    sequence_pages: int
    staged_pages: int
    reserved_pages: int
    free_slots: int
    staged_keys: tuple[int, ...]
    tasks: tuple[TaskKey, ...]
    waiting: int
    running: int
    in_flight: int
    free_media_pages: int = 0
    cached_media_pages: int = 0
    held_media_pages: int = 0
    gatherings: int = 0
    pixels: int = 0

    @property
    def idle(self) -> bool:
        """Whether no page, slot, key, task or pixels are held."""
        held = self.sequence_pages + self.staged_pages + self.reserved_pages + len(self.staged_keys) + len(self.tasks)
        media = self.held_media_pages + self.gatherings + self.pixels
        return held + media + self.waiting + self.running == 0


_RESERVED = (State.RESERVED, State.IMPORTING)


def resources(state: InstanceState) -> Resources:
    """A snapshot."""
    kinds: dict[str, set[int]] = {"sequence": set(), "staged": set(), "reserved": set()}
    for task in state.tasks.values():
        kind = "staged" if task.state is State.STAGED else "reserved" if task.state in _RESERVED else "sequence"
        for sequence in _sequences(task):
            kinds[kind].update(sequence.held())
    staged = kinds["staged"] - kinds["sequence"]
    pool, media = state.memory.pool, state.media
    embeddings = None if media is None else media.store.pool
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
        free_media_pages=0 if embeddings is None else embeddings.free,
        cached_media_pages=0 if embeddings is None else embeddings.cached,
        held_media_pages=0 if media is None else media.store.usable_pages - media.store.pool.available,
        gatherings=0 if media is None else len(media.gatherings),
        pixels=0 if media is None else len(media.shelf),
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
    guessed = {each.stream for step in state.in_flight for each in step.guessed}
    for stream in state.running:
        known = stream.sequence is not None and stream.sequence.scheduled <= len(stream.sequence.tokens) + 1
        _expect(known or stream in guessed, "tokens of a wrong guess are still thought computed")
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
    if state.media is not None:
        _audit_media(state, state.media)


def _audit_media(state: InstanceState, media: MediaMemory) -> None:
    """Entries have exactly the holders, and pages the owners, that tasks and gatherings say."""
    holders: dict[str, set[object]] = {}
    spare: list[int] = []
    tasks = list(state.tasks.values())
    for number, gathering in media.gatherings.items():
        fill = gathering.fill
        _expect(
            fill.sequence.number == number and fill.task is state.tasks.get(fill.task.key), "a gathering of no task"
        )
        _expect(fill.sequence in _sequences(fill.task), "a gathering of a sequence that nobody has")
        queued = number in state.waiting or number in state.filling
        _expect(not (queued and gathering.beside), "a gathering is beside the queue and in it")
        if gathering.ends or fill.task.kind is Kind.PREFILL:
            _expect(
                queued != gathering.beside,
                "what takes places is held for a prompt that is neither waiting nor computed",
            )
        _expect(gathering.beside or gathering.holds, "a prompt was queued without its embeddings")
        _expect(
            bool(gathering.sizes) and gathering.sizes.keys() == gathering.index.keys() >= gathering.ends.keys(), "sizes"
        )
        attending = {item.hash for item in attended(fill.sequence.media)}
        _expect(gathering.sizes.keys() - gathering.ends.keys() == attending, "what is attended to is not held")
        _expect(len(gathering.attended) == (len(attended(fill.sequence.media)) if gathering.holds else 0), "attended")
        for name in gathering.sizes if gathering.holds else ():
            holders.setdefault(name, set()).add(gathering)
    for task in tasks:
        if isinstance(task, EncodeTask):
            for name in task.held:
                holders.setdefault(name, set()).add(task)
            _expect((task.serial in media.encoding) == (task.state is not State.STAGED), "an encode task is not tended")
            _expect(
                task.state is State.WAITING or task.held.keys() == task.sizes.keys(), "an encode task lacks entries"
            )
            _expect((task.pixels_by is None) == (not task.lacking), "nobody knows whether pixels are lacking")
            here = media.shelf.keys() | {name for name in task.sizes if media.store.is_ready(name)}
            _expect(not task.lacking.keys() & here, "pixels are thought lacking that are here")
            _expect(task.state is State.STAGED or task.sizes.keys() <= here | task.lacking.keys(), "pixels are lost")
        for key, feed in task.media.feeds.items() if task.media is not None else ():
            spare += feed.spare
            for name in feed.fills:
                holders.setdefault(name, set()).add(feed)
                _expect(media.store.entries[name].pull == key, "an entry is filled by another pull")
    _expect(all(task is state.by_serial.get(serial) for serial, task in media.encoding.items()), "encoding for no task")
    by_item = {(name, serial) for serial, task in media.encoding.items() for name in task.sizes}
    _expect(
        by_item == {(name, serial) for name in media.encoders for serial in media.encoders[name]}, "who encodes what"
    )
    _expect(all(task in tasks for task in media.wanters.values()), "an item is wanted for a task that has ended")
    for task in tasks:
        if attended(task.request.media) and task.kind in (Kind.DECODE, Kind.LOCAL):
            for sequence in _sequences(task):
                gathering = media.gatherings.get(sequence.number)
                _expect(gathering is not None, "a sequence does not hold what it attends to")
    for task in media.imported:
        _expect(task in tasks and media.waits(task), "KV waits for media that nobody waits for")
    _expect(all(entry.holders == holders.get(name) for name, entry in media.store.entries.items()), "holders differ")
    _expect(holders.keys() == media.store.entries.keys(), "an item is held that has no entry")
    for entry in media.store.entries.values():
        _expect(entry.ready or not entry.kept, "embeddings are kept that are not there")
        _expect(entry.pull is None or not entry.ready, "an item is pulled that is there")
    pages = Counter(page for entry in media.store.entries.values() for page in entry.pages)
    pages.update(spare)
    media.store.pool.audit(dict(pages))
    _audit_beside(media)
    planned = Counter(entry.hash for step in state.in_flight for entry in step.encodes)
    _expect(planned == media.in_plans, "encodes in flight are miscounted")


def _audit_beside(media: MediaMemory) -> None:
    """Nobody beside the queue was overlooked: looking at all of them would change nothing."""
    waiting = {gathering for gathering in media.gatherings.values() if gathering.beside}
    _expect(set(media.beside) == waiting, "who waits beside the queue is miscounted")
    if media.stirred:
        return  # they are looked at next
    _expect(not media.beside.touched, "somebody is to be looked at, and nobody says so")
    roomless = sorted((each for each in waiting if not each.holds), key=lambda each: each.fill.age)
    _expect(media.beside.first_roomless is (roomless[0] if roomless else None), "who is next to get room is not known")
    for place, gathering in enumerate(roomless):
        room = media.store.can_hold(gathering.sizes) if not place else not media.store.missing(gathering.sizes)
        _expect(gathering.asked and not room, "a prompt waits though there is room for it")
    for gathering in waiting - set(roomless):
        lacking = [name for name in gathering.sizes if not media.store.is_ready(name)]
        _expect(bool(lacking), "a prompt waits though it has everything")
        _expect(all(coming(media, name, True) for name in lacking), "nobody brings what a prompt waits for")


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
    gathering = state.media.gatherings.get(sequence.number) if state.media is not None else None
    beside = gathering is not None and gathering.beside
    return running + beside + (sequence.number in state.waiting) + (sequence.number in state.filling)


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)
