"""Prompts with media: what they need, whom they ask for it, and when they may be queued.

A prompt of which some item is not covered by the prefix cache goes beside the queue (media.Gathering). What the store lacks
and nobody is bringing is reported in MediaWanted; FeedMedia answers where it will be, and a pull brings it as soon as the
prompt holds pages for it. What does not come is wanted again, a few times; what another task brings is waited for, and
wanted by whoever is left if that task ends. `gather` looks at all of that in order of age; whatever changes something
only says so (`MediaMemory.stirred`), and InstanceCore calls it once the event is done.

On an instance that encodes its own media nothing is pulled: the prompt takes over the entries, and the encode task ends.
"""

from __future__ import annotations

from collections.abc import Iterable

from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import Role
from triptych.runtime.core.tasks import FeedMedia, MediaWanted
from triptych.runtime.instance.expiry import release_staged
from triptych.runtime.instance.lifecycle import Kind, Trigger
from triptych.runtime.instance.media import Gathering, MediaMemory
from triptych.runtime.instance.messages import (
    ImportFailed,
    InstanceMessage,
    MediaImported,
    Report,
    StagedReleased,
    StartPull,
)
from triptych.runtime.instance.plan import Pool
from triptych.runtime.instance.state import InstanceState, end_task
from triptych.runtime.instance.tasks import Feed, Fill, PromptMedia, Task

MAX_TRIES = 3
"""Times that one item may fail to come before its prompt's task ends: more would hide that something is broken."""


def begin(state: InstanceState, fill: Fill) -> bool:
    """Put `fill` beside the queue if it needs embeddings that the prefix cache makes no needless; else False, and it may be queued.

    A sample that decodes elsewhere than its prompt was computed cannot get any: it is queued, and admission decides.
    """
    media, sequence, task = state.media, fill.sequence, fill.task
    if media is None or not sequence.media or task.kind is Kind.DECODE:
        return False
    cached = 0 if fill.score is not None else sequence.cached_prefix(len(sequence.tokens) - 1)
    gathering = Gathering(fill, {}, {}, {})
    for index, item in enumerate(sequence.media):
        if item.end > cached:
            gathering.sizes[item.hash] = item.tokens
            gathering.index.setdefault(item.hash, index)
            gathering.ends[item.hash] = item.end
    if not gathering.sizes:
        return False
    if task.media is None:
        task.media = PromptMedia()
    media.forget(sequence.number)
    media.gatherings[sequence.number] = gathering
    media.stirred = True
    return True


def feed_media(state: InstanceState, command: FeedMedia) -> list[InstanceMessage]:
    """Note where embeddings will be. Without a prompt that waits for any (it ended, or all came otherwise) the source is not
    used: its lease or the scheduler ends it."""
    task = _prompt_task(state, command.request, command.attempt)
    media = state.media
    if task is None or media is None:
        state.stale += 1
        return []
    key, local = command.source.key, command.source.owner == state.ref
    known = len(task.request.media)
    if task.media is None or key in task.media.feeds or not all(index < known for index in command.items):
        return []
    task.media.feeds[key] = Feed(task, command.source, command.items, local)
    media.stirred = True
    return [] if _waits(media, task) else _settle_feeds(state, task)


def media_imported(state: InstanceState, event: MediaImported) -> list[InstanceMessage]:
    """A pull has brought what it was to bring."""
    found = _pulled(state, event.request, event.key, event.attempt)
    if found is None:
        return []
    media, _, feed = found
    for name in feed.fills:
        entry = media.store.entries[name]
        media.store.keep(entry)
        media.arrived(entry)
        media.counts.pulled += 1
    media.end_pull(feed)
    return []


def media_import_failed(state: InstanceState, event: ImportFailed) -> list[InstanceMessage]:
    """A pull ended without its data: what it was to bring is wanted again."""
    found = _pulled(state, event.request, event.key, event.attempt)
    if found is None:
        return []
    media, task, feed = found
    missed = feed.fills
    media.end_pull(feed)
    return _missed(state, task, missed, event.reason)


