"""What must hold while a schedule runs, and once it is over.

After the last fault was lifted the world runs until it is quiet: then every request has ended exactly once, what its client was shown is what a
world without faults would have shown (all of it if it ended well, the beginning if not; where devices differ, each token follows from those
before it), nobody holds anything: no page, slot, staging, task, record or timer, and everybody is ready for more. A request may fail only
for a reason that the schedule gave: its client left, its deadline passed, its gateway died, too many others waited, or its attempts were used up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from triptych.runtime.core.errors import Status
from triptych.runtime.simulation.device import expected_finish, expected_outputs, follows
from triptych.runtime.simulation.gateway import Client
from triptych.runtime.simulation.schedule import MANY, MAX_MODEL_LEN, Schedule
from triptych.runtime.simulation.world import SCHEDULER, World

_LOSSES = frozenset({Status.UNAVAILABLE, Status.DATA_LOSS, Status.DEADLINE_EXCEEDED})
"""How the last of a bounded number of attempts may end."""


@dataclass(frozen=True)
class Verdict:
    """What became of one request. `outcome` is a word for tables; `fault` says what is wrong, if anything is."""

    request: str
    outcome: str
    fault: str = ""


def quiet(world: World) -> bool:
    """Whether every call has ended and nothing is held anywhere."""
    return all(client.status is not None for client in world.clients) and not any(held(world))


def held(world: World) -> Iterator[str]:
    """Everything that is held for requests, a line each."""
    scheduler = world.scheduler
    if scheduler is not None:
        for name, count in vars(scheduler.core.resources()).items():
            if count:
                yield f"scheduler: {name} {count}"
        for ticket, answers in scheduler.drains.items():
            if len(answers) != 1:
                yield f"scheduler: drain {ticket} was answered {len(answers)} times"
    for gateway in world.gateways:
        if gateway.open:
            yield f"{gateway.name}: {gateway.open} open requests"
        if len(gateway.courier):
            yield f"{gateway.name}: {len(gateway.courier)} pushes of pixels"
    for worker in world.workers:
        for instance in worker.instances.values():
            for task in instance.core.held():
                yield f"{instance.ref.id}: {task.role or 'local'} task of {task.request} attempt {task.attempt}"
            if instance.producer.keys:
                yield f"{instance.ref.id}: {instance.producer.keys} stagings"
            if instance.consumer.pulls:
                yield f"{instance.ref.id}: {instance.consumer.pulls} pulls"
            if instance.shelf:
                yield f"{instance.ref.id}: pixels of {', '.join(sorted(instance.shelf))}"


def check_invariants(world: World) -> None:
    """What holds at every moment. Raises AssertionError."""
    for worker in world.workers:
        for instance in worker.instances.values():
            instance.core.audit()
    scheduler = world.scheduler
    if scheduler is not None:
        resources, counters = scheduler.core.resources(), scheduler.core.counters
        if resources.tasks != resources.assigned:
            raise AssertionError(f"scheduler: {resources.tasks} tasks, {resources.assigned} accounted to instances")
        scheduler.core.audit()
        if counters["protocol_violations"]:
            raise AssertionError("scheduler: an instance broke the task protocol in its eyes")


def check_free(world: World) -> Iterator[str]:
    """In a quiet world: memory that is neither free nor cached, a line each."""
    for worker in world.workers:
        for instance in worker.instances.values():
            resources, shape = instance.core.resources(), world.shape(instance.ref.id)
            if not resources.idle:
                yield f"{instance.ref.id} is not idle: {resources}"
            if resources.free_slots != shape.max_num_seqs:
                yield f"{instance.ref.id}: {resources.free_slots} of {shape.max_num_seqs} slots are free"
            if resources.free_pages + resources.cached_pages != shape.num_pages - 1:
                yield f"{instance.ref.id}: pages are missing: {resources}"
            if resources.free_media_pages + resources.cached_media_pages != max(0, shape.media_pages - 1):
                yield f"{instance.ref.id}: pages of embeddings are missing: {resources}"


def check_open(world: World) -> Iterator[str]:
    """In a quiet world: requests that the scheduler counts, peers that have not come back to it, and instances that it gives no work, a line each."""
    scheduler = world.scheduler
    if scheduler is None:
        return
    cluster = scheduler.core.snapshot(world.loop.now())
    if cluster.queued or cluster.active:
        yield f"scheduler: {cluster.queued} requests are queued and {cluster.active} active in its eyes"
    known = {entry.info.ref: entry.state for entry in cluster.instances}
    for gateway in world.gateways:
        if not gateway.connected and not world.network.link(SCHEDULER, gateway.name).cut:
            yield f"{gateway.name} is not connected"
    for worker in world.workers:
        if worker.registered:
            for instance in worker.instances.values():
                state = known.get(instance.ref, "not known")
                if state != "open":
                    yield f"{instance.ref.id} takes no work: to the scheduler it is {state}"
        elif not world.network.link(SCHEDULER, worker.name).cut:
            yield f"{worker.name} is not registered"


def verdict(client: Client, schedule: Schedule, world: World) -> Verdict:
    """Judge one request after its schedule."""
    request = client.request
    if client.status is None:
        return Verdict(request.id, "hung", "its call never ended")
    if client.faults:
        return Verdict(request.id, client.faults[0].split(":")[0], client.faults[0])
    for sample, shown in enumerate(client.shown):
        ended = client.finishes[sample]
        if not follows(request, sample, shown, schedule.flavours):
            expected, _ = expected_outputs(request, MAX_MODEL_LEN, sample)
            wrong = f"wrong tokens: sample {sample} is {shown}, expected {expected} (flavours {schedule.flavours})"
            return Verdict(request.id, "wrong", wrong)
        if shown and ended != expected_finish(request, shown, MAX_MODEL_LEN):
            return Verdict(
                request.id, "wrong", f"wrong end: sample {sample} ended as {ended} after {len(shown)} tokens"
            )
        if client.status is Status.OK and ended is None:
            return Verdict(request.id, "lost", f"lost: sample {sample} stops after {len(shown)} tokens")
    outcome = "completed" if client.status is Status.OK else f"failed: {client.status.name}"
    return Verdict(request.id, outcome, "" if _permitted(client, schedule, world) else f"{outcome}: {client.reason}")


def _permitted(client: Client, schedule: Schedule, world: World) -> bool:
    """Whether the schedule gave a reason for such an end."""
    deadline = client.request.deadline
    if client.attempts >= schedule.max_attempts and client.status in _LOSSES:
        return True
    match client.status:
        case Status.OK:
            return True
        case Status.CANCELLED:
            return client.left
        case Status.DEADLINE_EXCEEDED:
            return deadline is not None and client.ended >= deadline
        case Status.UNAVAILABLE:
            return client.orphaned
        case Status.RESOURCE_EXHAUSTED:  # refused, never begun: what was admitted once is not
            return schedule.max_queued < MANY and client.attempts == 1 and not any(client.shown)
        case _:
            return False
