"""Virtual time: events in order, and what becomes of those of processes that are stopped or dead."""

from __future__ import annotations

from triptych.runtime.simulation.events import EventLoop, Process


def test_events_happen_in_order_of_time_and_then_of_asking():
    loop, seen = EventLoop(), []
    for when, name in ((2.0, "c"), (1.0, "a"), (1.0, "b"), (3.0, "d")):
        loop.at(when, None, seen.append, name)
    assert loop.run_until(2.5)
    assert (seen, loop.now(), loop.pending) == (["a", "b", "c"], 2.5, 1)


def test_what_lies_in_the_past_happens_at_once():
    loop, seen = EventLoop(), []
    loop.run_until(5.0)
    loop.at(1.0, None, lambda _: seen.append(loop.now()))
    loop.run_until(6.0)
    assert seen == [5.0]


def test_an_event_may_ask_for_more_and_a_budget_bounds_them():
    loop = EventLoop()

    def again(count: int) -> None:
        loop.after(0.0, None, again, count + 1)

    loop.after(0.0, None, again, 0)
    assert not loop.run_until(1.0, most=100)
    assert (loop.handled, loop.now()) == (100, 0.0)


def test_a_stopped_process_hears_of_everything_in_order_when_it_goes_on():
    loop, process, seen = EventLoop(), Process("p"), []
    process.pause()
    loop.after(1.0, process, seen.append, "first")
    loop.after(2.0, process, seen.append, "second")
    loop.run_until(3.0)
    assert seen == []
    process.proceed()
    assert seen == ["first", "second"]


def test_a_dead_process_hears_of_nothing():
    loop, process, seen = EventLoop(), Process("p"), []
    process.pause()
    process.happen(seen.append, "before")
    process.kill()
    process.proceed()
    loop.after(1.0, process, seen.append, "after")
    loop.run_until(2.0)
    assert seen == []


def test_a_process_that_is_stopped_by_what_it_hears_keeps_the_rest():
    process, seen = Process("p"), []
    process.pause()
    process.happen(lambda _: process.pause(), None)
    process.happen(seen.append, "rest")
    process.proceed()
    assert seen == []
    process.proceed()
    assert seen == ["rest"]


def test_messages_come_before_everything_else_of_their_time_in_order_of_senders():
    loop, seen = EventLoop(), []
    loop.at(1.0, None, seen.append, "asked for first")
    loop.deliver(1.0, loop.key(5), seen.append, "of 5")
    loop.deliver(1.0, loop.key(2), seen.append, "of 2")
    loop.deliver(1.0, loop.key(5), seen.append, "of 5 again")
    loop.deliver(0.5, loop.key(100_000), seen.append, "earlier")
    loop.at(1.0, None, seen.append, "asked for last")
    assert loop.next == 0.5
    loop.run_until(1.0)
    assert seen == ["earlier", "of 2", "of 5", "of 5 again", "asked for first", "asked for last"]
    assert loop.next == float("inf")