def gather(state: InstanceState) -> list[InstanceMessage]:
    """Give room, start pulls, queue what has everything and ask for what nobody brings: all prompts beside the queue, oldest first."""
    media = state.media
    assert media is not None
    _give_room(media)
    messages: list[InstanceMessage] = []
    for task in {gathering.fill.task.serial: gathering.fill.task for gathering in media.beside()}.values():
        messages += _use_feeds(state, task)
    for gathering in media.beside():
        if gathering.holds and all(map(media.store.is_ready, gathering.sizes)):
            gathering.beside = False
            _queue(state, gathering.fill)
            messages += _settle_feeds(state, gathering.fill.task)
        elif gathering.holds or not gathering.asked:
            messages += _ask(media, gathering)
    return messages


def _give_room(media: MediaMemory) -> None:
    """First come, first served; but what needs no new page takes nothing from those before it."""
    full = False
    for gathering in media.beside():
        if gathering.holds or (full and media.store.missing(gathering.sizes)):
            continue
        if media.store.can_hold(gathering.sizes):
            media.counts.found += sum(media.store.resident(*size) for size in gathering.sizes.items())
            media.store.hold(gathering, gathering.sizes)
            gathering.holds = True
        else:
            full = True


def _ask(media: MediaMemory, gathering: Gathering) -> list[InstanceMessage]:
    """Want what is not here and not under way. What a prompt that has no room itself waits for is not under way for one that has."""
    task, store = gathering.fill.task, media.store
    gathering.asked = True
    wanted: list[int] = []
    for name, tokens in gathering.sizes.items():
        here = store.is_ready(name) if gathering.holds else store.resident(name, tokens)
        if here or _coming(media, name, gathering.holds):
            continue
        media.wanters[name] = task
        wanted.append(gathering.index[name])
    if not wanted:
        return []
    return [Report(MediaWanted(task.request.id, tuple(sorted(wanted)), task.request.attempt))]


def _coming(media: MediaMemory, name: str, held: bool) -> bool:
    entry, wanter = media.store.entries.get(name), media.wanters.get(name)
    if entry is not None and entry.pull is not None:
        return True
    if any(name in task.sizes for task in media.encoding.values()):
        return True
    return wanter is not None and (not held or any(other.holds for other in _waiting(media, wanter, name)))


def _use_feeds(state: InstanceState, task: Task) -> list[InstanceMessage]:
    assert task.media is not None
    messages: list[InstanceMessage] = []
    for key, feed in list(task.media.feeds.items()):
        if key not in task.media.feeds:
            break  # the task has ended
        if feed.local:
            messages += _take_over(state, task, key, feed)
        elif feed.pages is None:
            messages += _start_pull(state, task, key, feed)
    return messages


def _take_over(state: InstanceState, task: Task, key: int, feed: Feed) -> list[InstanceMessage]:
    """Embeddings that are encoded here: once the prompt holds what it needs of them the encode task is done with."""
    media = state.media
    assert media is not None and task.media is not None
    sizes = _sizes(task, feed)
    if key not in state.staged:
        del task.media.feeds[key]
        gone = [name for name, tokens in sizes.items() if not media.store.resident(name, tokens)]
        for name in sizes:
            if media.wanters.get(name) is task:
                del media.wanters[name]
        return _missed(state, task, gone, "the encode task ended without them")
    if any(
        not gathering.holds or not media.store.is_ready(name)
        for name in sizes
        for gathering in _waiting(media, task, name)
    ):
        return []
    del task.media.feeds[key]
    return release_staged(state, StagedReleased(key))


def _start_pull(state: InstanceState, task: Task, key: int, feed: Feed) -> list[InstanceMessage]:
    """Pull, once the prompt has room. Staged items that came otherwise go to spare pages; without room for those the rest is
    wanted from elsewhere."""
    media = state.media
    assert media is not None and task.media is not None
    store, sizes, prompt = media.store, _sizes(task, feed), task.request.media
    waiting = [gathering for name in sizes for gathering in _waiting(media, task, name)]
    if not all(gathering.holds for gathering in waiting):
        return []
    lacking = {name for name in sizes if not store.is_ready(name) and _waiting(media, task, name)}
    if not lacking:
        del task.media.feeds[key]
        return []
    fills = [
        name
        for name in sizes
        if name in lacking and store.entries[name].pull is None and not media.encodable(name)
    ]
    if not fills:
        return []  # others are bringing all of it: this is for the case that they fail
    staged = [prompt[index] for index in feed.items]
    needed = sum(store.pages_for(sizes[name]) for name in fills)
    spare = sum(store.pages_for(item.tokens) for item in staged) - needed
    if spare > store.pool.available:
        del task.media.feeds[key]
        return _missed(state, task, fills, "no room for the other items of the staging")
    feed.spare = tuple(store.pool.allocate(spare))
    feed.fills = tuple(fills)
    left, pages = list(feed.spare), []
    for item in staged:
        if item.hash in fills:
            fills.remove(item.hash)
            entry = store.entries[item.hash]
            entry.pull = key
            entry.holders.add(feed)
            pages += entry.pages
        else:
            count = store.pages_for(item.tokens)
            pages += left[:count]
            del left[:count]
    feed.pages = tuple(pages)
    pull = StartPull(
        request=task.request.id,
        attempt=task.request.attempt,
        source_key=key,
        source_address=feed.source.address,
        source_instance=feed.source.owner.id,
        source_epoch=feed.source.owner.epoch,
        source_digest=feed.source.digest,
        prompt_tokens=len(pages) * store.page_size,
        first_page=0,
        pages=feed.pages,
        deadline=task.request.deadline,
        pool=Pool.MEDIA,
    )
    return [pull]


