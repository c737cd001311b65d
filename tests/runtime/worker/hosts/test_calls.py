"""The leader makes its calls after it has sent them, and whoever replays them holds the same pool.

Both hosts are meshes of this process here, each with all of the heads; that several processes hold one mesh is for tests/system/test_hosts.py.
"""

from __future__ import annotations

from typing import Any, cast

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.runtime.transfer.harness import GRANULE, HEAD_DIM, HEADS, LAYERS, PAGE_SIZE, PAGES, logical_content
from triptych.proto.v1 import hosts_pb2
from triptych.runtime.core.errors import EngineError
from triptych.runtime.engine.compile_guard import no_compilation
from triptych.runtime.engine.engine import Engine
from triptych.runtime.engine.page_programs import PageMover
from triptych.runtime.instance.plan import Row, StepPlan
from triptych.runtime.worker.hosts.calls import plan_call
from triptych.runtime.worker.hosts.engine import LeadingEngine, SpreadEngine
from triptych.runtime.worker.hosts.page_mover import LeadingPageMover, SpreadPageMover
from triptych.runtime.worker.hosts.replay import Replay
from triptych.sharding.heads import head_layout

G = 2  # heads a chunk
NOTHING: Any = (None, None, None)  # config, weights and mesh of an engine that runs nothing


class Calls:
    """What was sent, as it arrives."""

    def __init__(self) -> None:
        self.sent: list[hosts_pb2.DeviceCall] = []

    def send(self, message: hosts_pb2.LeaderMessage) -> None:
        message.call.order = len(self.sent)
        self.sent.append(hosts_pb2.LeaderMessage.FromString(message.SerializeToString()).call)


class FakeEngine:
    """Stands for a follower's engine."""

    def __init__(self, pools: Any):
        self.pools = pools
        self.plans: list[StepPlan] = []

    def dispatch(self, plan: StepPlan) -> None:
        self.plans.append(plan)


def mover(kind: Any, first_device: int, *arguments: Any) -> Any:
    layout = head_layout(HEADS, HEADS, 2)
    mesh = Mesh(np.array(jax.devices()[first_device : first_device + 2]), ("tp",))
    made = kind(*arguments, mesh, layout, LAYERS, PAGES, PAGE_SIZE, HEAD_DIM, "float32", GRANULE)
    made.compile(sizes=[G])
    return made


def pools_of(made: PageMover, seed: int) -> Any:
    sharding = NamedSharding(Mesh(np.array(made.devices), ("tp",)), PartitionSpec(None, None, "tp"))
    content = logical_content(HEADS, "float32", seed)
    return tuple(tuple(jax.device_put(content[layer, kv], sharding) for kv in range(2)) for layer in range(LAYERS))


def read(pools: Any) -> np.ndarray:
    return np.stack([np.stack([np.asarray(array) for array in layer]) for layer in pools])


def test_pages_go_by_way_of_the_leader_and_every_host_has_them() -> None:
    calls = Calls()
    plain, leading, following = mover(PageMover, 0), mover(LeadingPageMover, 2, calls), mover(SpreadPageMover, 4)
    ours, engine = pools_of(leading, 1), FakeEngine(pools_of(following, 1))
    theirs = pools_of(plain, 2)
    replay = Replay(cast(Engine, engine), following)
    with no_compilation():
        # Out of a placement on one host, into the one on several.
        gathered = plain.gather(theirs, (3, 5), G)
        chunks = [np.asarray(gathered.chunks[chunk]) for chunk, _ in leading.destinations(G)]
        ours, sums = leading.scatter(ours, (1, 7), chunks, G)
        leading.verify(sums, gathered.host_checksums(), G)
        # And the other way.
        back = leading.gather(ours, (7, 1), G)
        assert back.host_checksums() != gathered.host_checksums(), "the pages have changed places"
        arrays = [jax.device_put(np.asarray(back.chunks[chunk]), device) for chunk, device in plain.destinations(G)]
        theirs, sums = plain.scatter(theirs, (5, 3), arrays, G)
        plain.verify(sums, back.host_checksums(), G)
        for call in calls.sent:
            replay.make(call)
    assert [call.WhichOneof("kind") for call in calls.sent] == ["scatter", "gather"]
    assert np.array_equal(read(ours)[:, :, [1, 7]], logical_content(HEADS, "float32", 2)[:, :, [3, 5]])
    assert np.array_equal(read(theirs), logical_content(HEADS, "float32", 2)), "there and back again"
    assert np.array_equal(read(engine.pools), read(ours))


def test_a_call_out_of_order_is_not_made() -> None:
    engine = FakeEngine(())
    replay = Replay(cast(Engine, engine), cast(SpreadPageMover, None))
    replay.make(plan_call(StepPlan(1)).call)
    late = plan_call(StepPlan(3)).call
    late.order = 2
    with pytest.raises(EngineError, match="call 2 came, expected 1"):
        replay.make(late)
    assert [plan.id for plan in engine.plans] == [1]


def test_a_call_that_this_version_does_not_know_is_an_error() -> None:
    replay = Replay(cast(Engine, FakeEngine(())), cast(SpreadPageMover, None))
    with pytest.raises(EngineError, match="which this version does not know"):
        replay.make(hosts_pb2.DeviceCall())


def test_a_plan_is_sent_before_it_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, seen = Calls(), []
    monkeypatch.setattr(Engine, "__init__", lambda self, *arguments: None)
    monkeypatch.setattr(Engine, "dispatch", lambda self, plan: seen.append((plan, len(calls.sent))))
    engine = LeadingEngine(*NOTHING, meet=lambda: None, calls=calls)
    plans = [StepPlan(1, rows=(Row(1, (5,), 0, 0, (1,)),)), StepPlan(2)]
    for plan in plans:
        engine.dispatch(plan)
    assert seen == [(plans[0], 1), (plans[1], 2)]
    assert [call.plan.id for call in calls.sent] == [1, 2]


def test_pools_are_made_once_all_hosts_are_there_and_never_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(Engine, "__init__", lambda self, *arguments: None)
    monkeypatch.setattr(Engine, "rebuild", lambda self: done.append("made"))
    engine = SpreadEngine(*NOTHING, meet=lambda: done.append("met"))
    engine.rebuild()
    engine.fail(RuntimeError("out of memory"))
    with pytest.raises(EngineError, match="out of memory; what several hosts share is not made anew"):
        engine.rebuild()
    assert done == ["met", "made"]
