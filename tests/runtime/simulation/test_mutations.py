"""Planted bugs: random schedules must find each of them, or the schedules prove nothing.

Each bug is one small change of the code that live processes run (or, where said so, of what the simulation repeats of their shells). `signs` say what the finding looks
like, so that a bug is not "caught" by an accident of its planting; the report of each test says what it was caught by (junit: `caught_by`).

Not here, because no schedule of the present model can tell: a missing attempt in AbortTask, and a missing epoch in handles and in the scheduler's
reports. Streams in order, what workers declare and random keys cover for them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.runtime.simulation.plans import calm
from triptych.runtime.core.handle import Lease
from triptych.runtime.core.journal import Journal
from triptych.runtime.instance import admission, encoding, feeding, importing, prefix, results, sequence
from triptych.runtime.instance.embeddings import EmbeddingStore
from triptych.runtime.instance.media import MediaMemory
from triptych.runtime.instance.messages import Command
from triptych.runtime.instance.pages import PagePool
from triptych.runtime.instance.sequence import Sequence
from triptych.runtime.scheduler.cluster import Cluster, Member, Obstacle
from triptych.runtime.scheduler.drains import Drains
from triptych.runtime.scheduler.flow import Flow
from triptych.runtime.simulation.faults import FOR_GOOD, Fault, Kind
from triptych.runtime.simulation.instance import SimInstance
from triptych.runtime.simulation.media import SimCourier
from triptych.runtime.simulation.moments import Moment
from triptych.runtime.simulation.run import run
from triptych.runtime.simulation.schedule import UNHURRIED, Pace, Schedule, encodes, generate
from triptych.runtime.simulation.world import SCHEDULER

MOST = 400  # schedules until a bug counts as missed
FIRST = 5000

Plant = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Bug:
    """A planted bug, words of which one appears in what catches it, and where to look (what takes rare faults is found sooner among those)."""

    plant: Plant
    signs: tuple[str, ...]
    schedule: Callable[[int], Schedule] = generate


def lease_never_expires(patch: pytest.MonkeyPatch) -> None:
    """Staged KV of a puller that never came is kept for ever."""
    patch.setattr(results, "Lease", lambda key, expires: Lease(key, expires + 1e6))


def reservation_never_expires(patch: pytest.MonkeyPatch) -> None:
    """A reservation that nobody follows up is kept for ever."""
    real = admission.reserve_decode
    patch.setattr(admission, "reserve_decode", lambda state, command, now: real(state, replace(command, ttl=1e6), now))


def any_epoch_will_do(patch: pytest.MonkeyPatch) -> None:
    """In the simulated shell: an instance obeys what its earlier life was told."""
    patch.setattr(SimInstance, "command", lambda instance, ref, command: instance.post(Command(command)))


def journal_takes_any_attempt(patch: pytest.MonkeyPatch) -> None:
    """Tokens of a lost attempt count in the next one."""
    real = Journal.push

    def push(journal: Journal, token: Any) -> Any:
        return real(journal, token._replace(attempt=journal.attempt))

    patch.setattr(Journal, "push", push)


def journal_takes_duplicates(patch: pytest.MonkeyPatch) -> None:
    """A token that comes twice is shown twice."""

    def push(journal: Any, token: Any) -> Any:
        line = journal._lines[token.sample]
        if token.attempt == journal.attempt and line.finish is None and token.position < line.next_position:
            line.outputs.append(token.token)
            return [token]
        return real(journal, token)

    real = Journal.push
    patch.setattr(Journal, "push", push)


def journal_forgets_a_token(patch: pytest.MonkeyPatch) -> None:
    """A Resume says that the client has seen one token less than it has."""
    real = Journal.resume

    def resume(journal: Journal, attempt: int) -> Any:
        return tuple(replace(s, outputs=s.outputs[:-1]) if s.finish is None else s for s in real(journal, attempt))

    patch.setattr(Journal, "resume", resume)


def cancel_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """The scheduler hears of a client that left and does nothing."""
    patch.setattr(Flow, "cancel", lambda *_: None)


def losses_are_overlooked(patch: pytest.MonkeyPatch) -> None:
    """What ran on a lost instance is not gone in the scheduler's eyes."""
    patch.setattr(Flow, "lost", lambda *_: None)


def pages_leak(patch: pytest.MonkeyPatch) -> None:
    """A sequence that is given up keeps its pages."""
    patch.setattr(Sequence, "_cut", lambda sequence, pages: sequence.tables[0].cut(pages) and None)


