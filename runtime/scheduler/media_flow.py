"""A request's media: the prompt's instance wants items, encode instances are given them, and the prompt's instance hears where they will be.

    wanted -> ASKED (StartEncode) -> fed (EncodeStaged: FeedMedia) -> over          the puller has released everything, or needs no more
    ASKED -> wanted                                                                  refused, or lost before it was staged
    fed -> wanted                                                                    only if the puller's instance says so again

An instance that decodes what attends to media wants those, too. Each of the two pullers has encode tasks of its own, on the same instance perhaps:
neither waits for the other's pull, and what one has had encoded the other finds in that instance's store.

An item goes where it was encoded before, or else to the puller's own instance if that encodes, or else to the least busy encode instance at that
moment: one request's items fan out over all of them. A puller has at most one encode task an instance, which the instance must be able to hold as a
whole. What finds no instance waits on the record until something changes, as long as patience lasts; every item is given to instances a bounded number
of times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from triptych.runtime.core.control import MediaNeeded, Progress
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import Role
from triptych.runtime.core.media import MediaItem
from triptych.runtime.core.tasks import (
    EncodeDone,
    EncodeStaged,
    FeedMedia,
    MediaWanted,
    Refused,
    StartEncode,
    TaskEnded,
)
from triptych.runtime.scheduler.affinity import Affinity
from triptych.runtime.scheduler.cluster import Cluster, Member
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.counters import Count, Counters
from triptych.runtime.scheduler.ledger import Due, Ledger
from triptych.runtime.scheduler.lifecycle import Lifecycle, Out
from triptych.runtime.scheduler.media_reach import can_encode, pages_of
from triptych.runtime.scheduler.placement import shared_transport
from triptych.runtime.scheduler.state import Encoding, Phase, Record, media_of
from triptych.runtime.scheduler.tasks import (
    EncodeKey,
    EncodeTask,
    ProtocolViolation,
    Task,
    TaskKind,
    TaskState,
    Want,
    encode_task,
)


class MediaFlow:
    """Owner of what is known about where media were encoded; everything else of a request's media is on its record."""

    def __init__(self, config: SchedulerConfig, cluster: Cluster, ledger: Ledger, life: Lifecycle, counters: Counters):
        self._config = config
        self._cluster = cluster
        self._ledger = ledger
        self._life = life
        self._counters = counters
        self._affinity = Affinity(config.remembered_media)
        self._fresh: dict[str, None] = {}  # requests whose wants have not been looked at yet

    # ---- from instances that need embeddings

    def wanted(self, record: Record, puller: Task, report: MediaWanted, out: Out) -> None:
        """The task `puller` wants some items encoded (again). Raises ProtocolViolation if it can want no such items."""
        media, for_decode = record.request.media, puller.kind is TaskKind.DECODE
        wrong = [item for item in report.items if not 0 <= item < len(media)]
        if wrong or not media:
            raise ProtocolViolation(f"it wants media items {wrong} of a request that has {len(media)}")
        if for_decode and not all(media[item].attended for item in report.items):
            raise ProtocolViolation(
                f"it decodes, and wants media items {report.items}, which have places in the prompt"
            )
        if _overtaken(record, for_decode):
            return
        self._counters.add(Count.ITEMS_WANTED, len(report.items))
        tasks = [task for task in record.encodes.values() if task.for_decode is for_decode]
        asked = {want for task in tasks if task.state is TaskState.ASKED for want in task.wants}
        again = [want for item in report.items if (want := Want(for_decode, item)) not in asked]
        for task in tasks:
            if not set(again).isdisjoint(task.wants):  # its pull failed: nobody will come for the rest of it either
                trouble = media_of(record).trouble or f"what instance {task.ref.id} had staged was wanted again"
                self._doubt(record, task, trouble)
                self._life.abort(record, task, Status.CANCELLED, "its embeddings were wanted again", out)
        self._want(record, again, out)

    def computed(self, record: Record, encoding: Encoding, out: Out) -> None:
        """The prompt is computed."""
        encoding.computed = True
        self._life.end_encodes(record, "the prompt is computed", out, for_decode=False)

    def decodes(self, record: Record, out: Out) -> None:
        """The decode task has all that it needs."""
        self._life.end_encodes(record, "it decodes", out, for_decode=True)

    # ---- from encode instances

    def staged(self, record: Record, task: EncodeTask, member: Member, report: EncodeStaged, out: Out) -> None:
        """An encode task was accepted. Raises ProtocolViolation if it lacks pixels of what it was not asked for."""
        if not set(report.lacking) <= set(task.items):
            raise ProtocolViolation(f"it lacks media items {report.lacking} of a task for {task.items}")
        puller = record.puller(task.for_decode)
        assert puller is not None, f"{record.id} has encode tasks that nobody pulls from"
        task.fed = True
        attempt = record.request.attempt
        self._life.send(puller.ref, FeedMedia(record.id, report.handle, tuple(task.items), attempt), out)
        task.lacking = report.lacking
        self._need(record, task, member, out)
        self._progress(record, out)

    def done(self, record: Record, task: EncodeTask, member: Member, report: EncodeDone, out: Out) -> None:
        """Every item of `task` has its embeddings."""
        self._cluster.encoded(member, task)
        if report.encoded or not task.for_decode:  # once is enough that the decode task's items were found in the store
            encoded = Progress(record.id, Role.ENCODE, report.times, report.attempt, report.encoded)
            self._life.notify(record, encoded, out)

    def refused(self, record: Record, task: EncodeTask, member: Member, report: Refused, out: Out) -> None:
        """Nothing is held for `task`: another instance, or this one later."""
        encoding = media_of(record)
        self._counters.add(Count.ENCODES_REFUSED)
        self._life.forget(record, task)
        self._lacks(record, task, f"instance {member.ref.id}: {report.reason}")
        if report.permanent:
            encoding.never[member.ref] = report.reason
            if any(self._refused_by_all(record.request.media[item], encoding) for item in task.items):
                reasons = "; ".join(f"{ref.id}: {reason}" for ref, reason in encoding.never.items())
                self._life.fail(record, Status.INVALID_ARGUMENT, f"its media can be encoded nowhere ({reasons})", out)
                return
        else:
            encoding.tries.subtract(task.wants)
            self._cluster.encoders.close(member, out.now + self._config.reopen_after)
        self._want(record, task.wants, out)

    def ended(self, record: Record, task: EncodeTask, report: TaskEnded, out: Out) -> None:
        """The end of an encode task that nobody aborted. Raises ProtocolViolation if it ended well without having begun."""
        if report.status is Status.OK and not task.fed:
            raise ProtocolViolation("its encode task ended OK before anything was staged")
        if report.status is not Status.OK and task.patches:  # else it is done, and nobody came for it in time
            self._doubt(record, task, f"instance {task.ref.id}: {report.reason or report.status.name}")
        self._over(record, task, again=not task.fed, out=out)

    def remind(self, record: Record, out: Out) -> None:
        """The gateway of `record` is back, and may not have heard what pixels it is to bring."""
        for task in record.encodes.values():
            member = self._cluster.get(task.ref)
            if task.patches and task.state is TaskState.HELD and member is not None:
                self._need(record, task, member, out)

    # ---- losses

    def lost(self, record: Record, task: EncodeTask, reason: str, out: Out) -> None:
        """`task` is gone without a report of its end."""
        again = task.state is TaskState.ASKED
        self._doubt(record, task, reason)
        self._over(record, task, again=again, out=out)

    def take_back(self, record: Record, task: EncodeTask, reason: str, out: Out) -> None:
        """End `task` on its living instance; what was never staged goes elsewhere, the rest is wanted again by whoever misses it."""
        if task.state is TaskState.ABORTING:
            return
        again = task.state is TaskState.ASKED
        self._life.abort(record, task, Status.UNAVAILABLE, reason, out)
        if again:
            self._want(record, task.wants, out)

    def unanswered(self, record: Record, out: Out) -> None:
        """Some encode instance has not answered in time: what it was asked for is wanted from others."""
        limit, left = self._config.encode_answer, list[float]()
        for task in list(record.encodes.values()):
            if task.state is not TaskState.ASKED:
                continue
            if out.now < task.asked + limit:
                left.append(task.asked + limit)
                continue
            reason = f"instance {task.ref.id} did not answer within {limit:g} s"
            self._doubt(record, task, reason)
            self.take_back(record, task, reason, out)
        if left:
            self._ledger.timers[Due.ANSWER].put(record.id, min(left))

    def impatient(self, record: Record, out: Out) -> None:
        """No encode instance took what `record` wants in time."""
        self._counters.add(Count.PATIENCE_EXHAUSTED)
        reason = f"waited {self._config.patience:g} s in vain for its media to be encoded: {self.shortage(record)}"
        self._life.fail(record, Status.UNAVAILABLE, reason, out, self._config.retry_after)

    def shortage(self, record: Record) -> str:
        """Why `record` waits for an encode instance."""
        encoding = media_of(record)
        if not self._cluster.media_reach.encodes:
            return "no encode instance"
        return (
            encoding.trouble
            or f"no encode instance is open for items {sorted({want.item for want in encoding.wanted})}"
        )

    # ---- giving items to instances

    def tick(self, now: float) -> None:
        """Let instances be asked again that have been left alone for long enough."""
        for ref in self._cluster.encoders.due(now):
            member = self._cluster.get(ref)
            if member is not None:
                self._cluster.encoders.room(member)

    def pump(self, out: Out) -> None:
        """Give out what is wanted, in order of wanting: all of it if encode instances have changed since the last call, else what is new."""
        encoders = self._cluster.encoders
        if not encoders.changed and not self._fresh:
            return
        names = list(self._ledger.wanting if encoders.changed else self._fresh)
        encoders.changed = False
        self._fresh.clear()
        for name in names:
            if not encoders:
                return  # the first to open again sets `changed`
            if name in self._ledger.wanting:
                self._give(self._ledger.records[name], out)

    def _give(self, record: Record, out: Out) -> None:
        encoding, media = media_of(record), record.request.media
        worn = [want for want in encoding.wanted if encoding.tries[want] >= self._config.max_encodes]
        if worn:
            last, tries = f"; last: {encoding.trouble}" if encoding.trouble else "", encoding.tries[worn[0]]
            reason = f"media item {worn[0].item} was given to encode instances {tries} times in vain{last}"
            self._life.fail(record, Status.UNAVAILABLE, reason, out, self._config.retry_after)
            return
        tasks: dict[EncodeKey, EncodeTask] = {}
        for want in list(encoding.wanted):
            puller, item = record.puller(want.for_decode), media[want.item]
            asker = None if puller is None else self._cluster.get(puller.ref)
            assert asker is not None, f"{record.id} wants media for nobody"
            member = self._choose(record, want, asker, tasks)
            if member is None:
                continue
            key = EncodeKey(member.ref, want.for_decode)
            if key not in tasks:
                tasks[key] = encode_task(*key)
                self._life.take(record, tasks[key])
            self._cluster.also_encode(member, tasks[key], want.item, item)
            self._affinity.put(item.hash, member.ref)
            encoding.tries[want] += 1
            del encoding.wanted[want]
        if tasks and record.id not in self._ledger.timers[Due.ANSWER]:
            self._ledger.timers[Due.ANSWER].put(record.id, out.now + self._config.encode_answer)
        for key, task in tasks.items():
            task.asked = out.now
            self._counters.add(Count.ENCODES_STARTED)
            config = self._config
            start = StartEncode(
                record.request, tuple(task.items), config.pixel_ttl, config.lease_seconds, key.for_decode
            )
            self._life.send(key.ref, start, out)
        if not encoding.wanted:
            self._ledger.taken(record)

    def _choose(self, record: Record, want: Want, asker: Member, ours: Mapping[EncodeKey, EncodeTask]) -> Member | None:
        """The open instance that shall encode what `asker` wants; `ours` are the tasks that are being made up right now."""
        encoding, item = media_of(record), record.request.media[want.item]

        def usable(member: Member) -> bool:
            key, capacity = EncodeKey(member.ref, want.for_decode), member.info.capacity
            pages = ours[key].pages if key in ours else 0
            return (
                can_encode(capacity, item)
                and pages + pages_of(item, capacity.page_size) <= capacity.media_pages
                and member.ref not in encoding.never
                and (key in ours or key not in record.encodes)
                and (member is asker or shared_transport(member.info, asker.info) is not None)
            )

        known = self._known(item)
        second: Member | None = None
        for member in self._by_preference(known, asker):
            if usable(member):
                if member.ref not in encoding.doubted:
                    self._counters.add(Count.ITEMS_KNOWN, int(member is known))
                    return member
                second = second or member
        return second

    def _known(self, item: MediaItem) -> Member | None:
        """The live instance that was given `item` last."""
        ref = self._affinity.get(item.hash)
        return None if ref is None else self._cluster.get(ref)

    def _by_preference(self, known: Member | None, asker: Member) -> Iterator[Member]:
        """Open encode instances: who has it, who wants it, and the others by load."""
        encoders = self._cluster.encoders
        for member in (known, asker):
            if member is not None and encoders.is_open(member):
                yield member
        yield from encoders.by_load()

    # ---- shared steps

    def _need(self, record: Record, task: EncodeTask, member: Member, out: Out) -> None:
        if task.lacking:
            address, attempt = member.info.address, record.request.attempt
            self._life.notify(record, MediaNeeded(record.id, member.ref, address, task.lacking, attempt), out)

    def _want(self, record: Record, wants: list[Want], out: Out) -> None:
        if wants:
            self._ledger.want(record, wants, out.now + self._config.patience)
            self._fresh[record.id] = None

    def _progress(self, record: Record, out: Out) -> None:
        """An encode instance has taken some of what `record` wants: for the rest, if any, patience begins anew."""
        if record.id in self._ledger.wanting or any(t.state is TaskState.ASKED for t in record.encodes.values()):
            self._ledger.timers[Due.ENCODING].put(record.id, out.now + self._config.patience)
        else:
            self._ledger.timers[Due.ENCODING].discard(record.id)

    def _over(self, record: Record, task: EncodeTask, *, again: bool, out: Out) -> None:
        self._life.forget(record, task)
        if again and record.puller(task.for_decode) is not None:
            self._want(record, task.wants, out)
        self._life.settle(record, out)

    def _doubt(self, record: Record, task: EncodeTask, trouble: str) -> None:
        """`task` failed: other instances are asked first."""
        media_of(record).doubted[task.ref] = None
        self._lacks(record, task, trouble)

    def _lacks(self, record: Record, task: EncodeTask, trouble: str) -> None:
        """The instance of `task` may not have its items."""
        media_of(record).trouble = trouble
        for item in task.items:
            self._affinity.drop(record.request.media[item].hash, task.ref)

    def _refused_by_all(self, item: MediaItem, encoding: Encoding) -> bool:
        """Whether every instance that could encode `item` by its size has refused for good. O(instances)."""
        return not any(
            member.encodes and can_encode(member.info.capacity, item) and member.ref not in encoding.never
            for member in self._cluster.members
        )


def _overtaken(record: Record, for_decode: bool) -> bool:
    """Whether a want is old: what it asked for came with another request, the prompt was computed, and that was heard first. A local task may want
    media at any time: a preempted sample is computed again. A decode task wants some from its grant until it has all."""
    if TaskKind.LOCAL in record.tasks:
        return False
    if for_decode:
        return record.phase not in (Phase.PREFILLING, Phase.TRANSFERRING, Phase.ADOPTING)
    return media_of(record).computed or record.phase not in (Phase.TRANSFERRING, Phase.ADOPTING)
