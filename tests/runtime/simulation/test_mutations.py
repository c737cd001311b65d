"""Planted bugs: random schedules must find each of them, or the schedules prove nothing.

Each bug is one small change of the code that live processes run (or, where said so, of what the simulation repeats of their shells). `CAUGHT_BY` says
what the finding looks like, so that a bug is not "caught" by an accident of its planting.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from triptych.runtime.core.handle import Lease
from triptych.runtime.core.journal import Journal
from triptych.runtime.instance import attempts, importing, prefix, results, sequence
from triptych.runtime.instance.pages import PagePool
from triptych.runtime.instance.sequence import Sequence
from triptych.runtime.scheduler.flow import Flow
from triptych.runtime.simulation.consumer import SimConsumer
from triptych.runtime.simulation.faults import Kind
from triptych.runtime.simulation.producer import SimProducer
from triptych.runtime.simulation.run import run_many
from triptych.runtime.simulation.transfer import Data
from triptych.runtime.simulation.world import World

MOST = 400  # schedules until a bug counts as missed
FIRST = 5000

Plant = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Bug:
    """A planted bug, words of which at least one appears in what catches it, and the faults that it takes (rare ones are found sooner alone)."""

    plant: Plant
    signs: tuple[str, ...]
    kinds: tuple[Kind, ...] = tuple(Kind)


def lease_never_expires(patch: pytest.MonkeyPatch) -> None:
    """Staged KV of a puller that never came is kept for ever."""
    patch.setattr(results, "Lease", lambda key, expires: Lease(key, expires + 1e6))


def keys_repeat(patch: pytest.MonkeyPatch) -> None:
    """No bug: every life of an instance makes the same staging keys. The random key would hide what the epoch is for."""
    real = World._parts

    def parts(world: World, shape: Any, luck: Any) -> Any:
        made = real(world, shape, luck)
        made.core._state.random = random.Random(shape.id)
        return made

    patch.setattr(World, "_parts", parts)


def any_epoch_will_do(patch: pytest.MonkeyPatch) -> None:
    """In the simulated shell: a handle of an earlier life opens what the present one has staged under the same key."""
    keys_repeat(patch)
    real = SimProducer.admit
    patch.setattr(SimProducer, "admit", lambda own, end, told: real(own, end, replace(told, owner=own.ref)))


def any_attempt_may_be_aborted(patch: pytest.MonkeyPatch) -> None:
    """An AbortTask for an attempt that is over ends the next one."""
    real = attempts.abort

    def abort(state: Any, command: Any) -> Any:
        return real(state, replace(command, attempt=None))

    patch.setattr(attempts, "abort", abort)


def journal_takes_any_attempt(patch: pytest.MonkeyPatch) -> None:
    """Tokens of a lost attempt count in the next one."""
    real = Journal.push

    def push(journal: Journal, token: Any) -> Any:
        return real(journal, replace(token, attempt=journal.attempt))

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


def journal_forgets_a_sample(patch: pytest.MonkeyPatch) -> None:
    """A Resume says that the client has seen one token less than it has."""
    real = Journal.resume

    def resume(journal: Journal, attempt: int) -> Any:
        return tuple(replace(s, outputs=s.outputs[:-1]) if s.finish is None else s for s in real(journal, attempt))

    patch.setattr(Journal, "resume", resume)


def cancel_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """The scheduler hears of a client that left and does nothing."""
    patch.setattr(Flow, "cancel", lambda *_: None)


def cancelled_pull_goes_on(patch: pytest.MonkeyPatch) -> None:
    """In the simulated shell: pages of a cancelled pull are still written."""

    def scatter(consumer: Any, pull: Any, data: Any) -> None:
        for index, content in enumerate(data.pages, data.first_page - pull.message.first_page):
            consumer._around.device.write(pull.message.pages[index], content)
        if consumer._lives(pull):
            consumer._verified((pull, data.corrupted))

    real = SimConsumer._told

    def told(consumer: Any, pull: Any, message: Any) -> None:
        if isinstance(message, Data) and not consumer._lives(pull):
            consumer._around.call(lambda: scatter(consumer, pull, message))
        else:
            real(consumer, pull, message)

    patch.setattr(SimConsumer, "cancel", lambda consumer, request: consumer._pulls.pop(request, None))
    patch.setattr(SimConsumer, "_scatter", scatter)
    patch.setattr(SimConsumer, "_told", told)


def pages_leak(patch: pytest.MonkeyPatch) -> None:
    """A sequence that is given up keeps its pages."""
    patch.setattr(Sequence, "_cut", lambda sequence, pages: sequence.tables[0].cut(pages) and None)


def shared_pages_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    """A page of a cached prefix is handed out although a sequence reads it."""
    patch.setattr(PagePool, "share", lambda pool, pages: None)


def prefix_ignores_what_came_before(patch: pytest.MonkeyPatch) -> None:
    """A page's key is that of its own tokens alone."""
    real = prefix.page_key
    patch.setattr(sequence, "page_key", lambda parent, tokens: real(b"", tokens))


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


BUGS = {
    "lease never expires": Bug(lease_never_expires, ("stagings", "prefill task"), (Kind.ISOLATE,)),
    "any epoch will do": Bug(any_epoch_will_do, ("FAILED_PRECONDITION", "wrong"), (Kind.KILL, Kind.ENGINE, Kind.PAUSE)),
    "any attempt may be aborted": Bug(any_attempt_may_be_aborted, (), (Kind.CUT, Kind.RESET)),
    "journal takes any attempt": Bug(
        journal_takes_any_attempt, ("wrong", "duplicated", "lost", "missing"), (Kind.CUT,)
    ),
    "journal takes duplicates": Bug(journal_takes_duplicates, ("duplicated",)),
    "journal forgets a token": Bug(journal_forgets_a_sample, ("lost", "INTERNAL", "missing", "wrong")),
    "cancel is forgotten": Bug(cancel_is_forgotten, ()),
    "cancelled pull goes on": Bug(cancelled_pull_goes_on, ("wrong",), (Kind.LEAVE,)),
    "pages leak": Bug(pages_leak, ("page",)),
    "shared pages are not counted": Bug(shared_pages_are_not_counted, ("page",)),
    "prefix ignores what came before": Bug(prefix_ignores_what_came_before, ("wrong",)),
    "prefix is known before it is there": Bug(prefix_is_known_before_it_is_there, ("wrong",)),
    "preempted too late": Bug(preempted_too_late, ()),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(
    name: str, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
):
    bug = BUGS[name]
    bug.plant(monkeypatch)
    for count, outcome in enumerate(run_many(MOST, FIRST, kinds=bug.kinds), start=1):
        if not outcome.passed:
            record_property("caught_by", f"schedule {count} (seed {outcome.seed}): {outcome.wrong[0].splitlines()[0]}")
            print(name, "|", count, "|", outcome.wrong[0].splitlines()[0])
            assert not bug.signs or any(sign in outcome.wrong[0] for sign in bug.signs), outcome.wrong[0]
            return
    pytest.fail(f"{name}: {MOST} schedules did not find it")
