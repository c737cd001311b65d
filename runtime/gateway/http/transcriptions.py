"""/v1/audio/transcriptions and /v1/audio/translations: a form to a `Generation`, chunks to OpenAI's objects.

There are no timestamps: what would need them is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from triptych.runtime.client import Chunk, Result
from triptych.runtime.client.requests import Sampling
from triptych.runtime.gateway.http.errors import bad_field
from triptych.runtime.gateway.http.fields import ANYTHING, NOTHING, Fields, Inert
from triptych.runtime.gateway.http.forms import File, Form
from triptych.runtime.gateway.http.generation import Generation, Prompt, Sound

INERT: dict[str, Inert] = {
    "prompt": NOTHING,  # text that came before: each window is transcribed without knowing what others say
    "timestamp_granularities[]": NOTHING,
    "include[]": NOTHING,
    "known_speaker_names[]": NOTHING,
    "known_speaker_references[]": NOTHING,
    "chunking_strategy": ANYTHING,  # sound is cut where it is quiet, whatever is asked for
    "user": ANYTHING,
}
FORMATS = ("json", "text", "verbose_json")


def parse(form: Form, id: str, translate: bool) -> tuple[Generation, str]:
    """The generation, and the form of its answer (one of FORMATS). Raises HttpError 400 naming the field."""
    file = form.get("file")
    if not isinstance(file, File) or not file.data:
        raise bad_field("file", "file is not set; expected the bytes of a sound file")
    texts = {name: value for name, value in form.items() if name != "file"}
    for name, value in texts.items():
        if isinstance(value, File):
            raise bad_field(name, f"{name[:100]!r} is a file; expected text")
    fields = Fields(texts, INERT)
    language = fields.text("language") or ""
    stream, wanted = _flag(fields, "stream"), fields.text("response_format") or "json"
    if wanted not in FORMATS:
        raise bad_field("response_format", f"response_format is {wanted[:60]!r}; expected one of {', '.join(FORMATS)}")
    if stream and wanted != "json":
        raise bad_field("response_format", f"response_format is {wanted!r}; expected json where stream is true")
    options: Sampling = {"temperature": _number(fields, "temperature")}
    generation = Generation(
        id=id,
        model=fields.text("model") or "",
        prompts=(Prompt(sound=Sound(file.data, language, translate)),),
        sampling=options,
        samples=1,
        fields=frozenset(form),
        stream=stream,
        include_usage=stream,
    )
    fields.finish()
    return generation, wanted


class TranscriptionFormat:
    """OpenAI's objects of one transcription."""

    def __init__(self, generation: Generation, wanted: str):
        sound = generation.prompts[0].sound
        assert sound is not None
        self._sound = sound
        self._wanted = wanted
        self._text = ""
        self._results: Sequence[Result] = ()

    def ready(self, results: Sequence[Result]) -> bool:
        self._results = results
        return True

    def opening(self, results: Sequence[Result]) -> list[dict[str, Any]]:
        return []

    def piece(self, prompt: int, chunk: Chunk) -> dict[str, Any] | None:
        if not chunk.text:
            return None
        self._text += chunk.text
        return {"type": "transcript.text.delta", "delta": chunk.text}

    def closing(self, usage: dict[str, Any]) -> dict[str, Any]:
        return {"type": "transcript.text.done", "text": self._text, "usage": self._duration(self._results)}

    def whole(self, results: Sequence[Result], usage: dict[str, Any]) -> dict[str, Any] | str:
        text = results[0].text
        if self._wanted == "text":
            return text + "\n"
        answer: dict[str, Any] = {"text": text, "usage": self._duration(results)}
        if self._wanted == "verbose_json":
            task = "translate" if self._sound.translate else "transcribe"
            answer |= {"task": task, "language": self._sound.language or "en", "duration": _seconds(results)}
        return answer

    def _duration(self, results: Sequence[Result]) -> dict[str, Any]:
        return {"type": "duration", "seconds": math.ceil(_seconds(results))}


def _seconds(results: Sequence[Result]) -> float:
    return sum(result.usage.audio_seconds for result in results if result.usage)


def _flag(fields: Fields, name: str) -> bool:
    text = fields.text(name)
    if text is None:
        return False
    if text.lower() not in ("true", "false"):
        raise bad_field(name, f"{name} is {text[:60]!r}; expected true or false")
    return text.lower() == "true"


def _number(fields: Fields, name: str) -> float | None:
    text = fields.text(name)
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise bad_field(name, f"{name} is {text[:60]!r}; expected a number")
    return number
