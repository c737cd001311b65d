"""Where the embeddings come from that a task needs: FeedMedia, pulls, and what is done when they fail.

The task is one whose prompt is computed here, or a decode task that attends to media: what is said of prompts holds of both. A feed is used as
soon as the prompt holds pages for what it still lacks. Staged on another instance, it is pulled whole, straight
into the store; encoded on this one, nothing is pulled: the prompt takes over the entries, and the encode task ends. What does
not come is wanted again (gathering.py), a few times.
"""

from __future__ import annotations

from collections.abc import Iterable

from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import Role
from triptych.runtime.core.tasks import FeedMedia
from triptych.runtime.instance.expiry import release_staged
from triptych.runtime.instance.lifecycle import Kind, Trigger
from triptych.runtime.instance.media import MediaMemory
from triptych.runtime.instance.messages import ImportFailed, InstanceMessage, MediaImported, StagedReleased, StartPull
from triptych.runtime.instance.plan import Pool
from triptych.runtime.instance.state import InstanceState, end_task
from triptych.runtime.instance.tasks import Feed, Task

MAX_TRIES = 3
"""Times that one item may fail to come before its prompt's task ends: more would hide that something is broken."""


def feed_media(state: InstanceState, command: FeedMedia) -> list[InstanceMessage]:
    """Note where embeddings will be. Without a prompt that waits for any (it ended, or all came otherwise) the source is not
    used: its lease or the scheduler ends it."""
    task = _needing(state, command.request, command.attempt)
    media = state.media
    if task is None or media is None:
        state.stale += 1
        return []
    key, local = command.source.key, command.source.owner == state.ref
    known = len(task.request.media)
    if task.media is None or key in task.media.feeds or not all(index < known for index in command.items):
        return []
    task.media.feeds[key] = Feed(task, command.source, command.items, local)
    media.beside.touch_request(task.request.id)
    media.stirred = True
    return [] if media.waits(task) else settle_feeds(state, task)


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
    feed.task.embedding_bytes += event.times.bytes_moved
    feed.task.embedding_seconds += event.times.transfer
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


def use_feeds(state: InstanceState, task: Task) -> list[InstanceMessage]:
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


def settle_feeds(state: InstanceState, task: Task) -> list[InstanceMessage]:
    """The task waits for nothing more: what it was told of and has not used goes, encode tasks here end."""
    media = state.media
    assert media is not None and task.media is not None
    if media.waits(task):
        return []
    messages: list[InstanceMessage] = []
    for key, feed in list(task.media.feeds.items()):
        if feed.pages is None:
            del task.media.feeds[key]
            if feed.local:
                messages += release_staged(state, StagedReleased(key))
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
        for gathering in media.waiting(task, name)
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
    waiting = [gathering for name in sizes for gathering in media.waiting(task, name)]
    if not all(gathering.holds for gathering in waiting):
        return []
    lacking = {name for name in sizes if not store.is_ready(name) and media.waiting(task, name)}
    if not lacking:
        del task.media.feeds[key]
        return []
    fills = [
        name for name in sizes if name in lacking and store.entries[name].pull is None and not media.encodable(name)
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


def _missed(state: InstanceState, task: Task, names: Iterable[str], reason: str) -> list[InstanceMessage]:
    """`names` did not come, for `reason`: they are wanted again, unless that happened too often."""
    media = state.media
    assert media is not None and task.media is not None
    media.stirred = True
    media.beside.touch_request(task.request.id)
    tries = task.media.tries
    for name in names:
        media.touch(name)
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


def _needing(state: InstanceState, request: str, attempt: int) -> Task | None:
    """The task of this attempt that may need embeddings here: the one that computes the prompt, or a decode task that attends to some."""
    for role in (Role.PREFILL, Role.DECODE):
        task = state.tasks.get((request, role))
        if task is not None and task.request.attempt == attempt and (task.kind is not Kind.DECODE or task.media):
            return task
    return None


def _pulled(state: InstanceState, request: str, key: int, attempt: int) -> tuple[MediaMemory, Task, Feed] | None:
    """The feed whose pull has ended; it is the task's no more. None if the pull was cancelled before."""
    task, media = _needing(state, request, attempt), state.media
    if task is not None and task.media is not None and media is not None:
        feed = task.media.feeds.get(key)
        if feed is not None and feed.pages is not None:
            del task.media.feeds[key]
            return media, task, feed
    state.stale += 1
    return None


def _sizes(task: Task, feed: Feed) -> dict[str, int]:
    """Embeddings of the items that `feed` has, by hash, in their order."""
    items = (task.request.media[index] for index in feed.items)
    return {item.hash: item.tokens for item in items}
