"""Sampling fields that chats and completions share, OpenAI's and vLLM's. Ranges are checked by the gateway, whose errors name the same fields."""

from __future__ import annotations

from triptych.runtime.client.requests import Sampling
from triptych.runtime.gateway.http.errors import bad_field
from triptych.runtime.gateway.http.fields import ANYTHING, NOTHING, Fields, Inert, only

INERT: dict[str, Inert] = {
    # who asks, and what OpenAI does with the answer beside giving it
    "user": ANYTHING,
    "safety_identifier": ANYTHING,
    "metadata": ANYTHING,
    "prompt_cache_key": ANYTHING,
    "prompt_cache_retention": ANYTHING,
    "store": only(False),
    "service_tier": only("auto", "default"),
    # what is not built yet: unset, or a value that asks for nothing
    "use_beam_search": only(False),
    "length_penalty": only(1, 1.0),
    "early_stopping": only(False),
    "allowed_token_ids": NOTHING,
    "bad_words": NOTHING,
    "logits_processors": NOTHING,
    "truncate_prompt_tokens": NOTHING,
    "spaces_between_special_tokens": only(True),
    "return_token_ids": only(False),
    "return_tokens_as_token_ids": only(False),
    "kv_transfer_params": NOTHING,
    "vllm_xargs": NOTHING,
    "structured_outputs": NOTHING,
    "guided_json": NOTHING,
    "guided_regex": NOTHING,
    "guided_choice": NOTHING,
    "guided_grammar": NOTHING,
    "guided_decoding_backend": NOTHING,
    "response_format": Inert(
        lambda value: value == {"type": "text"}, '{"type": "text"}: nothing else is supported here'
    ),
}
"""Fields that have no effect, and the values that they may have."""


def shared_sampling(fields: Fields) -> Sampling:
    """Everything but the lengths and log-probabilities, whose names differ."""
    seed = fields.integer("seed", -(2**63), 2**64 - 1)
    return {
        "temperature": fields.number("temperature"),
        "top_p": fields.number("top_p"),
        "top_k": fields.integer("top_k", -1),
        "min_p": fields.number("min_p"),
        "presence_penalty": fields.number("presence_penalty"),
        "frequency_penalty": fields.number("frequency_penalty"),
        "repetition_penalty": fields.number("repetition_penalty"),
        "logit_bias": fields.biases("logit_bias"),
        "seed": None if seed is None else seed % 2**64,  # OpenAI's seeds are signed
        "stop": fields.texts("stop"),
        "stop_token_ids": fields.token_ids("stop_token_ids"),
        "ignore_eos": fields.flag("ignore_eos"),
        "min_tokens": fields.integer("min_tokens", 0),
        "include_stop": fields.flag("include_stop_str_in_output"),
        "skip_special_tokens": fields.flag("skip_special_tokens"),
    }


def streaming(fields: Fields) -> tuple[bool, bool, bool]:
    """(stream, include_usage, continuous_usage)."""
    stream = fields.flag("stream") or False
    options = fields.fields_of("stream_options")
    if options is None:
        return stream, False, False
    if not stream:
        raise bad_field("stream_options", "stream_options is set; expected it only where stream is true")
    include = options.flag("stream_options.include_usage") or False
    continuous = options.flag("stream_options.continuous_usage_stats") or False
    if options.flag("stream_options.include_obfuscation"):
        raise bad_field(
            "stream_options", "stream_options.include_obfuscation is true; expected false: it is not supported here"
        )
    options.finish()
    return stream, include, include and continuous


def place_in_queue(fields: Fields) -> int:
    """The gateway's priority (larger is sooner) from vLLM's `priority` (smaller is sooner)."""
    return -(fields.integer("priority", -(2**31) + 1) or 0)
