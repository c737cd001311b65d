"""Connections: ordered and reliable while they live, and all the ways in which they end."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from triptych.runtime.simulation.events import EventLoop, Process
from triptych.runtime.simulation.network import End, Network, NetworkConfig

CONFIG = NetworkConfig(latency=0.1, jitter=1.0, bandwidth=10.0, keepalive=1.0, connect_timeout=1.0)


@dataclass
class Peer:
    """A process that notes what it hears, and when."""

    process: Process
    heard: list[object] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    end: End | None = None


class Pair:
    """Two processes and a connection from one to the other."""

    def __init__(self, seed: int = 1):
        self.loop = EventLoop()
        self.network = Network(self.loop, CONFIG, random.Random(seed))
        self.near, self.far = Peer(Process("near")), Peer(Process("far"))
        self.network.listen(self.far.process, self._accept)
        self.dial()

    def dial(self) -> End:
        self.near.end = self.network.dial(
            self.near.process, "far", "chat", lambda m: self._hear(self.near, m), self.near.closed.append
        )
        return self.near.end

    def _accept(self, end: End, dialler: str, service: str) -> None:
        assert (dialler, service) == ("near", "chat")
        self.far.end = end
        end.on_message = lambda m: self._hear(self.far, m)
        end.on_closed = self.far.closed.append

    def _hear(self, peer: Peer, message: object) -> None:
        peer.heard.append(message)
        peer.times.append(self.loop.now())

    def run(self, seconds: float) -> None:
        self.loop.run_until(self.loop.now() + seconds)


def test_messages_arrive_in_order_and_both_ways():
    pair = Pair()
    assert pair.near.end is not None
    for number in range(20):
        pair.near.end.send(number)
    pair.run(1.0)
    assert pair.far.heard == list(range(20))
    assert pair.far.end is not None
    pair.far.end.send("back")
    pair.run(1.0)
    assert pair.near.heard == ["back"]


def test_bulk_of_one_direction_follows_one_another_and_messages_pass_it():
    pair = Pair()
    assert pair.near.end is not None
    for number in range(3):
        pair.near.end.send_bulk(number, size=10.0)
    pair.near.end.send("small")
    pair.run(10.0)
    assert pair.far.heard == ["small", 0, 1, 2]
    assert [int(time) for time in pair.far.times] == [0, 1, 2, 3]


@pytest.mark.parametrize(("factor", "expected"), [(10.0, [3, 4, 5]), (0.1, [0, 0, 0])])
def test_a_change_of_speed_counts_for_bulk_under_way(factor: float, expected: list[int]):
    """For two and a half seconds from 0.5 on, everything takes `factor` times as long: what is under way, and what comes then."""
    pair = Pair()
    assert pair.near.end is not None
    for number in range(2):
        pair.near.end.send_bulk(number, size=10.0)
    pair.run(0.5)
    pair.network.slow("near", "far", factor)
    pair.near.end.send_bulk(2, size=10.0)
    pair.run(2.5)
    pair.network.slow("near", "far", 1.0)
    pair.run(10.0)
    assert pair.far.heard == [0, 1, 2]
    assert [int(time) for time in pair.far.times] == expected


def test_nobody_listens():
    pair = Pair()
    pair.network.dial(pair.near.process, "nowhere", "chat", pair.near.heard.append, pair.near.closed.append)
    pair.run(1.0)
    assert pair.near.closed == ["nobody listens at nowhere"]


def test_what_was_sent_before_closing_arrives_before_the_end():
    pair = Pair()
    assert pair.near.end is not None
    pair.near.end.send("last words")
    pair.near.end.close("bye")
    pair.near.end.send("nothing any more")
    pair.run(1.0)
    assert (pair.far.heard, pair.far.closed, pair.near.closed) == (["last words"], ["bye"], [])
    assert pair.network.connections == 0


@pytest.mark.parametrize("seed", range(8))
def test_the_last_words_of_the_dead_arrive_or_do_not_and_the_end_always_does(seed: int):
    pair = Pair(seed)
    assert pair.near.end is not None
    pair.run(1.0)
    pair.near.end.send("help")
    pair.near.process.kill()
    pair.network.bury(pair.near.process)
    pair.run(1.0)
    assert pair.far.heard in ([], ["help"])
    assert pair.far.closed == ["near died"]


def test_both_fates_of_last_words_occur():
    fates = set()
    for seed in range(8):
        pair = Pair(seed)
        assert pair.near.end is not None
        pair.run(1.0)
        pair.near.end.send("help")
        pair.near.end.abort("aborted")
        pair.run(1.0)
        fates.add(len(pair.far.heard))
    assert fates == {0, 1}


def test_a_short_cut_delays_and_keeps_the_order():
    pair = Pair()
    assert pair.near.end is not None
    pair.run(1.0)
    pair.near.end.send(1)
    pair.network.cut("near", "far")
    pair.near.end.send(2)
    pair.run(0.5)
    assert pair.far.heard == []
    pair.near.end.send(3)
    pair.network.heal("near", "far")
    pair.run(5.0)
    assert pair.far.heard == [1, 2, 3]
    assert not pair.near.closed and not pair.far.closed


def test_both_ends_give_up_in_a_long_cut_and_later_dialling_works():
    pair = Pair()
    pair.run(1.0)
    pair.network.cut("near", "far")
    pair.run(2.5)
    assert len(pair.near.closed) == len(pair.far.closed) == 1
    pair.dial()
    pair.run(1.5)
    assert len(pair.near.closed) == 2, "dialling across a cut times out"
    pair.network.heal("near", "far")
    pair.dial().send("again")
    pair.run(1.0)
    assert pair.far.heard == ["again"]


def test_a_process_that_stands_still_for_too_long_loses_its_connections_and_hears_so_afterwards():
    pair = Pair()
    pair.run(1.0)
    pair.far.process.pause()
    pair.network.freeze(pair.far.process)
    pair.run(0.5)
    assert not pair.near.closed
    pair.run(2.0)
    assert len(pair.near.closed) == 1 and not pair.far.closed
    pair.far.process.proceed()
    assert len(pair.far.closed) == 1


def test_a_vanished_host_is_noticed_by_keepalive_or_when_it_is_back():
    for pause, expected in ((2.5, "keepalive was not answered by far"), (0.1, "far knows nothing of this connection")):
        pair = Pair()
        pair.run(1.0)
        pair.far.process.kill()
        pair.network.vanish(pair.far.process)
        pair.run(pause)
        reborn = Process("far")
        pair.network.listen(reborn, lambda end, dialler, service: None)
        pair.run(1.0)
        assert pair.near.closed == [expected]
        assert pair.network.connections == 0


def test_a_reset_ends_connections_at_both_ends():
    pair = Pair()
    pair.run(1.0)
    pair.network.reset("near", "far")
    pair.run(1.0)
    assert pair.near.closed == pair.far.closed == ["connection reset"]


def test_inside_one_process_nothing_takes_time_and_nothing_is_cut():
    loop = EventLoop()
    network = Network(loop, CONFIG, random.Random(1))
    process, heard = Process("self"), []

    def accept(end: End, dialler: str, service: str) -> None:
        end.on_message = heard.append

    network.listen(process, accept)
    end = network.dial(process, "self", "chat", heard.append, heard.append)
    end.send("hello")
    loop.run_until(0.0)
    assert heard == ["hello"]
