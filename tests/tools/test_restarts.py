"""When a process that died is started again, with time as an argument; and the ports that are kept for it."""

from __future__ import annotations

import asyncio
import socket

import grpc
import pytest

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.wire.listening import listen
from triptych.tools.ports import ReservedPort
from triptych.tools.restarts import FIRST, LOOP, MOST, SETTLED, STABLE, Restarts


def test_restarts_wait_ever_longer_until_the_longest_and_say_when_they_loop():
    restarts = Restarts()
    told = [restarts.died("a", 1.0, 10.0 * n) for n in range(12)]
    assert [r.delay for r in told[:4]] == [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST]
    assert told[-1].delay == MOST
    assert [r.looping for r in told] == [n + 1 >= LOOP for n in range(12)]
    assert (told[4].deaths, told[4].seconds) == (5, 40.0)


def test_a_process_that_was_ready_for_long_begins_a_new_story_and_others_have_their_own():
    restarts = Restarts()
    for n in range(3):
        restarts.died("a", None, float(n))
    assert restarts.died("b", None, 3.0).deaths == 1
    assert restarts.died("a", STABLE - 1, 4.0).deaths == 4
    again = restarts.died("a", STABLE, 100.0)
    assert (again.deaths, again.delay, again.seconds) == (1, FIRST, 0.0)


def test_a_process_that_had_served_is_started_again_at_once_until_it_loops():
    restarts = Restarts()
    told = [restarts.died("a", SETTLED, 5.0 * n) for n in range(LOOP + 3)]
    assert [r.delay for r in told] == [FIRST] * LOOP + [2 * FIRST, 4 * FIRST, 8 * FIRST]
    assert [r.deaths for r in told] == list(range(1, LOOP + 4)), "it is said all the same"
    assert restarts.died("a", 1.0, 100.0).delay > told[-1].delay


def test_a_reserved_port_is_nobody_elses_while_servers_on_it_come_and_go():
    async def serve(port: int) -> None:
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        assert listen(server, "127.0.0.1", port) == port
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await asyncio.wait_for(channel.channel_ready(), 60)
        with pytest.raises(ConfigError, match="cannot listen"):
            ReservedPort("127.0.0.1", port)
        await server.stop(0)

    with ReservedPort("127.0.0.1", 0) as reserved:
        assert reserved.address == f"127.0.0.1:{reserved.port}"
        for _ in range(2):
            with socket.socket() as plain, pytest.raises(OSError, match="in use"):
                plain.bind(("127.0.0.1", reserved.port))
            asyncio.run(serve(reserved.port))


def test_a_host_that_is_not_this_machine_is_a_config_error():
    with pytest.raises(ConfigError, match=r"cannot listen on 203\.0\.113\.1:0"):
        ReservedPort("203.0.113.1", 0)
