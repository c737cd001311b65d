"""Limits refuse what is beyond them, with what was given and what is allowed, and nothing else."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from triptych.runtime.core.errors import ConfigError, Status
from triptych.runtime.media.errors import CorruptMediaError, MediaLimitError
from triptych.runtime.media.limits import MediaLimits, check_item, check_pixels, check_request

LIMITS = MediaLimits(item_bytes=10, request_bytes=20, request_items=3, image_pixels=12)


def test_what_is_within_the_limits_passes():
    check_item(10, LIMITS)
    check_request([], LIMITS)
    check_request([10, 9, 1], LIMITS)
    check_pixels(3, 4, LIMITS, "it")


def test_what_is_beyond_is_refused_with_both_numbers():
    for call, words in (
        (lambda: check_item(11, LIMITS), "11 bytes; expected at most 10"),
        (lambda: check_request([10, 10, 1], LIMITS), "21 bytes together; expected at most 20"),
        (lambda: check_request([1] * 4, LIMITS), "4 media items; expected at most 3"),
        (lambda: check_pixels(13, 1, LIMITS, "the image"), "the image is 13 x 1 pixels; expected at most 12"),
    ):
        with pytest.raises(MediaLimitError, match=words) as caught:
            call()
        assert caught.value.status is Status.INVALID_ARGUMENT


def test_nothing_is_corrupt():
    for call in (lambda: check_item(0, LIMITS), lambda: check_pixels(0, 5, LIMITS, "it")):
        with pytest.raises(CorruptMediaError):
            call()


@pytest.mark.parametrize("name", [field.name for field in fields(MediaLimits)])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_every_limit_is_a_positive_number(name: str, value: Any):
    with pytest.raises(ConfigError, match=name):
        MediaLimits(**{name: value})


def test_an_item_may_not_be_larger_than_a_request():
    with pytest.raises(ConfigError, match="request_bytes"):
        MediaLimits(item_bytes=11, request_bytes=10)
