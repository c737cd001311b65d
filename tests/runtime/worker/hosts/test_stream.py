"""Leader and followers on their streams: who may come, what is said in which order, and how the end of one is the end of all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from triptych.proto.v1 import hosts_pb2
from triptych.runtime.core.errors import IncompatibleError, InstanceLostError, TriptychError
from triptych.runtime.wire.tls import Tls
from triptych.runtime.worker.hosts.calls import gather_call
from triptych.runtime.worker.hosts.config import HostsConfig
from triptych.runtime.worker.hosts.follower import Follower
from triptych.runtime.worker.hosts.job import free_port
from triptych.runtime.worker.hosts.leader import Leader
from triptych.tools.authority import Authority

HOST = "127.0.0.1"
SETTINGS = {"max_num_seqs": "8", "model": "abc", "version of jax": "1.2.3"}


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test on an event loop of its own."""

    def run() -> None:
        asyncio.run(test())

    run.__doc__ = test.__doc__
    return run


@dataclass
class Cast:
    """A leader, and what it was told."""

    leader: Leader
    hosts: HostsConfig
    lost: list[str] = field(default_factory=list)
    calls: dict[int, list[hosts_pb2.DeviceCall]] = field(default_factory=dict)

    def follower(self, index: int, token: str | None = None, tls: Tls | None = None, **differing: str) -> Follower:
        heard = self.calls.setdefault(index, [])
        hosts = replace(self.hosts, index=index)
        return Follower(hosts, SETTINGS | differing, heard.append, token=token, tls=tls)


@asynccontextmanager
async def led(
    count: int, start_seconds: float = 20.0, token: str | None = None, tls: Tls | None = None
) -> AsyncIterator[Cast]:
    lost: list[str] = []
    hosts = HostsConfig(count, 0, f"{HOST}:{free_port(HOST)}", "cpu", start_seconds)
    leader = Leader(hosts, SETTINGS, lost.append, host=HOST, token=token, tls=tls)
    await leader.open()
    try:
        yield Cast(leader, hosts, lost)
    finally:
        await leader.close("the test is over")


@asynccontextmanager
async def joined(cast: Cast, job_port: int = 7) -> AsyncIterator[list[tuple[Follower, asyncio.Task[str]]]]:
    """All followers, with what they hear."""
    followers = [cast.follower(index) for index in range(1, cast.hosts.count)]
    ports = asyncio.gather(*(follower.join() for follower in followers))
    await cast.leader.gather(job_port)
    assert set(await ports) == {job_port}
    pairs = [(follower, asyncio.create_task(follower.listen())) for follower in followers]
    try:
        yield pairs
    finally:
        for follower, listening in pairs:
            await follower.leave("the test is over")
            listening.cancel()
        await asyncio.gather(*(listening for _, listening in pairs), return_exceptions=True)


