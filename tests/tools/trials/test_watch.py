"""Growth is what remains after a warm-up: a start-up ramp and single spikes are none."""

from __future__ import annotations

import asyncio
import os

from triptych.tools.trials.watch import Sample, Watch, levels, look, table

MB = 10**6


def samples(rss: list[int], fds: int = 10) -> list[Sample]:
    return [Sample(value, fds, 5) for value in rss]


def grown(rss: list[int]) -> bool:
    return next(level for level in levels("toy", samples(rss)) if level.measure == "rss").grown


def test_a_ramp_at_the_start_and_spikes_are_no_growth() -> None:
    assert not grown([10 * MB * i for i in range(1, 11)] + [100 * MB] * 30)
    assert not grown(([100 * MB] * 9 + [300 * MB]) * 4)


def test_a_slow_leak_is_growth_and_two_per_cent_are_not() -> None:
    assert grown([100 * MB + i * MB for i in range(40)])
    assert not grown([100 * MB] * 20 + [int(101.9 * MB)] * 20)


def test_what_is_bounded_and_replaced_may_fill_up() -> None:
    def found(process: str, after: int) -> bool:
        return next(x for x in levels(process, samples([40 * MB] * 20 + [after * MB] * 20)) if x.measure == "rss").grown

    assert found("encode-0", 43) and not found("decoder-0", 43)
    assert found("decoder-0", 80)


def test_a_few_files_come_and_go() -> None:
    steady, leaking = samples([MB] * 40), samples([MB] * 30) + samples([MB] * 10, fds=19)
    assert [level.grown for level in levels("toy", steady)] == [False] * 3
    assert [level.measure for level in levels("toy", leaking) if level.grown] == ["fds"]
    assert "GROWN" in table(levels("toy", leaking))


def test_a_process_is_looked_at_until_it_ends() -> None:
    own = look(os.getpid())
    assert own is not None and own.rss > MB and own.fds > 2 and own.threads >= 1
    assert look(2**22 + 1) is None


def test_a_new_pid_begins_a_new_series_and_short_ones_claim_nothing() -> None:
    async def scenario() -> Watch:
        watch = Watch(lambda: {"self": os.getpid(), "gone": 2**22 + 1}, interval=0.001)
        task = asyncio.create_task(watch.run())
        while len(watch.samples.get(("self", os.getpid()), ())) < 15:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        watch.samples["self", 1] = watch.samples["self", os.getpid()][:3]
        return watch

    watch = asyncio.run(scenario())
    assert set(watch.samples) == {("self", os.getpid()), ("self", 1)}
    assert [level.measure for level in watch.levels()] == ["rss", "fds", "threads"]
