"""A client's request to a core Request: defaults filled in, every bad input a typed error that names field, value and expectation.

Nothing that passes here is refused later for what it says; later refusals are about room and life.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence

from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core.errors import DeadlineError, InvalidRequestError, UnknownModelError
from triptych.runtime.core.request import Request
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.gateway.config import GatewayConfig
from triptych.runtime.gateway.media.pieces import Medium, Piece
from triptych.runtime.gateway.model import SamplingDefaults, ServedModel
from triptych.runtime.gateway.prompt import prompt_ids
from triptych.runtime.gateway.speech import speech_prompt

MAX_REQUEST_ID = 128  # characters; ids appear in logs and in every token message
MAX_CACHE_SALT = 1024  # characters; hashed into every page key


def resolve_sampling(options: pb.SamplingOptions, defaults: SamplingDefaults, room: int) -> SamplingParams:
    """Sampling parameters as instances see them; not yet range-checked.

    Fields of `SamplingDefaults` fall back to the model's defaults, others to those of `SamplingParams`. An unset max_tokens becomes `room`, the
    tokens that are left in the context; an unset seed is drawn here, so that a recovery can repeat the draws.
    """

    def chosen(name: str, default: float) -> float:
        return getattr(options, name) if options.HasField(name) else default

    top_k = options.top_k if options.HasField("top_k") else defaults.top_k
    return SamplingParams(
        max_tokens=options.max_tokens if options.HasField("max_tokens") else room,
        min_tokens=options.min_tokens,
        temperature=chosen("temperature", defaults.temperature),
        top_k=0 if top_k == -1 else top_k,
        top_p=chosen("top_p", defaults.top_p),
        min_p=chosen("min_p", defaults.min_p),
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        repetition_penalty=chosen("repetition_penalty", defaults.repetition_penalty),
        logit_bias=tuple(sorted(options.logit_bias.items())),
        seed=options.seed if options.HasField("seed") else secrets.randbits(64),
        n=options.n if options.HasField("n") else 1,
        stop=tuple(options.stop),
        stop_token_ids=tuple(options.stop_token_ids),
        ignore_eos=options.ignore_eos,
        logprobs=options.logprobs if options.HasField("logprobs") else None,
        prompt_logprobs=options.prompt_logprobs if options.HasField("prompt_logprobs") else None,
    )


def deadline_of(request: pb.GenerateRequest, call_remaining: float | None, default_timeout: float, now: float) -> float:
    """The earlier of the request's timeout and the call's own deadline, on this process's clock; without both, the server's default.

    Raises DeadlineError if it has passed, InvalidRequestError for a timeout that is no duration.
    """
    limits = [] if call_remaining is None else [call_remaining]
    if request.HasField("timeout"):
        if not math.isfinite(request.timeout) or request.timeout < 0:
            raise InvalidRequestError(
                f"timeout is {request.timeout!r}; expected a finite number of seconds, at least 0"
            )
        limits.append(request.timeout)
    left = min(limits, default=default_timeout)
    if left <= 0:
        raise DeadlineError("the deadline had passed when the request arrived")
    return now + left


def check_envelope(request: pb.GenerateRequest, model: ServedModel) -> None:
    """What can be checked without looking at the prompt. Raises UnknownModelError or InvalidRequestError."""
    check_model(request.model, model)
    if len(request.request_id) > MAX_REQUEST_ID or not request.request_id.isprintable():
        raise InvalidRequestError(
            f"request_id is {request.request_id[:MAX_REQUEST_ID]!r}; expected at most {MAX_REQUEST_ID} printable characters"
        )
    if len(request.cache_salt) > MAX_CACHE_SALT:
        raise InvalidRequestError(
            f"cache_salt has {len(request.cache_salt)} characters; expected at most {MAX_CACHE_SALT}"
        )


def check_model(name: str, model: ServedModel) -> None:
    if name not in ("", model.name):
        raise UnknownModelError(f"model {name!r} is not served here; expected {model.name!r} or an empty name")


def build_request(
    request: pb.GenerateRequest,
    model: ServedModel,
    config: GatewayConfig,
    *,
    id: str,
    gateway: str,
    deadline: float,
    media: Sequence[Medium] = (),
    window: Piece | None = None,
) -> Request:
    """The validated core request; call on a text thread, it tokenises. Raises InvalidRequestError.

    Args:
        media: those of the request, processed.
        window: of a speech model, the part of its sound that this request is to transcribe.
    """
    if model.speech is not None and window is not None:
        ids, items = speech_prompt(request, model.speech), (window.at(0),)
        room = min(model.max_model_len - len(ids), model.speech.max_tokens)
    else:
        ids, items = prompt_ids(request, model, config.max_prompt_chars, media)
        room = model.max_model_len - len(ids)
    if config.max_prompt_tokens is not None and len(ids) > config.max_prompt_tokens:
        raise InvalidRequestError(
            f"the prompt has {len(ids)} tokens; expected at most max_prompt_tokens ({config.max_prompt_tokens})"
        )
    if room < 1:
        raise InvalidRequestError(
            f"the prompt has {len(ids)} tokens; expected at most {model.max_model_len - 1}, so that one generated token fits the "
            f"context of {model.max_model_len}"
        )
    sampling = resolve_sampling(request.sampling, model.defaults, room)
    sampling.validate(model.vocab_size)
    if sampling.min_tokens > room:
        raise InvalidRequestError(
            f"min_tokens is {sampling.min_tokens}; expected at most {room}, what the context has left"
        )
    if sampling.stop and model.tokenizer is None:
        raise InvalidRequestError(f"stop is set, but {model.name} has no tokenizer; use stop_token_ids")
    return Request(
        id=id,
        gateway=gateway,
        model=model.name,
        prompt=ids,
        sampling=sampling,
        deadline=deadline,
        priority=request.priority,
        cache_salt=request.cache_salt,
        media=items,
    )
