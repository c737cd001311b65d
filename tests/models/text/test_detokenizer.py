"""The incremental detokeniser says, delta by delta, what whole-text decoding says at the end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.models.text.vocabularies import byte_level_metadata, sentencepiece_metadata
from triptych.models.text.detokenizer import Detokenizer
from triptych.models.text.gguf_tokenizer import tokenizer_from_gguf
from triptych.models.text.tokenizer import Tokenizer
from triptych.models.text.toy import toy_tokenizer

TOY, MERGED, PIECES = (
    toy_tokenizer(),
    tokenizer_from_gguf(byte_level_metadata()),
    tokenizer_from_gguf(sentencepiece_metadata()),
)


def stream(tokenizer: Tokenizer, ids: list[int], **options: bool) -> list[str]:
    detokenizer = Detokenizer(tokenizer, **options)
    return [detokenizer.push(token) for token in ids] + [detokenizer.flush()]


@given(st.lists(st.integers(0, 270)), st.booleans())
def test_joined_deltas_are_the_decoded_text_for_any_bytes(ids: list[int], skip: bool):
    for tokenizer in (TOY, MERGED):
        deltas = stream(tokenizer, ids, skip_special_tokens=skip)
        assert "".join(deltas) == tokenizer.decode(ids, skip_special_tokens=skip)


@given(st.text())
def test_valid_text_never_shows_a_replacement_character_before_it_is_complete(text: str):
    for tokenizer in (TOY, MERGED):
        shown = ""
        for delta in stream(tokenizer, tokenizer.encode(text), skip_special_tokens=False):
            shown += delta
            assert text.startswith(shown)
        assert shown == text


@given(st.text(st.sampled_from("abc é🙂▁\n")))
def test_byte_fallback_pieces_join_to_the_text_without_its_first_space(text: str):
    ids = PIECES.encode(text)
    assert "".join(stream(PIECES, ids)) == PIECES.decode(ids)


def test_a_character_split_over_tokens_comes_whole_and_late():
    assert stream(TOY, list("🙂".encode())) == ["", "", "", "🙂", ""]


def test_an_incomplete_character_shows_only_at_the_end():
    assert stream(TOY, [0xF0, 0x9F]) == ["", "", "\ufffd"]


def test_an_invalid_byte_shows_as_soon_as_it_is_certain():
    assert stream(TOY, [0xC3, 0x41]) == ["", "\ufffdA", ""]


@pytest.mark.parametrize(("skip", "expected"), [(True, "ab"), (False, "a<|im_end|>b")])
def test_special_tokens_are_skipped_on_request(skip: bool, expected: str):
    assert "".join(stream(TOY, [97, 258, 98], skip_special_tokens=skip)) == expected


def test_a_flushed_detokenizer_starts_anew():
    detokenizer = Detokenizer(PIECES)
    first = "".join(detokenizer.push(token) for token in PIECES.encode("abc")) + detokenizer.flush()
    second = "".join(detokenizer.push(token) for token in PIECES.encode("abc")) + detokenizer.flush()
    assert first == second == "abc"
