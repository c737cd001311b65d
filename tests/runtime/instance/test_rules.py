"""Termination, composition and lifecycle: the three tables of rules."""

from __future__ import annotations

from typing import Any

import pytest

from tests.runtime.instance.cluster import request
from tests.runtime.instance.media import media_config
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.request import Finish, FinishReason
from triptych.runtime.instance.composer import (
    ChunkCandidate,
    DefaultComposer,
    InvalidCompositionError,
    StepChoice,
    StepLimits,
    StepView,
    TakingTurns,
)
from triptych.runtime.instance.lifecycle import TRANSITIONS, IllegalTransitionError, Kind, State, Trigger, next_state
from triptych.runtime.instance.termination import Termination

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


class Words:
    """A probe over the words that tokens stand for; like a matcher, it goes on reporting a match once it has one."""

    def __init__(self, stops: tuple[str, ...]):
        self.stops, self.text, self.matched = stops, "", None

    def push(self, token: int) -> str | None:
        self.text += chr(token)
        self.matched = self.matched or next((stop for stop in self.stops if stop in self.text), None)
        return self.matched


def _termination(prompt: int = 4, room: int = 100, **params: Any) -> Termination:
    params.setdefault("max_tokens", None)
    req = request("a", prompt, **params)
    return Termination(req, eos_ids=(0, 1), max_model_len=prompt + room, stop_probe=Words)


def _run(end: Termination, tokens) -> list[Finish | None]:
    return [end.check(token, count) for count, token in enumerate(tokens, 1)]


def test_eos_ends_unless_ignored():
    assert _run(_termination(ignore_eos=False), [5, 1]) == [None, Finish(STOP)]
    assert _run(_termination(ignore_eos=True), [5, 1, 0]) == [None] * 3


def test_a_stop_id_is_named_and_eos_is_not():
    assert _run(_termination(ignore_eos=False, stop_token_ids=(7, 0)), [7]) == [Finish(STOP, 7)]
    assert _run(_termination(ignore_eos=False, stop_token_ids=(7, 0)), [0]) == [Finish(STOP)]
    assert _run(_termination(ignore_eos=True, stop_token_ids=(0,)), [0]) == [Finish(STOP, 0)]


def test_length_is_max_tokens_or_what_the_context_leaves():
    assert _run(_termination(max_tokens=2), [5, 5]) == [None, Finish(LENGTH)]
    assert _run(_termination(room=2), [5, 5]) == [None, Finish(LENGTH)]
    assert _termination(room=2, max_tokens=9).limit == 2


def test_stop_comes_before_length():
    assert _run(_termination(max_tokens=1, stop_token_ids=(5,)), [5]) == [Finish(STOP, 5)]


def test_a_stop_string_may_span_tokens():
    assert _run(_termination(stop=("ab",)), map(ord, "xab")) == [None, None, Finish(STOP, "ab")]


def test_min_tokens_hold_off_every_kind_of_stop():
    end = _termination(ignore_eos=False, min_tokens=2, stop_token_ids=(9,))
    assert (end.forbidden, end.forbidden_until) == ((0, 1, 9), 6)
    assert _run(end, [0, 9, 9]) == [None, None, Finish(STOP, 9)]
    assert (_termination(ignore_eos=False).forbidden, _termination().forbidden_until) == ((), 0)


def test_a_stop_string_within_min_tokens_is_ignored_and_the_next_one_counts():
    found = _run(_termination(min_tokens=3, stop=("ab",)), map(ord, "abxxab"))
    assert found == [None] * 5 + [Finish(STOP, "ab")]


def test_min_tokens_do_not_hold_off_length():
    assert _run(_termination(min_tokens=2, max_tokens=2), [5, 5])[-1] == Finish(LENGTH)


LIMITS = StepLimits(max_num_seqs=4, chunk_tokens=10, max_prefill_rows=2)


def _view(*tokens: int, scored: bool = False, decodes: int = 0) -> StepView:
    return StepView(decodes, [ChunkCandidate(count, scored, 0.0) for count in tokens], LIMITS)


@pytest.mark.parametrize(
    ("tokens", "chosen"),
    [
        ((), ()),
        ((30,), (10,)),
        ((6, 30), (6, 4)),
        ((3, 3, 3), (3, 3, 0)),
        ((10, 5), (10, 0)),
        ((1, 6, 1, 30), (1, 6, 1, 4)),
        ((6, 4, 1), (6, 4, 1)),
    ],
)
def test_chunks_fill_the_step_in_order(tokens, chosen):
    choice = DefaultComposer().compose(_view(*tokens, decodes=2))
    assert choice == StepChoice(2, chosen)
    _view(*tokens, decodes=2).check(choice)


def test_rows_of_one_token_never_exceed_what_was_compiled():
    """A resumed prompt holds no slot: with its last token there may be one row too many, and the youngest decode waits."""
    for tokens, decodes, chosen in [
        ((1,), 4, (3, (1,))),
        ((1,) * 5, 4, (0, (1, 1, 1, 1, 0))),
        ((9, 2), 4, (3, (9, 1))),
    ]:
        view = _view(*tokens, decodes=decodes)
        choice = DefaultComposer().compose(view)
        assert choice == StepChoice(*chosen)
        view.check(choice)
        with pytest.raises(InvalidCompositionError, match="rows of one token"):
            view.check(StepChoice(decodes, choice.chunks))