def shared_pages_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    """A page of a cached prefix is handed out although a sequence reads it."""
    patch.setattr(PagePool, "share", lambda pool, pages: None)


def prefix_ignores_what_came_before(patch: pytest.MonkeyPatch) -> None:
    """A page's key is that of its own tokens alone."""
    real = prefix.page_key
    patch.setattr(sequence, "page_key", lambda parent, tokens, extra=b"": real(b"", tokens, extra))


def prefix_is_known_before_it_is_there(patch: pytest.MonkeyPatch) -> None:
    """A reservation's pages enter the prefix index before they were pulled."""
    real = importing.start_decode

    def start_decode(state: Any, command: Any) -> Any:
        messages = real(state, command)
        if messages:
            task = next(task for task in state.tasks.values() if task.request.id == command.request)
            task.sequence.commit(len(task.request.prompt))
        return messages

    patch.setattr(importing, "start_decode", start_decode)


def preempted_too_late(patch: pytest.MonkeyPatch) -> None:
    """A draw of a plan made before a sample was preempted counts after it."""
    from triptych.runtime.instance.state import InstanceState

    def unseat(state: InstanceState, stream: Any) -> None:
        stream.pending = 0
        stream.seated = False
        if stream.slot is not None:
            state.slots.give(stream.slot)
            stream.slot = None

    patch.setattr(InstanceState, "unseat", unseat)


def drained_for_ever(patch: pytest.MonkeyPatch) -> None:
    """An instance that has not changed in time, or will not, is never given work again."""
    real = Cluster.unblock

    def unblock(cluster: Cluster, member: Member, obstacle: Obstacle) -> bool:
        return obstacle is not Obstacle.DRAINING and real(cluster, member, obstacle)

    patch.setattr(Cluster, "unblock", unblock)


def drains_are_told_once(patch: pytest.MonkeyPatch) -> None:
    """A worker that was away when it was told to change is not told again."""
    patch.setattr(Drains, "back", lambda *_: None)


def drains_wait_for_the_dead(patch: pytest.MonkeyPatch) -> None:
    """The drain of an instance that is gone goes on."""
    patch.setattr(Drains, "_gone", lambda *_: None)


def images_are_alike_to_the_prefix_cache(patch: pytest.MonkeyPatch) -> None:
    """A page's key does not say which image it covers."""
    patch.setattr(sequence, "page_key", lambda parent, tokens, *_: prefix.page_key(parent, tokens))


def unready_embeddings_are_read(patch: pytest.MonkeyPatch) -> None:
    """A prompt is computed as soon as it has pages for its embeddings."""
    patch.setattr(EmbeddingStore, "is_ready", lambda store, name: name in store.entries)


def embeddings_are_dropped_late(patch: pytest.MonkeyPatch) -> None:
    """What a pull of embeddings held is kept when it fails."""

    def end_pull(media: Any, feed: Any) -> None:
        for name in feed.fills:
            media.store.entries[name].pull = None
        feed.fills = feed.spare = ()
        media.stirred = True

    patch.setattr(MediaMemory, "end_pull", end_pull)


def lost_embeddings_are_not_wanted_again(patch: pytest.MonkeyPatch) -> None:
    """Whoever was to bring an item is counted on after it failed."""
    patch.setattr(feeding, "_missed", lambda *_: [])


def pixels_are_brought_once(patch: pytest.MonkeyPatch) -> None:
    """In the simulated gateway: a push that breaks is not tried again, and the encode instance waits for it without end."""
    patch.setattr(SimCourier, "_broken", lambda courier, key, push: courier._pushes.pop(key, None))
    real = encoding.start_encode
    patch.setattr(encoding, "start_encode", lambda state, command, now: real(state, replace(command, ttl=1e6), now))


def with_images(seed: int) -> Schedule:
    """The first random schedule from a seed of this one's own on that encodes."""
    return next(
        schedule for schedule in map(generate, range(1000 * seed, 1000 * seed + 100)) if encodes(schedule.topology)
    )


def alone(seed: int) -> Schedule:
    """A prefill or a decode instance is cut off for good about when it has staged or granted something."""
    luck = random.Random(seed)
    moment, victim = luck.choice([("Staged", "worker-p0"), ("Granted", "worker-d2")])
    fault = Fault(
        Kind.ISOLATE,
        luck.uniform(0.0, 0.02),
        victim,
        seconds=FOR_GOOD,
        when=Moment(moment, luck.randint(1, 4)),
    )
    return replace(calm(seed, "2P2D"), faults=(fault,))


