"""MediaMemory: what an instance knows of media, besides the tasks: the store of embeddings, who needs which, and pixels.

Both sides of a transfer meet here, on an instance with both roles in one store: encode tasks (encoding.py) fill entries
and stage them, prompts (gathering.py, feeding.py) hold them until they are computed. A Gathering is one sequence's needs. It goes
*beside* the queue at first; once it *holds* every entry that it needs, all at once and in order of age, it waits for those
that are not ready, and then its sequence joins the queue. What waits for room holds nothing, so two prompts never wait for
each other's pages. What all its tokens attend to a sequence holds as long as it lives, and when it is forked each of the two does.

Who brings an item that is needed is known at any time: an encode task here, a pull, or the task that last reported it in
MediaWanted (`wanters`). Where nobody does, gathering.py wants it again. `stirred` says that something changed, so that both
sides must be looked at; text never sets it. Which prompts that concerns is noted in `beside`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from triptych.runtime.core.media import MediaItem
from triptych.runtime.instance.beside import Beside
from triptych.runtime.instance.config import InstanceConfig
from triptych.runtime.instance.embeddings import EmbeddingStore, Entry
from triptych.runtime.instance.lifecycle import Kind
from triptych.runtime.instance.messages import CancelPull, Imported, InstanceMessage
from triptych.runtime.instance.plan import Attended, Embedded, Pool
from triptych.runtime.instance.positions import places
from triptych.runtime.instance.sequence import Sequence
from triptych.runtime.instance.spans import attended, needed, overlapping
from triptych.runtime.instance.tasks import EncodeTask, Feed, Fill, Stream, Task


@dataclass(eq=False, slots=True)
class Gathering:
    """The embeddings that one sequence needs: until the last token of each item is in a plan or, of an item that all attend to, until nothing
    is computed of the sequence any more.

    Attributes:
        fill: what is to be computed; of a sequence that decodes: what would be, were it preempted.
        sizes: embeddings of each item that is still needed, by hash.
        index: index of the first item of each hash in request.media.
        ends: first token behind the last item of each hash; what is attended to is not in it.
        beside: the sequence waits beside the queue.
        holds: it holds an entry for each of `sizes`.
        asked: what was not here was wanted.
        attended: for rows of the sequence, once it holds the entries.
    """

    fill: Fill
    sizes: dict[str, int]
    index: dict[str, int]
    ends: dict[str, int]
    beside: bool = True
    holds: bool = False
    asked: bool = False
    attended: tuple[Attended, ...] = ()


@dataclass(slots=True)
class MediaCounts:
    """Items that were encoded here, pulled, and found in the store by a task (encoded or pulled for another)."""

    encoded: int = 0
    pulled: int = 0
    found: int = 0


class MediaMemory:
    """One incarnation's.

    Attributes:
        shelf: hashes whose pixels are in the shell's hands.
        in_plans: how many plans in flight encode each hash.
        gatherings: by sequence number.
        beside: those of them whose sequences wait beside the queue.
        encoding: encode tasks of which something is not encoded or not offered yet, by serial, oldest first.
        encoders: the same ones by the items that they have, by hash.
        wanters: by hash, the task that last reported it in MediaWanted and has it not yet.
        imported: decode tasks whose KV came before their media, with what was said of it.
        renew_at: when owners of what is waited for are told again (renewing.py).
        roomless: the oldest without room when that was looked at last, and since when it is.
    """

    def __init__(self, config: InstanceConfig):
        self._mrope = config.mrope
        self.store = EmbeddingStore(config.media_pages, config.page_size)
        self.shelf: dict[str, None] = {}
        self.in_plans: Counter[str] = Counter()
        self.gatherings: dict[int, Gathering] = {}
        self.beside = Beside()
        self.encoding: dict[int, EncodeTask] = {}
        self.encoders: dict[str, dict[int, EncodeTask]] = {}
        self.wanters: dict[str, Task] = {}
        self.imported: dict[Task, Imported] = {}
        self.counts = MediaCounts()
        self.stirred = False
        self.renew_at = float("-inf")
        self.roomless: tuple[Gathering, float] | None = None

    @property
    def waiting_patches(self) -> int:
        """Patches that encode tasks wait for."""
        waiting = {
            item.hash: item.patches
            for task in self.encoding.values()
            for item in (task.request.media[index] for index in task.items)
            if not self.store.is_ready(item.hash)
        }
        return sum(waiting.values())

    def wait(self, gathering: Gathering) -> None:
        """Its sequence goes beside the queue."""
        self.gatherings[gathering.fill.sequence.number] = gathering
        self.beside.add(gathering)
        self.stirred = True

    def prompts_beside(self) -> list[Gathering]:
        """As `beside`, without reservations: those wait for their KV, too, and in no queue."""
        return [gathering for gathering in self.beside if gathering.fill.task.kind is not Kind.DECODE]

    def waits(self, task: Task) -> bool:
        """Whether a sequence of `task` waits for embeddings, beside the queue."""
        return any(gathering.fill.task is task for gathering in self.beside.of_request(task.request.id))

    def waiting(self, task: Task, name: str) -> list[Gathering]:
        """The sequences of `task` that wait beside the queue and need `name`."""
        return [
            gathering
            for gathering in self.beside.of_request(task.request.id)
            if gathering.fill.task is task and name in gathering.sizes
        ]

    def tend(self, task: EncodeTask) -> None:
        """An encode task begins."""
        self.encoding[task.serial] = task
        for name in task.sizes:
            self.encoders.setdefault(name, {})[task.serial] = task
        self.stirred = True

    def tended(self, task: EncodeTask) -> None:
        """Everything of it is encoded and offered, or it has ended."""
        if self.encoding.pop(task.serial, None) is None:
            return
        for name in task.sizes:
            del self.encoders[name][task.serial]
            if not self.encoders[name]:
                del self.encoders[name]

    def touch(self, name: str) -> None:
        """Something happened to the item, or to who was to bring it: who waits for it is looked at next."""
        self.beside.touch(name)
        self.stirred = True

    def arrived(self, entry: Entry) -> None:
        """The embeddings are in the entry's pages for everything that the device does from now on."""
        entry.ready = True
        self.wanters.pop(entry.hash, None)
        for task in self.encoders.get(entry.hash, {}).values():
            if entry.hash not in task.held:  # its pixels go: it must not be evicted again
                entry.holders.add(task)
                task.held[entry.hash] = None
            task.found(entry.hash)
        self.touch(entry.hash)

    def lacks(self, fill: Fill, cached: int) -> bool:
        """Whether `fill`, with its first `cached` tokens in the prefix cache, needs embeddings that it does not hold."""
        gathering = self.gatherings.get(fill.sequence.number)
        held = gathering.sizes if gathering is not None and gathering.holds else {}
        return any(
            item.hash not in held or not self.store.is_ready(item.hash) for item in needed(fill.sequence.media, cached)
        )

    def hold(self, gathering: Gathering) -> None:
        """Take the entries of all that it needs, for which there is room. Where one is new, others that need the same need no page for it any
        more."""
        store = self.store
        fresh = [name for name in gathering.sizes if name not in store.entries]
        self.counts.found += sum(store.resident(*size) for size in gathering.sizes.items())
        store.hold(gathering, gathering.sizes)
        self.beside.got_room(gathering)
        gathering.attended = tuple(
            Attended(item.tokens, store.entries[item.hash].pages) for item in attended(gathering.fill.sequence.media)
        )
        for name in fresh:
            self.touch(name)

    def holds(self, wanted: Gathering) -> bool:
        """Whether the sequence of `wanted` holds all of it, and it attends to some: who does not asks for the rest and this at once."""
        held = self.gatherings.get(wanted.fill.sequence.number)
        if held is None or not held.attended or not wanted.sizes.keys() <= held.sizes.keys():
            return False
        return all(map(self.store.is_ready, wanted.sizes))

    def keep(self, fill: Fill) -> None:
        """What the sequence of `fill` holds is kept for `fill`: it was preempted."""
        gathering = self.gatherings.get(fill.sequence.number)
        if gathering is not None:
            gathering.fill = fill

    def share(self, sequence: Sequence, streams: tuple[Stream, ...]) -> None:
        """`streams` go on with `sequence` and forks of it: each holds what all tokens attend to."""
        gathering = self.gatherings.get(sequence.number)
        if gathering is None:
            return
        for stream in streams:
            own = stream.sequence
            assert own is not None
            fill = Fill(stream.task, own, (stream,), True)
            if own is sequence:
                gathering.fill = fill
                continue
            twin = Gathering(fill, dict(gathering.sizes), dict(gathering.index), dict(gathering.ends), beside=False)
            twin.holds, twin.attended = True, gathering.attended
            self.gatherings[own.number] = twin
            self.store.hold(twin, twin.sizes)

    def attended(self, sequence: Sequence) -> tuple[Attended, ...]:
        """What rows of `sequence` attend to."""
        gathering = self.gatherings.get(sequence.number)
        return () if gathering is None else gathering.attended

    def embedded(self, fill: Fill, start: int, end: int) -> tuple[Embedded, ...]:
        """The runs of tokens [start, end) whose embeddings the row takes from the media pool."""
        media = fill.sequence.media
        found = {item.offset: place for item, place in places(media)} if self._mrope else {}
        return tuple(
            Embedded(
                at=max(item.offset, start) - start,
                count=min(item.end, end) - max(item.offset, start),
                first=max(item.offset, start) - item.offset,
                pages=self.store.entries[item.hash].pages,
                place=found.get(item.offset),
            )
            for item in overlapping(media, start, end)
        )

    def passed(self, number: int, computed: int) -> None:
        """Plans compute the first `computed` tokens of a sequence: items that end there are needed no more."""
        gathering = self.gatherings.get(number)
        if gathering is None:
            return
        for name in [name for name, end in gathering.ends.items() if end <= computed]:
            self._let_go(gathering, name)
        if not gathering.sizes:
            del self.gatherings[number]

    def forget(self, number: int) -> None:
        """A sequence needs nothing any more: it was given up, or needs other things than before."""
        gathering = self.gatherings.pop(number, None)
        if gathering is not None:
            self.beside.remove(gathering)
            for name in list(gathering.sizes):
                self._let_go(gathering, name)
                if self.wanters.get(name) is gathering.fill.task:
                    self.touch(name)  # what a prompt without room has wanted is not under way for one that has it

    def abandon(self, task: Task) -> list[InstanceMessage]:
        """The task ends; its sequences are forgotten already. Others that waited for what it was to bring are looked at next."""
        messages: list[InstanceMessage] = []
        if isinstance(task, EncodeTask):
            self.tended(task)
            for name in task.held:
                self.store.drop(task, name)
            task.held = {}
            for name in task.sizes:
                self.touch(name)
            self.beside.touch_request(task.request.id)
        elif task.media is not None:
            self.imported.pop(task, None)
            for key, feed in task.media.feeds.items():
                if feed.pages is not None:
                    messages.append(CancelPull(task.request.id, Pool.MEDIA, key))
                    self.end_pull(feed)
            task.media.feeds.clear()
            for item in task.request.media:
                if self.wanters.get(item.hash) is task:
                    del self.wanters[item.hash]
                    self.touch(item.hash)
            self.stirred = True
        return messages

    def encodable(self, name: str) -> bool:
        """Whether an encode task waits for the item, and its pixels are here."""
        return name in self.shelf and self.awaited(name)

    def encoded_item(self, name: str) -> MediaItem | None:
        """The item as the first encode task that has it says it is."""
        for task in self.encoders.get(name, {}).values():
            return next(item for index in task.items if (item := task.request.media[index]).hash == name)
        return None

    def awaited(self, name: str) -> bool:
        """Whether an encode task waits for the item."""
        return name in self.encoders and not self.store.is_ready(name)

    def cancel_pull(self, entry: Entry) -> list[InstanceMessage]:
        """Nothing is pulled into `entry` any more. What else that pull was to bring is looked at next."""
        (feed,) = (holder for holder in entry.holders if isinstance(holder, Feed))
        task, key = feed.task, feed.source.key
        for name in feed.fills:
            if self.wanters.get(name) is task:
                del self.wanters[name]
        self.end_pull(feed)
        if task.media is not None:
            del task.media.feeds[key]
        return [CancelPull(task.request.id, Pool.MEDIA, key)]

    def end_pull(self, feed: Feed) -> None:
        """A started pull is over, whatever came of it."""
        for name in feed.fills:
            self.store.entries[name].pull = None
            self.store.drop(feed, name)
            self.touch(name)
        self.beside.touch_request(feed.task.request.id)
        self.store.pool.release(feed.spare)
        feed.fills = feed.spare = ()
        self.stirred = True

    def _let_go(self, gathering: Gathering, name: str) -> None:
        if gathering.holds:
            self.store.drop(gathering, name)
        del gathering.sizes[name], gathering.index[name]
        gathering.ends.pop(name, None)
        self.stirred = True
