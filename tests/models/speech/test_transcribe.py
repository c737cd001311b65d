"""The reference loop against decoding from scratch at every token, and its ends: end token, limit, suppression."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.speech.toy import END, golden, toy_config, toy_decoder, toy_encoder, toy_vocabulary, wave
from triptych.models.speech.decoder import WhisperDecoder, cross_kv
from triptych.models.speech.load import LoadedWhisper
from triptych.models.speech.tokens import SpeechTokens, UnknownLanguageError
from triptych.models.speech.transcribe import Transcriber, dense_caches, dense_extend
from triptych.models.speech.windows import split_windows

TOKENS = SpeechTokens.from_vocabulary(
    toy_vocabulary(), toy_config(), {"is_multilingual": True, "suppress_tokens": [4, 5]}
)
ENDLESS = replace(TOKENS, suppressed=(*TOKENS.suppressed, END))


# The golden model repeats itself. With less attention and more said of where it stands, it has more to say.
FACTORS = {"attention.o.weight": 0.2, "cross.o.weight": 0.2, "positions.weight": 6.0, "ffn.down.weight": 3.0}


@cache
def lively_decoder() -> LoadedWhisper[WhisperDecoder]:
    loaded = toy_decoder()
    factors = (next((by for end, by in FACTORS.items() if path.endswith(end)), 1.0) for path in loaded.structure.paths)
    return replace(loaded, params=tuple(array * by for array, by in zip(loaded.params, factors, strict=True)))


def transcriber(tokens: SpeechTokens) -> Transcriber:
    return Transcriber(toy_encoder(), lively_decoder(), tokens, toy_vocabulary())


@pytest.fixture(scope="module")
def expected() -> list[int]:
    """What follows the prompt without end, each token from the whole sequence, on transformers' states."""
    loaded, said = lively_decoder(), list(TOKENS.prompt("de", "translate"))

    @jax.jit
    def logits_of(params, tokens):
        decoder = loaded.merge(params)
        heard = cross_kv(decoder, jnp.asarray(golden()["states"]))
        hidden, _ = dense_extend(decoder, dense_caches(decoder), heard, tokens, jnp.zeros((), jnp.int32))
        return decoder.head(hidden)

    for _ in range(16):
        padded = np.asarray([*said, *[0] * (32 - len(said))], np.int32)
        logits = np.array(logits_of(loaded.params, padded)[len(said) - 1])
        logits[[*ENDLESS.suppressed, *(ENDLESS.suppressed_first if len(said) == 4 else ())]] = -np.inf
        said.append(int(logits.argmax()))
    return said[4:]


def test_the_loop_says_what_decoding_from_scratch_says(expected: list[int]) -> None:
    assert transcriber(ENDLESS).max_tokens == 16
    assert transcriber(ENDLESS).window(wave(), "de", "translate") == expected
    assert len(set(expected)) > 2 and max(expected) < END


def test_a_transcript_stops_before_the_end_token(expected: list[int]) -> None:
    """Any token can play the end: the one that is said at some place for the first time."""
    stop = next(token for at, token in enumerate(expected) if at > 1 and token not in expected[:at])
    said = transcriber(replace(ENDLESS, end=stop)).window(wave(), "de", "translate")
    assert said == expected[: expected.index(stop)]


def test_what_is_suppressed_first_may_come_later(expected: list[int]) -> None:
    first = expected[0]
    said = transcriber(replace(ENDLESS, suppressed_first=(first,))).window(wave(), "de", "translate")
    assert said[0] != first
    never = transcriber(replace(ENDLESS, suppressed=tuple({*ENDLESS.suppressed, first}))).window(
        wave(), "de", "translate"
    )
    assert first not in never


def test_long_audio_is_transcribed_window_by_window() -> None:
    model = transcriber(ENDLESS)
    audio = np.concatenate((wave(), wave()[::-1], -0.1 * wave()))
    parts = split_windows(audio, toy_config().samples)
    said = [model.tokenizer.decode(model.window(part, "en")).strip() for part in parts]
    assert len(parts) > 2 and len(set(said)) > 1
    assert model.text(audio, "en") == " ".join(said)


@pytest.mark.parametrize("count", [0, 16001])
def test_a_window_is_neither_empty_nor_too_long(count: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 16000 samples, got {count}"):
        transcriber(TOKENS).window(np.zeros(count, np.float32), "en")


def test_a_multilingual_model_must_be_told_the_language() -> None:
    with pytest.raises(UnknownLanguageError, match="name one of de, en"):
        transcriber(TOKENS).window(wave())
