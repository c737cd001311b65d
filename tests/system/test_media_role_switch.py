"""An instance becomes prefill for a while and encode again, under questions about pictures: no answer changes, and nothing compiles."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.system.toy import shape_of
from tests.system.toy_media import REQUESTS, assert_nothing_held, cluster_with, picture, plans_of, run_one
from triptych.runtime.client import Client
from triptych.runtime.core.instance import Role
from triptych.runtime.engine.compile_guard import no_compilation
from triptych.runtime.worker.config import InstancePlan
from triptych.tools.control import ControlConnection, switch_role

E, P = frozenset({Role.ENCODE}), frozenset({Role.PREFILL})
ASKING = 4


@pytest.mark.limit(600)
def test_an_instance_switched_between_encode_and_prefill_loses_nothing() -> None:
    plans = (*plans_of("1E1P1D"), InstancePlan("either-0", E, switchable=P))
    with cluster_with([plans], "2E1P1D", media_pages=5) as cluster, Client(cluster.address) as client:
        expected = {name: shape_of(run_one(client, name)) for name in REQUESTS}
        at = ControlConnection(scheduler=cluster.address)
        done, fresh = threading.Event(), itertools.count(100)

        def ask(number: int) -> int:
            """Question after question until the last switch is over. A new salt and pools of four pictures: all is computed again."""
            rounds = 0
            while not done.is_set():
                for name, wanted in expected.items():
                    assert shape_of(run_one(client, name, f"{number}/{rounds}")) == wanted, name
                rounds += 1
            return rounds

        def ask_about(images: list[bytes]) -> None:
            client.complete("<|pad|> or <|pad|>?", images=images, max_tokens=2, temperature=0, timeout=120)

        def work(counter: str) -> int:
            (found,) = (snapshot for snapshot in cluster.snapshots() if snapshot.info.ref.id == "either-0")
            return found.counters[counter]

        with no_compilation(), ThreadPoolExecutor(ASKING) as threads:
            jobs = [threads.submit(ask, number) for number in range(ASKING)]
            try:
                for roles, counter in (
                    (P, "prefill_tokens"),
                    (E, "encoded_items"),
                    (P, "prefill_tokens"),
                    (E, "encoded_items"),
                ):
                    before = work(counter)
                    assert 0 < switch_role(at, "either-0", roles, force=False) < 60
                    until = time.monotonic() + 120
                    while work(counter) == before:
                        assert time.monotonic() < until, f"{counter} of either-0 stay at {before}"
                        # Pictures that nobody knows: the others go to whoever encoded them last.
                        ask_about([picture(next(fresh)), picture(next(fresh))])
            finally:
                done.set()
            assert all(job.result() >= 1 for job in jobs)
        (switched,) = (snapshot for snapshot in cluster.snapshots() if snapshot.info.ref.id == "either-0")
        assert switched.counters["role_switches"] == 4
        assert_nothing_held(cluster)
