"""How much of the sampler a step needs: the variants that are compiled, and the least one that serves a sample."""

from __future__ import annotations

from enum import StrEnum

from triptych.runtime.core.sampling import SamplingParams


class Variant(StrEnum):
    """How much of the sampler a program contains; each variant contains the ones before it."""

    GREEDY = "greedy"
    RANDOM = "random"
    FILTERED = "filtered"
    FULL = "full"


VARIANTS = tuple(Variant)


def least_variant(params: SamplingParams) -> Variant:
    """What serves every draw with these parameters at which no id is forbidden; where some are, that takes FULL."""
    if params.penalised or params.logit_bias or params.logprobs is not None:
        return Variant.FULL
    if params.greedy:
        return Variant.GREEDY
    filtered = params.top_k > 0 or params.top_p < 1 or params.min_p > 0
    return Variant.FILTERED if filtered else Variant.RANDOM