def deaf(seed: int) -> Schedule:
    """A decode instance that generates is cut off from the scheduler for a while, not from the gateway; devices differ."""
    luck = random.Random(seed)
    moment = Moment("DecodeStarted", luck.randint(1, 4))
    fault = Fault(Kind.CUT, luck.uniform(0.0, 0.1), SCHEDULER, luck.choice(["worker-d1", "worker-d2"]), 1.0, moment)
    return replace(calm(seed, "1P2D"), faults=(fault,), flavours=(0, 1, 2))


def switched(seed: int) -> Schedule:
    """The stream to a worker breaks when an instance on it is told to change, and it must change soon or very soon."""
    luck = random.Random(seed)
    instance, roles = luck.choice([("p0", "decode"), ("d2", "prefill"), ("d3", ""), ("p1", "")])
    drain = Fault(Kind.DRAIN, luck.uniform(0.0, 0.3), instance, roles, when=Moment("Submit", 1))
    told = Moment("SetRoles" if roles else "Retire", 1)
    reset = Fault(Kind.RESET, 0.0, SCHEDULER, f"worker-{instance}", when=told)
    schedule = replace(calm(seed, "2P2D"), faults=(drain, reset), pace=Pace(latency=0.004))
    return replace(schedule, switch_seconds=luck.choice([0.001, UNHURRIED]))


def only(*kinds: Kind) -> Callable[[int], Schedule]:
    """Random schedules with faults of these kinds."""
    return lambda seed: generate(seed, kinds)


BUGS = {
    "lease never expires": Bug(lease_never_expires, ("prefill task",), alone),
    "reservation never expires": Bug(reservation_never_expires, ("decode task",), alone),
    "any epoch will do": Bug(any_epoch_will_do, ("protocol", "INTERNAL", "hung", "held"), only(Kind.ENGINE)),
    "losses are overlooked": Bug(losses_are_overlooked, ("held", "tasks")),
    "journal takes any attempt": Bug(journal_takes_any_attempt, ("wrong tokens", "missing"), deaf),
    "journal takes duplicates": Bug(journal_takes_duplicates, ("duplicated",), only(Kind.REPEAT)),
    "journal forgets a token": Bug(journal_forgets_a_token, ("wrong tokens", "missing")),
    "drained for ever": Bug(drained_for_ever, ("takes no work",), switched),
    "drains are told once": Bug(drains_are_told_once, ("drain",), switched),
    "drains wait for the dead": Bug(drains_wait_for_the_dead, ("drain",), only(Kind.DRAIN, Kind.KILL)),
    "cancel is forgotten": Bug(cancel_is_forgotten, ("held",)),
    "pages leak": Bug(pages_leak, ("page",)),
    "shared pages are not counted": Bug(shared_pages_are_not_counted, ("page",)),
    "prefix ignores what came before": Bug(prefix_ignores_what_came_before, ("wrong tokens",)),
    "prefix is known before it is there": Bug(prefix_is_known_before_it_is_there, ("wrong tokens",)),
    "images are alike to the prefix cache": Bug(images_are_alike_to_the_prefix_cache, ("wrong tokens",), with_images),
    "unready embeddings are read": Bug(unready_embeddings_are_read, ("wrong tokens",), with_images),
    "embeddings are dropped late": Bug(embeddings_are_dropped_late, ("holders", "page"), with_images),
    "lost embeddings are not wanted again": Bug(lost_embeddings_are_not_wanted_again, ("held", "hung"), with_images),
    "pixels are brought once": Bug(pixels_are_brought_once, ("held", "hung"), with_images),
    "preempted too late": Bug(preempted_too_late, ("sample", "cannot be", "slot", "wrong tokens", "tuple index")),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(
    name: str, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
):
    bug = BUGS[name]
    bug.plant(monkeypatch)
    for count in range(1, MOST + 1):
        outcome = run(bug.schedule(FIRST + count))
        if not outcome.passed:
            finding = outcome.wrong[0].splitlines()[0]
            record_property("caught_by", f"schedule {count} (seed {outcome.seed}): {finding}")
            print(f"{name} | {count} | {finding}")
            assert any(sign in finding for sign in bug.signs), finding
            return
    pytest.fail(f"{name}: {MOST} schedules did not find it")
