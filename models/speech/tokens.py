"""Whisper's special tokens: the prompt that asks for a transcript, where it ends, and what must never be said.

A prompt is start of transcript, then for multilingual models language and task, then "no timestamps" (arXiv 2212.04356,
figure 1). Ids come from the vocabulary; the suppressed ids from what is stored beside the weights: generation_config.json
of a Hugging Face folder, or config.json of a CTranslate2 one. No JAX here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from triptych.models.errors import UnsupportedModelError
from triptych.models.speech.config import MULTILINGUAL_VOCABULARY, WhisperConfig
from triptych.models.text.tokenizer import Tokenizer

__all__ = ["SpeechTokens", "Task", "UnknownLanguageError"]

Task = Literal["transcribe", "translate"]

_LANGUAGE_FORM = ("<|", "|>")


class UnknownLanguageError(ValueError):
    """The model has no such language, or it must be told one; the message lists what it knows."""


@dataclass(frozen=True)
class SpeechTokens:
    """Ids of one vocabulary.

    Attributes:
        end: ends a transcript.
        start, no_timestamps: the first and the last token of a prompt.
        languages: code and id of each language ("en", 50259); empty for English-only models, whose prompts name none.
        tasks: id of each task; empty for English-only models.
        suppressed: never sampled: what is no speech, and all special tokens but the end. Sorted.
        suppressed_first: never the first token of a transcript: a space, and the end. Sorted.
    """

    end: int
    start: int
    no_timestamps: int
    languages: tuple[tuple[str, int], ...]
    tasks: tuple[tuple[Task, int], ...]
    suppressed: tuple[int, ...]
    suppressed_first: tuple[int, ...]

    def prompt(self, language: str | None = None, task: Task = "transcribe") -> tuple[int, ...]:
        """The tokens before a transcript without timestamps.

        Raises UnknownLanguageError if the model is multilingual and `language` is none of its codes, or if it is
        English-only and something else is asked of it.
        """
        if not self.languages:
            if language not in (None, "en") or task != "transcribe":
                raise UnknownLanguageError(f"this model transcribes English only, not {task} of {language!r}")
            return (self.start, self.no_timestamps)
        languages = dict(self.languages)
        if language is None or language not in languages:
            raise UnknownLanguageError(f"no language {language!r}; name one of {', '.join(sorted(languages))}")
        return (self.start, languages[language], dict(self.tasks)[task], self.no_timestamps)

    @staticmethod
    def from_vocabulary(tokenizer: Tokenizer, config: WhisperConfig, settings: Mapping[str, Any]) -> SpeechTokens:
        """From a tokenizer and the parsed settings file. Raises UnsupportedModelError if a token is missing."""
        end, start, no_timestamps = (
            _id(tokenizer, piece) for piece in ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>")
        )
        multilingual = settings.get("is_multilingual", config.vocab_size >= MULTILINGUAL_VOCABULARY)
        transcribe, translate = _id(tokenizer, "<|transcribe|>"), _id(tokenizer, "<|translate|>")
        # Timestamps follow "no timestamps" up to the end of the vocabulary, whether the tokenizer spells them or not.
        special = {*tokenizer.special_ids, *range(no_timestamps, config.vocab_size)} - {end}
        stored = settings.get("suppress_tokens", settings.get("suppress_ids")) or ()
        first = settings.get("begin_suppress_tokens", settings.get("suppress_ids_begin")) or ()
        suppressed = sorted((special | set(stored)) - {end})
        for token in (*suppressed, *first):
            if not 0 <= token < config.vocab_size:
                raise UnsupportedModelError(
                    f"suppressed token {token} lies outside the vocabulary of {config.vocab_size}"
                )
        return SpeechTokens(
            end=end,
            start=start,
            no_timestamps=no_timestamps,
            languages=_languages(tokenizer, start, min(transcribe, translate)) if multilingual else (),
            tasks=(("transcribe", transcribe), ("translate", translate)) if multilingual else (),
            suppressed=tuple(suppressed),
            suppressed_first=tuple(sorted(set(first))),
        )


def _id(tokenizer: Tokenizer, piece: str) -> int:
    token = tokenizer.id_of(piece)
    if token is None:
        raise UnsupportedModelError(f"the tokenizer has no {piece}; it is no Whisper vocabulary")
    return token


def _languages(tokenizer: Tokenizer, start: int, tasks: int) -> tuple[tuple[str, int], ...]:
    """The tokens between start of transcript and the tasks."""
    opening, closing = _LANGUAGE_FORM
    pieces = ((tokenizer.piece(token), token) for token in range(start + 1, tasks))
    return tuple((piece.removeprefix(opening).removesuffix(closing), token) for piece, token in pieces if piece)
