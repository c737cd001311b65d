"""What an engine is built for: limits, page geometry, compiled sizes. One frozen value, checked before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass, replace

from triptych.models.kernels.choice import KERNELS
from triptych.models.kernels.names import FRESH, REFERENCE, kv_problem
from triptych.models.kv import CODE_BYTES
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role
from triptych.runtime.engine.buckets import Buckets, Demand, ExtendShape, Sizes, default_buckets
from triptych.runtime.instance.speculation import most_draws


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
        kv_dtype: "float32", "bfloat16" or "float16"; or codes with scales: "int8" or "float8_e4m3fn".
        roles: decides which programs exist.
        prompt_logprobs: whether programs that score prompt tokens are compiled.
        compile_threads: programs compiled at once.
        media_pages: pages of the media pool, the null page 0 included; 0: there is none.
        encode_patches: slots of the largest encode program, and so of one item; 0: nothing is encoded.
        attended: most entries of the media pool that a row attends to; 0: the model has no cross-attention.
        suppressed: token ids that are never drawn.
        mrope: tokens of programs that take media have three positions.
        layer_groups: half-open ranges of layers by which prompts are computed, each a program of its own, so that KV of the first ones can
            leave while later ones are computed; empty: all layers in one program.
        speculative_tokens: most tokens of a sequence that are guessed in a step; 0: none. Their rows take programs of more decode rows and draws.
        draft_model: a draft model guesses them, on the device (`runtime/engine/draft_stage.py`).
        attention: the kernel that text decoders attend with, one of `models/kernels/choice.py`.
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
    media_pages: int = 0
    encode_patches: int = 0
    attended: int = 0
    suppressed: tuple[int, ...] = ()
    mrope: bool = False
    layer_groups: tuple[tuple[int, int], ...] = ()
    attention: str = "reference"
    speculative_tokens: int = 0
    draft_model: bool = False

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
        if self.attention not in KERNELS:
            raise ConfigError(f"attention {self.attention!r} is unknown; known: {', '.join(KERNELS)}")
        if (problem := kv_problem(self.attention, self.kv_dtype)) is not None:
            raise ConfigError(problem)
        if not self.roles:
            raise ConfigError("an engine needs a role: encode, prefill or decode")
        if self.media_pages < 0 or self.media_pages == 1:
            raise ConfigError(
                f"media_pages is {self.media_pages}; expected 0, or 2 and more: the null page and one to use"
            )
        if (Role.ENCODE in self.roles) != (self.encode_patches > 0):
            raise ConfigError(
                f"encode_patches is {self.encode_patches} with the roles {', '.join(sorted(self.roles))}; an engine with the role encode "
                "needs some, another one none"
            )
        if self.encode_patches and not self.media_pages:
            raise ConfigError("an engine that encodes needs a media pool for what it encodes: raise media_pages")
        if self.draft_model and (self.media_pages or not self.speculative_tokens):
            raise ConfigError(
                f"a draft model guesses at least one token, for models of text: speculative_tokens is {self.speculative_tokens}, media_pages "
                f"{self.media_pages}; expected at least 1, and 0"
            )
        if self.attended and not self.media_pages:
            raise ConfigError("a decoder that attends to media needs a pool of them: raise media_pages")
        if self.decodes:
            self._check_decoder()

    def _check_decoder(self) -> None:
        if self.num_pages - 1 < self.pages_per_sequence:
            raise ConfigError(
                f"{self.num_pages - 1} KV pages of {self.page_size} tokens (num_pages {self.num_pages}, one of them reserved) cannot hold one sequence of max_model_len "
                f"{self.max_model_len} ({self.pages_per_sequence} pages): raise num_pages or the cache's memory, or lower max_model_len"
            )
        limits = (self.max_num_seqs, self.max_prefill_rows, self.chunk_tokens, self.pages_per_sequence)
        largest = Demand(*limits, scored=self.prompt_logprobs)
        if not self.buckets.holds(largest):
            raise ConfigError(
                f"no extend program of the buckets holds the largest step that the limits allow, {largest}"
            )
        if self.buckets.draws[-1] < self.max_draws:
            raise ConfigError(f"buckets.draws {self.buckets.draws} do not reach the {self.max_draws} of a step")
        if not self.buckets.holds(Demand(self.max_draws, 0, 0, self.pages_per_sequence)):
            raise ConfigError(f"no extend program of the buckets has the {self.max_draws} decode rows of a step")

    @property
    def decodes(self) -> bool:
        """Whether it has a decoder: anything but an encoder alone."""
        return bool(self.roles & {Role.PREFILL, Role.DECODE})

    @property
    def max_draws(self) -> int:
        """Most draws of a step, and most decode rows of one without prompt chunks: a slot's own, and its guesses."""
        return most_draws(self.max_num_seqs, self.speculative_tokens)

    @property
    def carried(self) -> int:
        """Tokens that stay on the device between programs: the last draw of each slot, and behind them the first guess of each, the second and so on."""
        return self.max_num_seqs * (1 + (self.speculative_tokens if self.draft_model else 0))

    def carried_at(self, slot: int, guess: int) -> int:
        """Where a slot's guess is among them; of guess 0 its last draw."""
        return slot + guess * self.max_num_seqs

    @property
    def takes_media(self) -> bool:
        """Whether prompts may contain embeddings."""
        return self.media_pages > 0 and not self.attended and Role.PREFILL in self.roles

    @property
    def attended_pages(self) -> int:
        """Media pages that a row attends to."""
        return -(-self.attended // self.page_size)

    def by_layer_groups(self, shape: ExtendShape) -> bool:
        """Whether steps of this size run a program for each layer group: where prompts are computed for others to decode."""
        return len(self.layer_groups) > 1 and shape.prefill_tokens > 0 and Role.PREFILL in self.roles

    @property
    def pages_per_sequence(self) -> int:
        """Pages of a sequence of `max_model_len` tokens."""
        return -(-self.max_model_len // self.page_size)


def kernel_sizes(attention: str, kv_dtype: str) -> Sizes:
    """What programs an engine with this attention should have. Kernels other than the reference are for accelerators."""
    if attention == REFERENCE:
        return Sizes()
    # Over codes every token attends to what the pages stand for, its own included; a fresh prompt would attend to more exact numbers.
    return Sizes(least_rows=8, live_tables=True, fresh=attention in FRESH and kv_dtype not in CODE_BYTES)


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
    media_pages: int = 0,
    encode_patches: int = 0,
    attended: int = 0,
    suppressed: tuple[int, ...] = (),
    mrope: bool = False,
    layer_groups: tuple[tuple[int, int], ...] = (),
    attention: str = "reference",
    speculative_tokens: int = 0,
    draft_model: bool = False,
) -> EngineConfig:
    """An EngineConfig with the default buckets for its limits and roles. Tokens are guessed only where it decodes."""
    speculative_tokens = speculative_tokens if Role.DECODE in roles else 0
    buckets = default_buckets(
        page_size=page_size,
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        chunk_tokens=chunk_tokens,
        roles=roles,
        speculative_tokens=speculative_tokens,
        prompt_logprobs=prompt_logprobs,
        # Programs of layer groups are shared between groups; the last one's would be another. Decoders that attend to media have layers of their own.
        sizes=replace(kernel_sizes(attention, kv_dtype), last_only=len(layer_groups) < 2 and not attended),
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
        media_pages=media_pages,
        encode_patches=encode_patches,
        attended=attended,
        suppressed=suppressed,
        mrope=mrope,
        layer_groups=layer_groups,
        attention=attention,
        speculative_tokens=speculative_tokens,
        draft_model=draft_model and speculative_tokens > 0,
    )