def test_a_scored_single_token_is_a_prefill_row():
    assert DefaultComposer().compose(_view(1, 1, 1, scored=True)).chunks == (1, 1, 0)


@pytest.mark.parametrize(
    "choice",
    [
        StepChoice(2, (1,)),
        StepChoice(0, ()),
        StepChoice(0, (31,)),
        StepChoice(0, (11,)),
        StepChoice(-1, (0,)),
        StepChoice(0, (-1,)),
    ],
)
def test_a_choice_beyond_the_limits_is_refused(choice):
    with pytest.raises(InvalidCompositionError):
        _view(30, decodes=1).check(choice)


def test_every_state_can_fail_and_ended_is_final():
    for table in TRANSITIONS.values():
        for state, _ in table:
            assert state is not State.ENDED
            assert table[state, Trigger.FAILED] is State.ENDED


def _media_view(*patches: int, decodes: int = 0, chunks: tuple[ChunkCandidate, ...] = ()) -> StepView:
    return StepView(decodes, chunks, StepLimits(4, 10, 2, encode_patches=32), patches)


def test_media_are_encoded_beside_rows_but_not_twice_in_a_row_while_others_decode():
    composer = DefaultComposer()
    chosen = [composer.compose(_media_view(8, 8, decodes=2)) for _ in range(4)]
    assert [choice.patches for choice in chosen] == [32, 0, 32, 0]
    assert all(choice.decodes == 2 for choice in chosen)
    assert [composer.compose(_media_view(8)).patches for _ in range(3)] == [32, 32, 32], "nobody is kept waiting"
    assert composer.compose(_media_view(decodes=2)).patches == 0
    assert composer.compose(_media_view(8, decodes=2)).patches == 32, "the step between had none"


def test_in_turns_are_encodes_chunks_and_decodes():
    composer, chunk = TakingTurns(), (ChunkCandidate(6, False, 0.0),)
    chosen = [composer.compose(_media_view(8, decodes=3, chunks=chunk)) for _ in range(4)]
    assert [(c.patches, c.chunks, c.decodes) for c in chosen] == [
        (32, (0,), 0),
        (0, (6,), 0),
        (0, (0,), 3),
        (32, (0,), 0),
    ]
    without = [composer.compose(_media_view(8, decodes=3)) for _ in range(3)]
    assert [(c.patches, c.decodes) for c in without] == [(0, 3), (32, 0), (0, 3)]
    assert (
        composer.compose(_media_view(chunks=chunk)).chunks == composer.compose(_media_view(chunks=chunk)).chunks == (6,)
    )


def test_a_single_token_of_an_image_is_a_prefill_row():
    limits = StepLimits(max_num_seqs=1, chunk_tokens=2, max_prefill_rows=2)
    view = StepView(1, [ChunkCandidate(1, False, 0.0, embedded=True)] * 3, limits)
    choice = DefaultComposer().compose(view)
    assert (choice.decodes, choice.chunks) == (1, (1, 1, 0))
    view.check(choice)
    with pytest.raises(InvalidCompositionError, match="3 prefill tokens"):
        view.check(StepChoice(1, (1, 1, 1)))


def test_more_patches_than_the_programs_hold_are_no_choice():
    for patches in (-1, 33):
        with pytest.raises(InvalidCompositionError, match="patches"):
            _media_view(8).check(StepChoice(0, (), patches))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"roles": "E", "encode_patches": 0}, "encode_patches is 0"),
        ({"roles": "E", "media_pages": 0}, "media_pages is 0"),
        ({"roles": "PD", "media_pages": 1}, "media_pages is 1"),
        ({"roles": "PD", "num_pages": 1}, "num_pages is 1"),
        ({"roles": ""}, "roles is empty"),
    ],
)
def test_sizes_of_the_media_pool_are_checked(changes, message):
    with pytest.raises(ConfigError, match=message):
        media_config(**changes)
    assert media_config(roles="E", num_pages=1, max_num_seqs=0).encode_patches


def test_every_state_but_the_first_is_reached_from_somewhere_and_leads_to_the_end():
    first = {
        Kind.PREFILL: State.WAITING,
        Kind.DECODE: State.RESERVED,
        Kind.LOCAL: State.WAITING,
        Kind.ENCODE: State.WAITING,
    }
    for kind, table in TRANSITIONS.items():
        moves = {(state, to) for (state, trigger), to in table.items() if trigger is not Trigger.FAILED}
        reached = {first[kind]}
        for _ in State:
            reached |= {to for state, to in moves if state in reached}
        assert State.ENDED in reached
        assert reached == {state for move in moves for state in move}


def test_a_trigger_without_a_transition_is_a_typed_error():
    with pytest.raises(IllegalTransitionError, match="staged cannot be preempted"):
        next_state(Kind.PREFILL, State.STAGED, Trigger.PREEMPTED)
