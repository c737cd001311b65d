"""Prompts beside the queue: what happens to one of them costs the same, however many others wait."""

from __future__ import annotations

import pytest

from tests.runtime.instance.media import asked, check, feed, item, local, prompt_node, pulled, wanted
from triptych.runtime.core.errors import Status
from triptych.runtime.core.tasks import AbortTask
from triptych.runtime.instance import gathering


def _looks(monkeypatch: pytest.MonkeyPatch, others: int) -> int:
    """How often a prompt was looked at while one is fed, computed and decoded beside `others` that wait, half of them without room."""
    node = prompt_node(max_waiting=others + 1, media_pages=others + 3)
    for number in range(others):
        local(node, asked(f"o{number}", item(f"o{number}", 1)))
    looks = 0
    real = gathering.use_feeds

    def counted(*args):
        nonlocal looks
        looks += 1
        return real(*args)

    req = asked("a", item("o0", 1))
    local(node, req)
    with monkeypatch.context() as patch:
        patch.setattr(gathering, "use_feeds", counted)
        (pull,) = feed(node, asked("o0", item("o0", 1)), 0, key=1)
        pulled(node, asked("o0", item("o0", 1)), pull, "o0")
        node.run()
    check(node, req)
    return looks


def test_an_event_about_one_prompt_looks_at_no_other(monkeypatch):
    few, many = _looks(monkeypatch, 10), _looks(monkeypatch, 150)
    assert few == many and few < 12


def test_all_that_wait_for_the_same_item_are_found_by_it():
    node = prompt_node(max_waiting=40)
    reqs = [asked(f"r{number}", item("x", number % 5 + 1)) for number in range(30)]
    for req in reqs:
        local(node, req)
    assert wanted(node) == [("r0", (0,))]
    node.command(AbortTask("r0", Status.CANCELLED, "gone"))
    assert wanted(node) == [("r0", (0,)), ("r1", (0,))], "one of those that are left wants it"
    (pull,) = feed(node, reqs[1], 0)
    pulled(node, reqs[1], pull, "x")
    node.run()
    for req in reqs[1:]:
        check(node, req)


def test_room_goes_to_the_oldest_whoever_lets_go():
    node = prompt_node(media_pages=3, max_waiting=20)
    reqs = [asked(f"r{number}", item(f"x{number}", 1)) for number in range(12)]  # each needs both pages
    for req in reqs:
        local(node, req)
    for number in (5, 0, 6, 1):
        node.command(AbortTask(f"r{number}", Status.CANCELLED, "gone"))
    media = node.core.state.media
    assert media is not None
    for number in (2, 3, 4, 7, 8, 9, 10, 11):
        assert [each.fill.task.request.id for each in media.beside if each.holds] == [f"r{number}"]
        (pull,) = feed(node, reqs[number], 0, key=number + 1)
        pulled(node, reqs[number], pull, f"x{number}")
        node.run()
        check(node, reqs[number])
