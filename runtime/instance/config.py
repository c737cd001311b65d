"""What an instance's pure half must know: one frozen value, validated when it is made."""

from __future__ import annotations

from dataclasses import dataclass

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.instance.speculation import Speculation, most_draws


@dataclass(frozen=True)
class InstanceConfig:
    """Identity and limits of one instance.

    Attributes:
        ref: who this incarnation is; `InstanceCore.reset` replaces it.
        address: endpoint that pullers are sent to.
        digest: digest of this instance's KV header (runtime/transfer); travels in every handle of KV.
        num_pages: pages of the pool, the null page 0 included.
        max_num_seqs: sampler slots = the most samples that hold a slot at once.
        max_model_len: most tokens (prompt and outputs) of one sequence.
        chunk_tokens: most prefill tokens of one step; bounds how long a decode step waits for prefill.
        max_prefill_rows: most prefill rows of one step (a compiled shape).
        max_waiting: most tasks queued for prefill; more are refused.
        groups: KV groups by name, each with its own block table and prefix keys.
        export_pages: pages per Export; only the last one of a prompt may have fewer.
        eos_ids: token ids that end a generation unless `ignore_eos`.
        forbidden_first: token ids that no output begins with.
        prefix_cache: whether pages of committed tokens are kept for later requests.
        switchable: roles beyond `roles` that it can take on (`InstanceCore.switch`).
        media_pages: pages of the media pool, its null page included; 0: it takes no media.
        encode_patches: most patches of one step's encodes, and of one item; 0: it encodes nothing.
        media_digest: digest of the header of its media pool; travels in every handle of embeddings.
        mrope: the model's tokens have three positions; those of media follow their grids.
        speculation: how tokens of decoding samples are guessed; None: they are not.

    An instance that can only encode has no KV: one page (the null page) and no slot are enough.
    """

    ref: InstanceRef
    address: str
    digest: str
    roles: frozenset[Role]
    num_pages: int
    page_size: int
    max_num_seqs: int
    max_model_len: int
    chunk_tokens: int = 512
    max_prefill_rows: int = 4
    max_waiting: int = 256
    groups: tuple[str, ...] = ("self",)
    export_pages: int = 8
    eos_ids: tuple[int, ...] = ()
    forbidden_first: tuple[int, ...] = ()
    prefix_cache: bool = True
    switchable: frozenset[Role] = frozenset()
    media_pages: int = 0
    encode_patches: int = 0
    media_digest: str = ""
    mrope: bool = False
    speculation: Speculation | None = None

    def __post_init__(self) -> None:
        possible = self.roles | self.switchable
        computes_tokens = bool(possible & {Role.PREFILL, Role.DECODE})
        encodes = Role.ENCODE in possible
        least = {
            "num_pages": 2 if computes_tokens else 1,  # the null page and one to use
            "page_size": 1,
            "max_num_seqs": 1 if computes_tokens else 0,
            "max_model_len": 2,  # a prompt token and one output
            "chunk_tokens": 1,
            "max_prefill_rows": 1,
            "max_waiting": 1,
            "export_pages": 1,
            "media_pages": 2 if encodes or self.media_pages else 0,
            "encode_patches": 1 if encodes else 0,
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ConfigError(f"instance {self.ref.id}: {name} is {getattr(self, name)}; expected at least {bound}")
        if len(self.groups) != 1:
            raise ConfigError(
                f"instance {self.ref.id}: groups is {self.groups}; a StepPlan row carries one block table"
            )
        if not self.roles:
            raise ConfigError(f"instance {self.ref.id}: roles is empty; expected some of {', '.join(Role)}")

    @property
    def usable_pages(self) -> int:
        """Pages that sequences can own: all but the null page."""
        return self.num_pages - 1

    @property
    def max_draws(self) -> int:
        """Most rows of one token, and draws, of a step without prompt chunks; with some it is `max_num_seqs`."""
        return most_draws(self.max_num_seqs, 0 if self.speculation is None else self.speculation.tokens)

    def pages_for(self, tokens: int) -> int:
        """Pages of one group that hold the KV of `tokens` tokens."""
        return -(-tokens // self.page_size)
