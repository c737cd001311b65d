"""What a request to a model that writes down speech may say, and the prompt of its windows."""

from __future__ import annotations

from collections.abc import Sequence

from triptych.models.speech.tokens import UnknownLanguageError
from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core.errors import InvalidRequestError
from triptych.runtime.gateway.media.asking import Asked
from triptych.runtime.gateway.model import ServedModel, SpeechModel


def check_speech(request: pb.GenerateRequest, asked: Sequence[Asked], model: ServedModel) -> None:
    """Whether the request fits the kind of model, before its media are looked at. Raises InvalidRequestError naming the field."""
    if model.speech is None:
        if request.HasField("speech"):
            raise InvalidRequestError(f"speech is set; {model.name} does not write down speech")
        return
    kind = request.WhichOneof("input")
    if kind is not None:
        raise InvalidRequestError(
            f"{kind} is set; {model.name} writes down speech and takes no text: expected one sound in media, and no input"
        )
    if len(asked) != 1:
        raise InvalidRequestError(f"media has {len(asked)} entries; expected one sound")
    if request.sampling.n > 1:
        raise InvalidRequestError(f"n is {request.sampling.n}; expected 1: a sound has one transcript")
    if request.sampling.HasField("prompt_logprobs"):
        raise InvalidRequestError("prompt_logprobs is set; the prompt of a transcript is the model's own")
    speech_prompt(request, model.speech)


def speech_prompt(request: pb.GenerateRequest, speech: SpeechModel) -> tuple[int, ...]:
    """The prompt of each window. Raises InvalidRequestError for a language or a task that the model does not know."""
    options = request.speech
    try:
        return speech.tokens.prompt(options.language or None, "translate" if options.translate else "transcribe")
    except UnknownLanguageError as error:
        raise InvalidRequestError(f"speech.language: {error}") from error
