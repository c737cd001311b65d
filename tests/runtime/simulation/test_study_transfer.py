"""KV between instances of a study: when it is there, by hand."""

from __future__ import annotations

import pytest

from triptych.runtime.core.request import Continuation, Request, SampleState
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.instance.messages import CancelPull, Imported, LeaseExtended, StagedReleased, StartPull
from triptych.runtime.instance.plan import Export
from triptych.runtime.simulation.events import EventLoop
from triptych.runtime.simulation.study_post import Post
from triptych.runtime.simulation.study_transfer import PullOpened, Transfers, Wire

LATENCY = 0.001
FINAL = Continuation(Request("r", "g", "m", (1, 2), SamplingParams()), (SampleState(0, (3,)),))


class Cluster:
    """Parties 1, 2, … with links of 1000 pages a second, or what `bandwidths` says."""

    def __init__(self, *bandwidths: float):
        self.loop = EventLoop()
        post = Post(self.loop, 1 + len(bandwidths))
        self.heard: list[tuple[int, float, object]] = []
        self.ends: list[Transfers] = []
        for number, bandwidth in enumerate(bandwidths, 1):

            def door(event: object, number: int = number) -> None:
                self.heard.append((number, self.loop.now(), event))

            end = Transfers(number, self.loop, post, Wire(bandwidth, LATENCY, 1), door)
            self.ends.append(end)

            def receive(message: object, end: Transfers = end, door=door) -> None:
                if isinstance(message, PullOpened):
                    end.opened(message)
                elif isinstance(message, LeaseExtended | StagedReleased):
                    door(message)
                else:
                    end.arriving(message)  # pyright: ignore[reportArgumentType]

            post.attach(number, receive)

    def pull(self, puller: int, source: int, key: int, pages: int) -> None:
        message = StartPull(f"r{key}", 1, key, "", "", 1, "", 2, 0, tuple(range(pages)), None)
        self.ends[puller - 1].pull(message, source)

    def at(self, when: float, action) -> None:
        self.loop.at(when, None, lambda _: action())

    def imported(self) -> dict[str, tuple[float, int]]:
        self.loop.run_until(1000.0)
        return {e.request: (at, e.times.pages_pulled) for _, at, e in self.heard if isinstance(e, Imported)}


def export(key: int, pages: int, last: bool = True) -> tuple[Export, ...]:
    return (Export(key, 0, tuple(range(pages)), last),)


def test_pages_that_wait_for_the_puller_take_two_latencies_and_their_time():
    c = Cluster(1000.0, 1000.0)
    c.ends[0].stage(7)
    c.ends[0].complete(7, FINAL)
    c.ends[0].exported(export(7, 10))
    c.pull(2, 1, 7, 10)
    assert c.imported() == {"r7": (pytest.approx(LATENCY + 0.01 + LATENCY), 10)}
    (released,) = [(n, at) for n, at, e in c.heard if isinstance(e, StagedReleased)]
    assert released == (1, pytest.approx(0.012 + LATENCY))


def test_pages_flow_while_others_are_computed_and_the_slower_link_counts():
    c = Cluster(1000.0, 100.0)
    c.ends[0].stage(7)
    c.pull(2, 1, 7, 20)
    c.at(1.0, lambda: c.ends[0].exported(export(7, 10, False)))
    c.at(1.05, lambda: (c.ends[0].complete(7, FINAL), c.ends[0].exported(export(7, 10))))
    assert c.imported() == {"r7": (pytest.approx(1.0 + 0.2 + LATENCY), 20)}


def test_a_source_serves_one_after_the_other():
    c = Cluster(1000.0, 1000.0, 1000.0)
    for puller, key in ((2, 7), (3, 8)):
        c.ends[0].stage(key)
        c.ends[0].complete(key, FINAL)
        c.pull(puller, 1, key, 100)
    c.at(1.0, lambda: c.ends[0].exported((*export(7, 100), *export(8, 100))))
    assert c.imported() == {"r7": (pytest.approx(1.1 + LATENCY), 100), "r8": (pytest.approx(1.2 + LATENCY), 100)}


def test_a_puller_takes_in_one_after_the_other():
    c = Cluster(1000.0, 1000.0, 1000.0)
    for source, key, at in ((1, 7, 1.0), (2, 8, 1.05)):
        c.ends[source - 1].stage(key)
        c.ends[source - 1].complete(key, FINAL)
        c.pull(3, source, key, 100)
        c.at(at, lambda source=source, key=key: c.ends[source - 1].exported(export(key, 100)))
    assert c.imported() == {"r7": (pytest.approx(1.1 + LATENCY), 100), "r8": (pytest.approx(1.2 + LATENCY), 100)}


def test_a_final_record_never_overtakes_the_pages():
    c = Cluster(1000.0, 1000.0, 1000.0)
    for puller, key in ((2, 7), (3, 8)):
        c.ends[0].stage(key)
        c.pull(puller, 1, key, 100)
    c.at(1.0, lambda: c.ends[0].exported((*export(7, 100), *export(8, 100))))
    c.at(1.01, lambda: (c.ends[0].complete(8, FINAL), c.ends[0].complete(7, FINAL)))
    assert c.imported() == {"r7": (pytest.approx(1.1 + LATENCY), 100), "r8": (pytest.approx(1.2 + LATENCY), 100)}


def test_nothing_to_pull_is_only_the_final_record():
    c = Cluster(1000.0, 1000.0)
    c.ends[0].stage(7)
    c.pull(2, 1, 7, 0)
    c.at(1.0, lambda: c.ends[0].complete(7, FINAL))
    assert c.imported() == {"r7": (pytest.approx(1.0 + LATENCY), 0)}


def test_a_cancelled_pull_and_a_closed_staging_bring_nothing():
    c = Cluster(1000.0, 1000.0)
    for key in (7, 8):
        c.ends[0].stage(key)
        c.ends[0].complete(key, FINAL)
        c.ends[0].exported(export(key, 10))
        c.pull(2, 1, key, 10)
    c.ends[0].unstage(8)
    c.at(0.005, lambda: c.ends[1].cancel(CancelPull("r7")))
    assert c.imported() == {}


def test_a_sign_of_life_reaches_the_source():
    c = Cluster(1000.0, 1000.0)
    c.pull(2, 1, 7, 10)
    c.at(1.0, c.ends[1].extend)
    c.imported()
    assert c.heard == [(1, pytest.approx(1.0 + LATENCY), LeaseExtended(7))]
