"""One load from several processes."""

from __future__ import annotations

import multiprocessing
import os

import pytest

from tests.tools.bench.load_clients import Counting, Dying
from triptych.runtime.core.errors import ConfigError
from triptych.tools.bench import processes
from triptych.tools.bench.workload import Item


def _items(count: int) -> list[Item]:
    return [Item(number * 0.01, (1, 2), number + 1, True) for number in range(count)]


def test_records_come_in_the_order_of_the_items_from_all_processes() -> None:
    told: list[tuple[int, int]] = []
    records = processes.run(Counting, _items(7), 3, lambda *at: told.append(at), warm_up=_items(2))
    assert [record.output_tokens for record in records] == [1, 2, 3, 4, 5, 6, 7]
    pids = [record.input_tokens for record in records]
    assert pids[:3] == pids[3:6] and len(set(pids)) == 3 and os.getpid() not in pids
    assert told[-1] == (7, 7) and [done for done, _ in told] == sorted(done for done, _ in told)
    # All of them count from the same moment.
    assert [round(record.scheduled - records[0].scheduled, 6) for record in records] == [
        round(number * 0.01, 6) for number in range(7)
    ]
    assert not multiprocessing.active_children()


def test_there_are_no_more_processes_than_items() -> None:
    (record,) = processes.run(Counting, _items(1), 4, lambda done, total: None)
    assert record.ok and record.output_tokens == 1


def test_a_process_that_ends_early_is_an_error() -> None:
    with pytest.raises(ConfigError, match="ended with status 3"):
        processes.run(Dying, _items(2), 2, lambda done, total: None)
    assert not multiprocessing.active_children()
