"""Encode tasks: from StartEncode to embeddings that are staged for a puller.

An item of a task waits for its pixels (MediaArrived), then the task for pages: of all its items at once, first come, first
served among the tasks that have something to encode, and a pool full of staged embeddings stops them (back-pressure). Then
the item is in a plan's `encodes`, beside those of other requests; in the same plan its pages are exported under the key
of every task that has it. When all items are certain, the staging is complete and its lease begins.

Items are encoded once: what is in the store is pinned when the task comes, and what is being encoded or pulled for others
is waited for. Whoever else holds an entry (a prompt on this instance) gets its item encoded too, though the task itself
still waits for room.
"""

from __future__ import annotations

from collections.abc import Iterator

from triptych.runtime.core.errors import Status
from triptych.runtime.core.handle import Handle, Lease
from triptych.runtime.core.instance import Role
from triptych.runtime.core.media import MediaItem
from triptych.runtime.core.tasks import EncodeDone, EncodeStaged, Refused, StageTimes, StartEncode
from triptych.runtime.instance.admission import KEY_BITS, conflict
from triptych.runtime.instance.agreement import disagreement
from triptych.runtime.instance.embeddings import Entry
from triptych.runtime.instance.lifecycle import Kind, State, Trigger
from triptych.runtime.instance.media import MediaMemory
from triptych.runtime.instance.messages import CompleteStaging, DropMedia, InstanceMessage, OpenStaging, Report
from triptych.runtime.instance.plan import Encode, Export, Pool
from triptych.runtime.instance.spans import difference
from triptych.runtime.instance.state import InstanceState, end_task
from triptych.runtime.instance.tasks import EncodeTask


def start_encode(state: InstanceState, command: StartEncode, now: float) -> list[InstanceMessage]:
    """Take items to encode; or refuse. Says whose pixels are not here."""
    refused = _refusal(state, command)
    if refused is not None:
        return [Report(refused)]
    media, request, config = state.media, command.request, state.config
    assert media is not None
    items = [request.media[index] for index in command.items]
    key = state.random.getrandbits(KEY_BITS)
    task = EncodeTask(
        Kind.ENCODE,
        Role.ENCODE,
        request,
        state.next_serial,
        now,
        State.WAITING,
        staging_key=key,
        lease_seconds=command.lease,
        items=command.items,
        sizes={item.hash: item.tokens for item in items},
        pixel_seconds=command.ttl,
        pixels_by=now + command.ttl,
        for_decode=command.for_decode,
    )
    store = media.store
    here = {name: tokens for name, tokens in task.sizes.items() if store.resident(name, tokens)}
    store.hold(task, here)
    media.counts.found += len(here)
    task.held.update(dict.fromkeys(here))
    task.lacking.update(dict.fromkeys(name for name in task.sizes if name not in here and name not in media.shelf))
    if not task.lacking:
        task.pixels_by = None
    first = {request.media[index].hash: index for index in reversed(command.items)}
    lacking = tuple(sorted(first[name] for name in task.lacking))
    state.staged[key] = task
    media.tend(task)
    state.add(task)
    pages = sum(store.pages_for(item.tokens) for item in items)
    handle = Handle(state.ref, config.address, key, config.media_digest)
    opened = OpenStaging(request.id, key, pages * config.page_size, 0, pages, Pool.MEDIA)
    return [opened, Report(EncodeStaged(request.id, handle, lacking, request.attempt, task.for_decode))]


def media_arrived(state: InstanceState, name: str, now: float) -> list[InstanceMessage]:
    """The shell has the pixels of `name`; if nobody needs them (any more) it may drop them."""
    media = state.media
    if media is not None and name in media.shelf:
        return []
    if media is None or not media.awaited(name):
        return [DropMedia(name)]
    media.shelf[name] = None
    for task in media.encoders[name].values():
        task.found(name, now)
    media.stirred = True
    return []


def pixels_refused(state: InstanceState, name: str, now: float) -> bool:
    """The shell has no room for the pixels of `name`. True: pages are held for it, so that it is encoded as soon as it comes; pixels that wait for
    pages must not keep it out. False: who brings it will come again, and it is not late because of that."""
    media = state.media
    if media is None:
        return False
    if name in media.store.entries:
        return media.awaited(name)
    for task in media.encoding.values():
        if name in task.lacking and task.pixels_by is not None:
            task.pixels_by = now + task.pixel_seconds
    return False


def tend(state: InstanceState, now: float) -> list[InstanceMessage]:
    """Give room to tasks, complete those that are encoded, drop pixels that nobody needs."""
    media = state.media
    assert media is not None
    messages = _admit(state, media, now)
    for task in [task for task in media.encoding.values() if task.state is State.COMPUTING]:
        if all(media.store.entries[name].kept for name in task.sizes) and (
            task.released or len(task.exported) == len(task.items)
        ):
            messages += _stage(state, media, task, now)
    for name in list(media.shelf):
        entry = media.store.entries.get(name)
        if entry is not None and entry.pull is not None and media.awaited(name):
            # The instance that it is pulled from may be waiting for this one to encode it.
            messages += media.cancel_pull(entry)
        if name not in media.in_plans and not media.awaited(name):
            del media.shelf[name]
            messages.append(DropMedia(name))
    return messages


def ready_items(media: MediaMemory) -> Iterator[tuple[EncodeTask, MediaItem]]:
    """What can be encoded in the next plan, each item once, in order of tasks and of items."""
    seen: set[str] = set()
    for task in media.encoding.values():
        for index in task.items:
            item = task.request.media[index]
            entry = media.store.entries.get(item.hash)
            if item.hash in seen or entry is None or entry.ready or entry.pull is not None:
                continue
            if item.hash in media.shelf:
                seen.add(item.hash)
                yield task, item


