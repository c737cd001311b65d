"""A request as the control plane sees it, and what is left of one that has begun.

A Request is immutable. A Continuation is the serialisable rest of a generation: any instance that holds (or recomputes) the KV of
`prompt + outputs[sample][:-1]` can go on from it and draw exactly the tokens that the original would have drawn, because a draw is a
function of (seed, sample, absolute position, purpose) and of nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from triptych.runtime.core.media import MediaItem
from triptych.runtime.core.sampling import SamplingParams


@dataclass(frozen=True)
class Request:
    """One admitted request.

    Attributes:
        id: unique per gateway life; chosen by the gateway (or the client's own id, made unique).
        gateway: id of the gateway that holds the client; instances stream tokens to it.
        prompt: token ids, at least one.
        deadline: seconds on this process's clock, or None. Crosses the wire as remaining seconds.
        attempt: 1 for the first try; every token carries it.
        priority: larger is sooner, for QueueOrder policies.
        cache_salt: extra text in every prefix key; different salts never share KV.
        media: first what all tokens attend to, then what takes the place of prompt tokens, in order of `offset`, without overlaps.
    """

    id: str
    gateway: str
    model: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    deadline: float | None = None
    attempt: int = 1
    priority: int = 0
    cache_salt: str = ""
    media: tuple[MediaItem, ...] = ()


class FinishReason(StrEnum):
    """Why one sample ended, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True)
class Logprobs:
    """Log-probabilities of one position before temperature, penalties and filters: (token id, natural log) pairs."""

    sampled: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Finish:
    """How one sample ended. `matched` is the stop string or stop token id that ended it, None for EOS and length."""

    reason: FinishReason
    matched: str | int | None = None


class TokenOut(NamedTuple):
    """One emitted token. `position` is absolute: the first generated token of a prompt of p tokens has position p."""

    request: str
    attempt: int
    sample: int
    position: int
    token: int
    logprobs: Logprobs | None = None
    finish: Finish | None = None  # set on the sample's last token


@dataclass(frozen=True)
class SampleState:
    """One sample's generated tokens so far and, once it has ended, how."""

    sample: int
    outputs: tuple[int, ...]
    finish: Finish | None = None


@dataclass(frozen=True)
class Continuation:
    """The rest of a generation: what prefill hands to decode.

    Penalty counts are functions of (prompt, outputs) and are rebuilt where they are needed.
    """

    request: Request
    samples: tuple[SampleState, ...]
    position_offset: int = 0  # RoPE position of a token minus its index in the sequence (M-RoPE, injected states)

    @property
    def live(self) -> tuple[SampleState, ...]:
        return tuple(s for s in self.samples if s.finish is None)


@dataclass(frozen=True)
class PromptReport:
    """What prefill knows and nobody else does; usage is composed from it.

    `cached_tokens` counts prompt tokens whose KV came from the prefix cache of the instance that computed the prompt.
    `prompt_logprobs[i]` belongs to prompt token i (None for the first).
    """

    prompt_tokens: int
    cached_tokens: int
    prompt_logprobs: tuple[tuple[int, Logprobs | None], ...] = ()
