"""What an engine is built for: limits, page geometry, compiled sizes. One frozen value, checked before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role
from triptych.runtime.engine.buckets import Buckets, Demand, default_buckets


@dataclass(frozen=True)
class EngineConfig:
    """Limits of one engine.

    Attributes:
        page_size: tokens a KV page.
        num_pages: pages in the pool, the null page 0 included (`runtime/engine/memory.py` finds it from a memory budget).
        max_num_seqs: sampler slots = most decode rows and most draws of a step.
        max_model_len: longest sequence in tokens.
        chunk_tokens: most prefill tokens of a step, over all its prefill rows.
        max_prefill_rows: most rows of a step that are not decode-shaped.
        buckets: compiled sizes.
        kv_dtype: "float32", "bfloat16" or "float16".
        roles: decides which programs exist.
        prompt_logprobs: whether programs that score prompt tokens are compiled.
        compile_threads: programs compiled at once.
    """

    page_size: int
    num_pages: int
    max_num_seqs: int
    max_model_len: int
    chunk_tokens: int
    max_prefill_rows: int
    buckets: Buckets
    kv_dtype: str
    roles: frozenset[Role]
    prompt_logprobs: bool = True
    compile_threads: int = 2

    def __post_init__(self) -> None:
        for name in (
            "page_size",
            "max_num_seqs",
            "max_model_len",
            "chunk_tokens",
            "max_prefill_rows",
            "compile_threads",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.roles & {Role.PREFILL, Role.DECODE}:
            raise ConfigError(f"an engine needs the role prefill or decode, got {sorted(self.roles)}")
        if self.num_pages - 1 < self.pages_per_sequence:
            raise ConfigError(
                f"{self.num_pages - 1} KV pages of {self.page_size} tokens (num_pages {self.num_pages}, one of them reserved) cannot hold one sequence of max_model_len "
                f"{self.max_model_len} ({self.pages_per_sequence} pages): raise num_pages or the cache's memory, or lower max_model_len"
            )
        largest = Demand(self.max_num_seqs, self.max_prefill_rows, self.chunk_tokens, self.pages_per_sequence)
        if not self.buckets.holds(largest):
            raise ConfigError(
                f"no extend program of the buckets holds the largest step that the limits allow, {largest}"
            )
        if self.buckets.draws[-1] < self.max_num_seqs:
            raise ConfigError(f"buckets.draws {self.buckets.draws} do not reach max_num_seqs {self.max_num_seqs}")

    @property
    def pages_per_sequence(self) -> int:
        """Pages of a sequence of `max_model_len` tokens."""
        return -(-self.max_model_len // self.page_size)


def engine_config(
    *,
    num_pages: int,
    max_num_seqs: int,
    max_model_len: int,
    chunk_tokens: int,
    page_size: int = 16,
    max_prefill_rows: int = 4,
    kv_dtype: str = "float32",
    roles: frozenset[Role] = frozenset({Role.PREFILL, Role.DECODE}),
    prompt_logprobs: bool = True,
    compile_threads: int = 2,
) -> EngineConfig:
    """An EngineConfig with the default buckets for its limits and roles."""
    buckets = default_buckets(
        page_size=page_size,
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        chunk_tokens=chunk_tokens,
        roles=roles,
    )
    return EngineConfig(
        page_size=page_size,
        num_pages=num_pages,
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        chunk_tokens=chunk_tokens,
        max_prefill_rows=max_prefill_rows,
        buckets=buckets,
        kv_dtype=kv_dtype,
        roles=roles,
        prompt_logprobs=prompt_logprobs,
        compile_threads=compile_threads,
    )
