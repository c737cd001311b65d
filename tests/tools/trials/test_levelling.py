"""What levels off passes; what grows, fails, is left over, or never came under pressure is told."""

from __future__ import annotations

from dataclasses import replace

from triptych.tools.trials.levelling import Finding, Holding, Reading, device_table, judged, series

FULL = Reading(0.0, "slow", 8, 8, 3000, 50, 300_000_000, 40_000, 2, 75_000_000, 40, 100, 7)
LEVEL = [replace(FULL, seconds=float(at), pages_held=8 - at % 3, shelf_bytes=3000 - 700 * (at % 2)) for at in range(30)]


def test_what_sways_within_its_bounds_is_level() -> None:
    assert judged(Finding(LEVEL)) == []


def test_growth_while_prefill_is_slow_is_told_and_growth_before_is_not() -> None:
    def growing(**step: int) -> list[Reading]:
        return [replace(one, **{name: getattr(one, name) + at * by for name, by in step.items()}) for at, one in enumerate(LEVEL)]  # fmt: skip

    assert judged(Finding(growing(encode_rss=1_000_000))) == [
        "encode_rss grew from 314.5 to 324.5 MB while prefill was slow"
    ]
    assert judged(Finding(growing(gateway_rss=1_000_000)))[0].startswith("gateway_rss grew from 89.5 to 99.5 MB")
    assert judged(Finding(growing(shelf_bytes=1000)))[0].startswith("shelf_bytes grew")
    assert judged(Finding(growing(gateway_held=5000)))[0].startswith("gateway_held grew")
    before = [replace(one, phase="free") for one in growing(encode_rss=5_000_000)]
    assert judged(Finding([*before, *LEVEL])) == []


def test_what_failed_and_what_is_left_is_told() -> None:
    found = Finding(LEVEL, {"other tokens": 2}, ended=False, held={"encode-0": {"shelf_items": 1}})
    assert judged(found) == [
        "2 requests: other tokens",
        "not everything completed after prefill ran freely again",
        "encode-0 holds {'shelf_items': 1}",
    ]


def test_without_pressure_nothing_is_shown() -> None:
    assert "never filled" in judged(Finding([replace(one, pages_held=3) for one in LEVEL]))[0]
    assert "only 8 readings" in judged(Finding(LEVEL[:8]))[0]


def test_tables_have_a_line_each() -> None:
    lines = series([*LEVEL, *LEVEL]).splitlines()
    assert len(lines) == 1 + 30 and "8/8" in lines[1]
    (_, line) = device_table([Holding("encode-0", "encode", 0, 102_000, 0, 37_000, 294_000_000)]).splitlines()
    assert line.split() == ["encode-0", "encode", "0.000", "0.102", "0.000", "0.037", "0.139", "294.0"]


def test_a_shelf_that_is_often_empty_is_level_while_it_never_holds_more() -> None:
    """What a run showed: medians of 0.8 and 2.3 kB, and never more than 3.8."""
    held = [
        3840,
        1536,
        0,
        0,
        3840,
        1536,
        1536,
        1536,
        1536,
        0,
        0,
        0,
        0,
        2304,
        768,
        0,
        0,
        3840,
        3840,
        0,
        3840,
        3840,
        0,
        3840,
    ]
    readings = [replace(FULL, seconds=float(at), shelf_bytes=held[at]) for at in range(len(held))]
    assert judged(Finding(readings)) == []
