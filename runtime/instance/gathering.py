"""Sequences with media: what they need, whom they ask for it, and when they may be queued.

A prompt of which some item is not covered by the prefix cache, or that attends to some, goes beside the queue (media.Gathering). A decode task
that attends to media gathers them as soon as it is reserved; it has room for them from the start, and its samples go on when its KV is there too
(importing.py). What the store lacks
and nobody is bringing is reported in MediaWanted; feeding.py brings it. What another task brings is waited for, and wanted by
whoever is left if that task ends. `gather` looks, in order of age, at the prompts that something happened to (beside.py); whatever changes
something only says so (`MediaMemory.stirred`, `touch`), and InstanceCore calls it once the event is done.
"""

from __future__ import annotations

from triptych.runtime.core.tasks import MediaWanted
from triptych.runtime.instance.feeding import settle_feeds, use_feeds
from triptych.runtime.instance.lifecycle import Kind
from triptych.runtime.instance.media import Gathering, MediaMemory
from triptych.runtime.instance.messages import InstanceMessage, Report
from triptych.runtime.instance.spans import attended, needed
from triptych.runtime.instance.state import InstanceState
from triptych.runtime.instance.tasks import DecodeTask, Fill, PromptMedia


def begin(state: InstanceState, fill: Fill) -> bool:
    """Put `fill` beside the queue if it needs embeddings that it does not hold; else False, and it may be queued.

    A sample that decodes elsewhere than its prompt was computed has what it attends to, and can get nothing else: it is queued, and admission
    decides.
    """
    media, sequence, task = state.media, fill.sequence, fill.task
    if media is None or not sequence.media:
        return False
    if task.kind is Kind.DECODE:
        media.keep(fill)
        return False
    cached = 0 if fill.score is not None else sequence.cached_prefix(len(sequence.tokens) - 1)
    gathering = _gathering(fill, cached)
    if media.holds(gathering):
        media.keep(fill)
        return False
    media.forget(sequence.number)
    if not gathering.sizes:
        return False
    if task.media is None:
        task.media = PromptMedia()
    media.wait(gathering)
    return True


def attend(state: InstanceState, task: DecodeTask) -> None:
    """The reserved `task` takes room for what it attends to (attending.can_attend) and wants what is not there."""
    media, sequence = state.media, task.sequence
    if media is None or sequence is None or not attended(sequence.media):
        return
    task.media = PromptMedia()
    gathering = _gathering(Fill(task, sequence, task.streams, False), len(task.request.prompt))
    media.wait(gathering)
    media.hold(gathering)


def _gathering(fill: Fill, cached: int) -> Gathering:
    """Of everything that `fill` needs with its first `cached` tokens in the prefix cache."""
    gathering, media = Gathering(fill, {}, {}, {}), fill.sequence.media
    attending = {item.hash for item in attended(media)}
    for item in needed(media, cached):
        gathering.sizes[item.hash] = item.tokens
        if item.hash not in attending:
            gathering.ends[item.hash] = item.end
    for index, item in enumerate(media):
        if item.hash in gathering.sizes:
            gathering.index.setdefault(item.hash, index)
    return gathering


def gather(state: InstanceState) -> list[InstanceMessage]:
    """Give room, start pulls, queue what has everything and ask for what nobody brings: oldest first, whoever something happened to."""
    media = state.media
    assert media is not None
    _give_room(media)
    touched = media.beside.take()
    messages: list[InstanceMessage] = []
    for task in {gathering.fill.task.serial: gathering.fill.task for gathering in touched}.values():
        if media.waits(task):  # it has not ended since
            messages += use_feeds(state, task)
    for gathering in touched:
        if media.gatherings.get(gathering.fill.sequence.number) is not gathering:
            continue
        if gathering.holds and all(map(media.store.is_ready, gathering.sizes)):
            gathering.beside = False
            media.beside.remove(gathering)
            if gathering.fill.task.kind is not Kind.DECODE:
                _queue(state, gathering.fill)
            messages += settle_feeds(state, gathering.fill.task)
        elif gathering.holds or not gathering.asked:
            messages += _ask(media, gathering)
    return messages


def _give_room(media: MediaMemory) -> None:
    """First come, first served; but what needs no new page takes nothing from those before it."""
    while (first := media.beside.first_roomless) is not None and media.store.can_hold(first.sizes):
        media.hold(first)
    looked: set[int] = set()
    while others := [gathering for gathering in media.beside.touched if id(gathering) not in looked]:
        for gathering in others:
            looked.add(id(gathering))
            if not gathering.holds and not media.store.missing(gathering.sizes):
                media.hold(gathering)


def _ask(media: MediaMemory, gathering: Gathering) -> list[InstanceMessage]:
    """Want what is not here and not under way. What a prompt that has no room itself waits for is not under way for one that has."""
    task, store = gathering.fill.task, media.store
    gathering.asked = True
    wanted: list[int] = []
    for name, tokens in gathering.sizes.items():
        here = store.is_ready(name) if gathering.holds else store.resident(name, tokens)
        if here or coming(media, name, gathering.holds):
            continue
        media.wanters[name] = task
        wanted.append(gathering.index[name])
    if not wanted:
        return []
    return [Report(MediaWanted(task.request.id, tuple(sorted(wanted)), task.request.attempt))]


def coming(media: MediaMemory, name: str, held: bool) -> bool:
    """Whether an item that is not here is under way; `held`: for a prompt that has room for it."""
    entry, wanter = media.store.entries.get(name), media.wanters.get(name)
    if entry is not None and entry.pull is not None:
        return True
    if name in media.encoders:
        return True
    return wanter is not None and (not held or any(other.holds for other in media.waiting(wanter, name)))


def _queue(state: InstanceState, fill: Fill) -> None:
    """A prompt joins the queue at its end; what was preempted goes on before everything younger."""
    waiting, number = state.waiting, fill.sequence.number
    again = fill.resumed or fill.task.admitted is not None
    younger = [other for other, its in waiting.items() if its.age > fill.age] if again else []
    waiting[number] = fill
    for other in younger:
        waiting.move_to_end(other)
