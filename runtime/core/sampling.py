"""How tokens are drawn and when a generation ends: one immutable, validated value per request.

Ranges and meanings follow the OpenAI API and vLLM; `None` means "not set by the user". Penalties as in Keskar et al. 2019
(arXiv 1909.05858, repetition) and the OpenAI API (presence, frequency); min-p as in Nguyen et al. 2024 (arXiv 2407.01082);
top-p as in Holtzman et al. 2020 (arXiv 1904.09751).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from triptych.runtime.core.errors import InvalidRequestError

MAX_LOGPROBS = 20  # what the OpenAI API allows; the sampler program computes this many once any row asks for logprobs
MAX_LOGIT_BIAS = 300  # what the OpenAI API allows; bounds a compiled shape
MAX_STOP_STRINGS = 16
MAX_STOP_TOKENS = 64
MAX_STOP_LENGTH = 1024  # characters; bounds what the detokeniser holds back


@dataclass(frozen=True)
class SamplingParams:
    """Everything that decides which tokens come out. Hashable; safe to share between processes."""

    max_tokens: int | None = None  # None: up to the model's context
    min_tokens: int = 0
    temperature: float = 1.0  # 0 = greedy
    top_k: int = 0  # 0 = off
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0  # the gateway draws one when the user gave none, so that recovery can repeat it
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # None = off; k = the sampled token's logprob and the k most likely
    prompt_logprobs: int | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def penalised(self) -> bool:
        """Whether drawing needs counts of earlier tokens."""
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0 or self.repetition_penalty != 1.0

    def validate(self, vocab_size: int) -> None:
        """Raises InvalidRequestError naming the first field that is out of range."""
        _check(self.max_tokens is None or self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
        _check(self.min_tokens >= 0, "min_tokens", self.min_tokens, "at least 0")
        _check(
            self.max_tokens is None or self.min_tokens <= self.max_tokens,
            "min_tokens",
            self.min_tokens,
            f"at most max_tokens ({self.max_tokens})",
        )
        _check(
            _finite(self.temperature) and 0.0 <= self.temperature <= 100.0,
            "temperature",
            self.temperature,
            "in [0, 100]",
        )
        _check(self.top_k >= 0, "top_k", self.top_k, "0 (off) or positive")
        _check(_finite(self.top_p) and 0.0 < self.top_p <= 1.0, "top_p", self.top_p, "in (0, 1]")
        _check(_finite(self.min_p) and 0.0 <= self.min_p <= 1.0, "min_p", self.min_p, "in [0, 1]")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _check(_finite(value) and -2.0 <= value <= 2.0, name, value, "in [-2, 2]")
        _check(
            _finite(self.repetition_penalty) and 0.0 < self.repetition_penalty <= 100.0,
            "repetition_penalty",
            self.repetition_penalty,
            "in (0, 100]",
        )
        _check(
            len(self.logit_bias) <= MAX_LOGIT_BIAS,
            "logit_bias",
            len(self.logit_bias),
            f"at most {MAX_LOGIT_BIAS} entries",
        )
        for token, bias in self.logit_bias:
            _check(0 <= token < vocab_size, "logit_bias token id", token, f"in [0, {vocab_size})")
            _check(_finite(bias) and -100.0 <= bias <= 100.0, "logit_bias value", bias, "in [-100, 100]")
        _check(0 <= self.seed < 2**64, "seed", self.seed, "an unsigned 64-bit integer")
        _check(1 <= self.n <= 128, "n", self.n, "in [1, 128]")
        _check(len(self.stop) <= MAX_STOP_STRINGS, "stop", len(self.stop), f"at most {MAX_STOP_STRINGS} strings")
        for text in self.stop:
            _check(0 < len(text) <= MAX_STOP_LENGTH, "stop string length", len(text), f"in [1, {MAX_STOP_LENGTH}]")
        _check(
            len(self.stop_token_ids) <= MAX_STOP_TOKENS,
            "stop_token_ids",
            len(self.stop_token_ids),
            f"at most {MAX_STOP_TOKENS}",
        )
        for token in self.stop_token_ids:
            _check(0 <= token < vocab_size, "stop_token_ids", token, f"in [0, {vocab_size})")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            _check(value is None or 0 <= value <= MAX_LOGPROBS, name, value, f"in [0, {MAX_LOGPROBS}]")


def _finite(value: float) -> bool:
    return math.isfinite(value)


def _check(ok: bool, field: str, value: object, expected: str) -> None:
    if not ok:
        raise InvalidRequestError(f"{field} is {value!r}; expected {expected}")