def _settle_feeds(state: InstanceState, task: Task) -> list[InstanceMessage]:
    """The task waits for nothing more: what it was told of and has not used goes, encode tasks here end."""
    media = state.media
    assert media is not None and task.media is not None
    if _waits(media, task):
        return []
    messages: list[InstanceMessage] = []
    for key, feed in list(task.media.feeds.items()):
        if feed.pages is None:
            del task.media.feeds[key]
            if feed.local:
                messages += release_staged(state, StagedReleased(key))
    return messages


def _missed(state: InstanceState, task: Task, names: Iterable[str], reason: str) -> list[InstanceMessage]:
    """`names` did not come, for `reason`: they are wanted again, unless that happened too often."""
    media = state.media
    assert media is not None and task.media is not None
    media.stirred = True
    tries = task.media.tries
    for name in names:
        tries[name] = tries.get(name, 0) + 1
        if media.wanters.get(name) is task:
            del media.wanters[name]
    for index, item in enumerate(task.request.media):
        if tries.get(item.hash, 0) >= MAX_TRIES:
            why = (
                f"the embeddings of media item {index} did not come in {MAX_TRIES} tries; the last one failed: {reason}"
            )
            return end_task(state, task, Trigger.FAILED, Status.UNAVAILABLE, why)
    return []


def _queue(state: InstanceState, fill: Fill) -> None:
    """A prompt joins the queue at its end; what was preempted goes on before everything younger."""
    waiting, number = state.waiting, fill.sequence.number
    again = fill.resumed or fill.task.admitted is not None
    younger = [other for other, its in waiting.items() if its.age > fill.age] if again else []
    waiting[number] = fill
    for other in younger:
        waiting.move_to_end(other)


def _prompt_task(state: InstanceState, request: str, attempt: int) -> Task | None:
    """The task of this attempt that computes the prompt here."""
    for role in (Role.PREFILL, Role.DECODE):
        task = state.tasks.get((request, role))
        if task is not None and task.kind is not Kind.DECODE and task.request.attempt == attempt:
            return task
    return None


def _pulled(state: InstanceState, request: str, key: int, attempt: int) -> tuple[MediaMemory, Task, Feed] | None:
    """The feed whose pull has ended; it is the task's no more. None if the pull was cancelled before."""
    task, media = _prompt_task(state, request, attempt), state.media
    if task is not None and task.media is not None and media is not None:
        feed = task.media.feeds.get(key)
        if feed is not None and feed.pages is not None:
            del task.media.feeds[key]
            return media, task, feed
    state.stale += 1
    return None


def _waits(media: MediaMemory, task: Task) -> bool:
    return any(gathering.beside and gathering.fill.task is task for gathering in media.gatherings.values())


def _waiting(media: MediaMemory, task: Task, name: str) -> list[Gathering]:
    """The sequences of `task` that wait beside the queue and need `name`."""
    return [
        gathering
        for gathering in media.gatherings.values()
        if gathering.beside and gathering.fill.task is task and name in gathering.sizes
    ]


def _sizes(task: Task, feed: Feed) -> dict[str, int]:
    """Embeddings of the items that `feed` has, by hash, in their order."""
    items = (task.request.media[index] for index in feed.items)
    return {item.hash: item.tokens for item in items}
