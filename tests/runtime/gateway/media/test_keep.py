"""Processed media: what is held is bounded, what is not makes room, and nothing is counted twice."""

from __future__ import annotations

import random

import pytest

from triptych.runtime.core.errors import OverloadedError
from triptych.runtime.core.media import MediaKind
from triptych.runtime.gateway.media.keep import PixelKeep
from triptych.runtime.gateway.media.pieces import Piece


def pieces(size: int) -> tuple[Piece, ...]:
    return (Piece("h", MediaKind.IMAGE, 1, 1, (1, 1, 1), (1, 1, 1), (size,), bytes(size), 0),)


def test_what_was_put_is_found_while_it_is_held_and_a_while_after():
    keep = PixelKeep(limit=100, spare=50, retry_after=1.0)
    assert keep.hold("a") is None
    mine = keep.put("a", pieces(40))
    assert keep.put("a", pieces(40)) is mine and keep.held_bytes == 40
    keep.release("a")
    keep.release("a")
    assert (keep.held_bytes, keep.idle_bytes) == (0, 40)
    assert keep.hold("a") is mine
    assert (keep.held_bytes, keep.idle_bytes) == (40, 0)


def test_beyond_the_limit_new_media_are_refused_with_a_hint_and_nothing_changes():
    keep = PixelKeep(limit=100, spare=100, retry_after=2.5)
    keep.put("a", pieces(60))
    with pytest.raises(OverloadedError, match="60 of 100 bytes .* 50 more") as caught:
        keep.put("b", pieces(50))
    assert caught.value.retry_after == 2.5
    assert (keep.held_bytes, len(keep)) == (60, 1)
    keep.check_room()
    keep.put("c", pieces(40))
    with pytest.raises(OverloadedError):
        keep.check_room()


def test_idle_media_that_cannot_be_held_again_stay_idle():
    keep = PixelKeep(limit=100, spare=60, retry_after=1.0)
    keep.put("a", pieces(60))
    keep.release("a")
    keep.put("b", pieces(40))
    assert keep.idle_bytes == 60
    keep.put("c", pieces(10))  # makes room: a goes
    assert (keep.idle_bytes, keep.hold("a")) == (0, None)


def test_the_longest_unused_goes_first():
    keep = PixelKeep(limit=1000, spare=100, retry_after=1.0)
    for name in "abc":
        keep.put(name, pieces(40))
    for name in "abc":
        keep.release(name)
    assert [keep.hold(name) is not None for name in "abc"] == [False, True, True]


def test_counts_are_right_after_any_sequence_of_calls():
    dice = random.Random(7)
    keep = PixelKeep(limit=300, spare=120, retry_after=1.0)
    held: list[str] = []
    size = {name: dice.randrange(10, 90) for name in "abcdefgh"}
    for _ in range(5000):
        if held and dice.random() < 0.5:
            keep.release(held.pop(dice.randrange(len(held))))
        else:
            name = dice.choice("abcdefgh")
            try:
                if keep.hold(name) is None:
                    keep.put(name, pieces(size[name]))
                held.append(name)
            except OverloadedError:
                assert name not in held
        assert keep.held_bytes == sum(size[name] for name in set(held)) <= 300
        assert keep.idle_bytes <= 120 and keep.held_bytes + keep.idle_bytes <= 300
    for name in held:
        keep.release(name)
    assert keep.held_bytes == 0
