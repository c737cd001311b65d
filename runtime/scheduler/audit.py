"""What must hold of the accounts after every event: each is the sum of the tasks that its instance was told to start and of the prompts promised to it,
and a prompt is promised exactly while its reservation is neither granted nor given up."""

from __future__ import annotations

from collections import Counter, defaultdict

from triptych.runtime.core.instance import InstanceRef
from triptych.runtime.scheduler.cluster import Cluster
from triptych.runtime.scheduler.ledger import Due, Ledger
from triptych.runtime.scheduler.state import Phase, Record
from triptych.runtime.scheduler.tasks import EncodeTask, Task, TaskState


def audit_accounts(cluster: Cluster, ledger: Ledger) -> None:
    """Raises AssertionError naming the first instance whose account differs from what the records say."""
    tasks: dict[InstanceRef, list[Task]] = defaultdict(list)
    requests: dict[InstanceRef, Counter[str]] = defaultdict(Counter)
    promised: dict[InstanceRef, set[str]] = defaultdict(set)
    for record in ledger.records.values():
        _audit_media(record, ledger)
        for task in record.live_tasks():
            tasks[task.ref].append(task)
            requests[task.ref][record.id] += 1
        if record.phase is Phase.RESERVING and record.prefill is not None:
            promised[record.prefill].add(record.id)
    for member in cluster.members:
        ref, name = member.ref, member.ref.id
        assert requests[ref] == member.requests, f"{name}: tasks of {requests[ref]}, accounted {member.requests}"
        wanted = promised[ref]
        assert wanted == member.promised.keys(), f"{name}: promised {wanted}, accounted {set(member.promised)}"
        here = [*tasks[ref], *member.promised.values()]
        held = sum(t.prefill_tokens for t in here), sum(t.sequences for t in here), sum(t.kv_tokens for t in here)
        account = member.prefill_tokens, member.sequences, member.kv_tokens
        assert held == account, f"{name}: (prefill tokens, sequences, KV tokens) are {held}, accounted {account}"
        patches = sum(t.patches for t in here if isinstance(t, EncodeTask))
        assert patches == member.patches, f"{name}: {patches} patches wait there, accounted {member.patches}"


def _audit_media(record: Record, ledger: Ledger) -> None:
    """What a request waits for of its media, it waits for in time and for a prompt that is being computed."""
    name, encoding = record.id, record.encoding
    wants = encoding is not None and bool(encoding.wanted)
    assert wants == (name in ledger.wanting), f"{name}: wants media: {wants}, or so it is listed"
    asked = any(task.state is TaskState.ASKED for task in record.encodes.values())
    timed = name in ledger.timers[Due.ENCODING]
    assert timed == (wants or asked), f"{name}: wants media: {wants}, asked for some: {asked}, but timed: {timed}"
    for for_decode in (False, True):
        wanting = encoding is not None and any(want.for_decode is for_decode for want in encoding.wanted)
        mine = [task for task in record.encodes.values() if task.for_decode is for_decode]
        live = (puller := record.puller(for_decode)) is not None and puller.state is not TaskState.ABORTING
        over = all(task.state is TaskState.ABORTING for task in mine) and not wanting
        assert live or over, f"{name}: media are wanted or encoded for nobody"
    for key, task in record.encodes.items():
        assert task.items and task.key == key, (
            f"{name}: an encode task on {task.ref.id} without items, or of another key"
        )
