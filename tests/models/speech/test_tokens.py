"""Prompts and suppressed tokens from a vocabulary and the two kinds of settings."""

from dataclasses import replace

import pytest

from tests.models.speech.toy import END, SPECIAL, toy_config, toy_vocabulary
from triptych.models.errors import UnsupportedModelError
from triptych.models.speech.tokens import SpeechTokens, UnknownLanguageError


def tokens(**settings: object) -> SpeechTokens:
    return SpeechTokens.from_vocabulary(toy_vocabulary(), toy_config(), settings)


def test_a_multilingual_prompt_names_language_and_task() -> None:
    multilingual = tokens(is_multilingual=True)
    assert multilingual.languages == (("en", 62), ("de", 63))
    assert multilingual.prompt("de") == (61, 63, 65, 69)
    assert multilingual.prompt("en", "translate") == (61, 62, 64, 69)
    with pytest.raises(UnknownLanguageError, match="'fr'; name one of de, en"):
        multilingual.prompt("fr")


def test_an_english_prompt_names_neither() -> None:
    english = tokens(is_multilingual=False)
    assert english.prompt() == english.prompt("en") == (61, 69)
    with pytest.raises(UnknownLanguageError, match="English only"):
        english.prompt("de")
    with pytest.raises(UnknownLanguageError, match="English only"):
        english.prompt("en", "translate")


def test_without_a_word_about_it_the_vocabularys_size_decides() -> None:
    assert tokens().languages == ()
    large = SpeechTokens.from_vocabulary(toy_vocabulary(), replace(toy_config(), vocab_size=51865), {})
    assert len(large.prompt("en")) == 4


@pytest.mark.parametrize(
    "settings",
    [
        {"suppress_tokens": [7, 3, END], "begin_suppress_tokens": [END, 2]},
        {"suppress_ids": [7, 3, END], "suppress_ids_begin": [END, 2]},
    ],
    ids=["hugging face", "ctranslate2"],
)
def test_what_is_stored_is_suppressed_and_so_are_special_tokens_and_timestamps_but_not_the_end(settings) -> None:
    found = tokens(**settings)
    assert found.suppressed == (3, 7, *range(61, 81)) and found.suppressed_first == (2, END)
    assert tokens(suppress_tokens=None).suppressed == tuple(range(61, 81))


@pytest.mark.parametrize("missing", ["<|endoftext|>", "<|notimestamps|>", "<|transcribe|>"])
def test_a_vocabulary_of_another_kind_is_refused(missing: str) -> None:
    pieces = tuple(piece for piece in SPECIAL if piece != missing)
    with pytest.raises(UnsupportedModelError, match="no Whisper vocabulary"):
        SpeechTokens.from_vocabulary(toy_vocabulary(pieces), toy_config(), {})


def test_suppressed_tokens_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="99 lies outside the vocabulary of 81"):
        tokens(suppress_tokens=[99])