async def until(found: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not found():
            await asyncio.sleep(0.01)


@in_loop
async def test_every_follower_gets_every_call_in_the_order_of_sending() -> None:
    async with led(3) as cast, joined(cast):
        for page in range(1, 50):
            cast.leader.send(gather_call([page], 2, 0))
        await until(lambda: all(len(calls) == 49 for calls in cast.calls.values()))
        for calls in cast.calls.values():
            assert [call.order for call in calls] == list(range(49))
            assert [list(call.gather.pages) for call in calls] == [[page] for page in range(1, 50)]


@in_loop
async def test_hosts_meet_and_hear_the_least_number() -> None:
    async with led(3) as cast, joined(cast) as followers:
        numbers = ((cast.leader, 90), *((follower, 70 + i) for i, (follower, _) in enumerate(followers)))
        met = await asyncio.gather(*(asyncio.to_thread(host.meet, "pages", number) for host, number in numbers))
        assert met == [70, 70, 70]


@in_loop
async def test_a_host_that_does_not_come_is_named() -> None:
    async with led(4, start_seconds=0.5) as cast:
        there = cast.follower(2)
        joining = asyncio.create_task(there.join())
        with pytest.raises(InstanceLostError, match=r"host 1 and 3 of 4 has not come .*there: 0, 2 \(.*within 0.5 s"):
            await cast.leader.gather(7)
        joining.cancel()
        await asyncio.gather(joining, return_exceptions=True)
        await there.leave("the test is over")


@in_loop
async def test_a_host_that_does_not_come_to_a_point_is_named() -> None:
    async with led(2, start_seconds=0.5) as cast, joined(cast):
        with pytest.raises(InstanceLostError, match="host 1 has not come to the point 'compiled' within 0.5 s"):
            await asyncio.to_thread(cast.leader.meet, "compiled")


@in_loop
async def test_a_leader_that_does_not_come_is_waited_for_as_long_as_a_start_may_take() -> None:
    alone = HostsConfig(2, 1, f"{HOST}:{free_port(HOST)}", "cpu", 0.7)
    follower = Follower(alone, SETTINGS, lambda call: None)
    with pytest.raises(InstanceLostError, match=r"host 1 of 2 could not join its leader at .* within 0.7 s"):
        await follower.join()
    await follower.leave("the test is over")


@in_loop
async def test_a_host_with_other_settings_is_refused_with_the_difference() -> None:
    async with led(2) as cast:
        other = cast.follower(1, max_num_seqs="4", model="xyz")
        with pytest.raises(IncompatibleError) as refused:
            await other.join()
        assert "max_num_seqs is 4, the leader has 8; model is xyz, the leader has abc" in refused.value.message
        assert "jax" not in refused.value.message
        await other.leave("the test is over")


@in_loop
async def test_a_host_of_another_number_of_hosts_is_refused() -> None:
    async with led(2) as cast:
        other = Follower(replace(cast.hosts, count=3, index=2), SETTINGS, lambda call: None)
        with pytest.raises(IncompatibleError, match="host 2 of 3 is none of the followers 1 to 1"):
            await other.join()
        await other.leave("the test is over")


@in_loop
async def test_a_host_without_the_token_is_refused() -> None:
    async with led(2, token="secret") as cast:
        other = cast.follower(1, token="guess")
        with pytest.raises(TriptychError, match="token is not valid"):
            await other.join()
        await other.leave("the test is over")


@in_loop
async def test_with_tls_only_a_host_with_a_certificate_of_the_authority_comes() -> None:
    inside, others = Authority.create(), Authority.create()
    mine = Tls(inside.certificate, *inside.issue("host", hosts=(HOST,)))
    theirs = Tls(others.certificate, *others.issue("host", hosts=(HOST,)))
    async with led(2, start_seconds=1.0, tls=mine) as cast:
        for strange in (None, theirs):
            other = cast.follower(1, tls=strange)
            with pytest.raises(InstanceLostError, match="could not join its leader"):
                await other.join()
            await other.leave("the test is over")
        follower = cast.follower(1, tls=mine)
        port = asyncio.create_task(follower.join())
        await cast.leader.gather(7)
        assert await port == 7
        await follower.leave("the test is over")


@in_loop
async def test_a_second_host_of_the_same_index_waits_until_the_first_is_gone() -> None:
    async with led(2) as cast, joined(cast):
        cast_hosts = replace(cast.hosts, index=1, start_seconds=0.3)
        second = Follower(cast_hosts, SETTINGS, lambda call: None)
        with pytest.raises(InstanceLostError, match="host 1 of 2 is not wanted now: there is one already"):
            await second.join()
        await second.leave("the test is over")


@in_loop
async def test_a_follower_that_goes_ends_the_instance_with_its_reason() -> None:
    async with led(3) as cast, joined(cast) as followers:
        await followers[0][0].leave("EngineError: out of memory")
        await until(lambda: cast.lost)
        (reason,) = cast.lost
        assert reason.startswith("host 1 of 3 (ipv4:127.0.0.1") and "out of memory" in reason
        with pytest.raises(InstanceLostError, match="out of memory"):
            await asyncio.to_thread(cast.leader.meet, "ready")
        await cast.leader.close(reason, failed=True)
        with pytest.raises(InstanceLostError, match=r"the leader at .* is lost: host 1 of 3 .* out of memory"):
            await followers[1][1]
    assert len(cast.lost) == 1


@in_loop
async def test_a_host_of_which_nothing_is_heard_is_lost() -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("triptych.runtime.worker.hosts.follower.BEAT", 60.0)
        patched.setattr("triptych.runtime.worker.hosts.leader.SILENCE", 0.3)
        async with led(2) as cast, joined(cast):
            await until(lambda: cast.lost)
            assert "host 1 of 2" in cast.lost[0] and "nothing was heard of it for 0.3 s" in cast.lost[0]


@in_loop
async def test_a_leader_of_which_nothing_is_heard_is_lost() -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("triptych.runtime.worker.hosts.leader.BEAT", 60.0)
        patched.setattr("triptych.runtime.worker.hosts.follower.SILENCE", 0.3)
        async with led(2) as cast, joined(cast) as followers:
            with pytest.raises(InstanceLostError, match=r"the leader at .* is lost: nothing was heard of it for 0.3 s"):
                await followers[0][1]


@in_loop
async def test_a_follower_that_goes_before_all_are_there_may_come_again() -> None:
    async with led(2) as cast:
        first = cast.follower(1)
        joining = asyncio.create_task(first.join())
        await until(lambda: cast.leader._links)
        joining.cancel()
        await asyncio.gather(joining, return_exceptions=True)
        await first.leave("restarted")
        await until(lambda: not cast.leader._links)
        async with joined(cast):
            assert not cast.lost


@in_loop
async def test_followers_of_a_leader_that_ends_in_good_order_hear_why() -> None:
    async with led(2) as cast, joined(cast) as followers:
        closing = asyncio.create_task(cast.leader.close("told to end"))
        ((follower, listening),) = followers
        assert await listening == "told to end"
        await follower.leave("its leader ended")
        await closing
    assert not cast.lost