def encode(media: MediaMemory, patches: int) -> Iterator[tuple[Encode, Entry]]:
    """Items for a plan, as many of the first ones as have at most `patches` patches together."""
    for task, item in ready_items(media):
        patches -= item.patches
        if patches < 0:
            return
        entry = media.store.entries[item.hash]
        media.in_plans[item.hash] += 1
        task.encoded += 1
        media.arrived(entry)
        yield Encode(item.hash, item.patches, item.tokens, entry.pages), entry


def exports(media: MediaMemory) -> Iterator[Export]:
    """The pages of items that are ready, or become so with the encodes of this plan, for every puller that was not told."""
    for task in media.encoding.values():
        if task.state is not State.COMPUTING or task.released or len(task.exported) == len(task.items):
            continue
        first = 0
        for place, index in enumerate(task.items):
            entry = media.store.entries[task.request.media[index].hash]
            if entry.ready and place not in task.exported:
                task.exported.add(place)
                media.stirred = True
                last = len(task.exported) == len(task.items)
                yield Export(task.staging_key, first, entry.pages, last, Pool.MEDIA)
            first += len(entry.pages)


def encoded(media: MediaMemory, entries: list[Entry]) -> None:
    """A plan with these encodes is done."""
    for entry in entries:
        media.in_plans[entry.hash] -= 1
        if not media.in_plans[entry.hash]:
            del media.in_plans[entry.hash]
        media.counts.encoded += 1
        media.store.keep(entry)
    media.stirred = True


def _refusal(state: InstanceState, command: StartEncode) -> Refused | None:
    request, config, media = command.request, state.config, state.media
    held = conflict(state, request, Role.ENCODE, command.for_decode)
    if held is not None:
        return held
    if Role.ENCODE not in config.roles or media is None:
        reason = f"instance {state.ref.id} has roles {', '.join(sorted(config.roles))}; encode needed"
        return _refused(command, reason, permanent=True)
    known = len(request.media)
    wrong = difference(request.media, len(request.prompt))
    if wrong is None and not (command.items and all(0 <= index < known for index in command.items)):
        wrong = f"items {command.items} are to be encoded; the request has {known}"
    if wrong is None:
        items = [request.media[index] for index in command.items]
        largest, pages = max(item.patches for item in items), sum(media.store.pages_for(item.tokens) for item in items)
        if largest > config.encode_patches:
            wrong = f"an item has {largest} patches; the instance encodes at most {config.encode_patches} at once"
        elif pages > media.store.usable_pages:
            wrong = f"the items need {pages} pages of embeddings; the instance has {media.store.usable_pages}"
        else:
            wrong = disagreement(media, items)
    if wrong is not None:
        return _refused(command, wrong, permanent=True)
    if len(media.encoding) >= config.max_waiting:
        reason = f"{len(media.encoding)} encode tasks wait here already (max_waiting {config.max_waiting})"
        return _refused(command, reason)
    return None


def _refused(command: StartEncode, reason: str, *, permanent: bool = False) -> Refused:
    request = command.request
    return Refused(request.id, Role.ENCODE, reason, permanent, request.attempt, command.for_decode)


def _admit(state: InstanceState, media: MediaMemory, now: float) -> list[InstanceMessage]:
    """Pages for all items of a task, strictly in order; only what needs no new page may go before the first that finds none."""
    first: EncodeTask | None = None
    for task in media.encoding.values():
        rest = {name: tokens for name, tokens in task.sizes.items() if name not in task.held}
        if task.state is not State.WAITING or (rest and all(name in task.lacking for name in rest)):
            continue
        if first is not None and media.store.missing(rest):
            continue
        if media.store.can_hold(rest):
            media.store.hold(task, rest)
            task.held.update(dict.fromkeys(rest))
            task.admitted, task.room_by = now, None
            task.advance(Trigger.ADMITTED)
            for name in rest:
                media.touch(name)
            media.stirred = True
        else:
            first = first or task
    if first is None:
        return []
    if first.room_by is None:
        # What is staged is pulled or given up within a lease. Room that is not free then may be held by prompts that wait, in the
        # end, for this very task; to end it breaks the circle.
        first.room_by = now + first.lease_seconds
        state.watch(first)
    return _untangle(state, media, first)


def _untangle(state: InstanceState, media: MediaMemory, first: EncodeTask) -> list[InstanceMessage]:
    """If all pages are pinned by tasks that wait for room themselves, nothing would ever be freed: the youngest gives way."""
    holders = (holder for entry in media.store.entries.values() for holder in entry.holders)
    if not all(isinstance(holder, EncodeTask) and holder.state is State.WAITING for holder in holders):
        return []
    pinning = [task for task in media.encoding.values() if task.held and task is not first]
    if not pinning:
        return []
    reason = "the embeddings that it waited with took the room of older tasks"
    return end_task(state, pinning[-1], Trigger.FAILED, Status.UNAVAILABLE, reason)


def _stage(state: InstanceState, media: MediaMemory, task: EncodeTask, now: float) -> list[InstanceMessage]:
    """Everything is there and offered: the lease begins."""
    task.advance(Trigger.COMPUTED)
    media.tended(task)
    started = now if task.admitted is None else task.admitted
    times = StageTimes(queue=started - task.arrived, compute=now - started)
    request = task.request
    messages: list[InstanceMessage] = [
        CompleteStaging(task.staging_key, None, Pool.MEDIA),
        Report(EncodeDone(request.id, task.encoded, times, request.attempt, task.for_decode)),
    ]
    if task.released:
        return messages + end_task(state, task, Trigger.RELEASED)
    task.lease = Lease(task.staging_key, now + task.lease_seconds)
    state.watch(task)
    return messages
