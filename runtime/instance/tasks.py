"""What the instance remembers of each task: its samples, and the sequences being computed for it.

A Task is one command accepted; a Stream is one sample of it; a Fill is a sequence that is still being computed by
chunks, either a prompt for the first time or everything a preempted stream knew. Ownership: `task.sequence` (a prompt
that no stream has taken over yet) belongs to the task, `stream.sequence` and `stream.slot` to the stream; a Fill only
refers. A Feed is where the embeddings of a prompt are said to come from.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from triptych.runtime.core.handle import Handle, Lease
from triptych.runtime.core.instance import Role
from triptych.runtime.core.request import Finish, Logprobs, Request, SampleState
from triptych.runtime.instance.lifecycle import Kind, State, Trigger, next_state
from triptych.runtime.instance.sequence import Sequence
from triptych.runtime.instance.speculation import Lookahead
from triptych.runtime.instance.termination import Termination

TaskKey = tuple[str, Role] | tuple[str, Role, bool]
"""The request and the role; of an encode task also whether the decode task pulls from it."""


def live_samples(request: Request, resumed: tuple[SampleState, ...]) -> tuple[int, ...]:
    """The samples that still have to draw."""
    if not resumed:
        return tuple(range(request.sampling.n))
    return tuple(sample.sample for sample in resumed if sample.finish is None)


@dataclass(eq=False, slots=True)
class Stream:
    """One sample.

    Attributes:
        order: (task serial, sample): age; the smaller is older.
        outputs: tokens drawn and known to the host.
        pending: draws in plans not finished yet.
        generation: grows when the slot is given up, so that draws of plans made before are discarded.
        seated: whether the slot's Seat has been sent.
        lookahead: how far its tokens are guessed; None until they are.
    """

    task: Task
    sample: int
    order: tuple[int, int]
    termination: Termination
    outputs: list[int] = field(default_factory=list)
    sequence: Sequence | None = None
    slot: int | None = None
    pending: int = 0
    generation: int = 0
    seated: bool = False
    finish: Finish | None = None
    lookahead: Lookahead | None = None


@dataclass(eq=False, slots=True)
class Fill:
    """A sequence whose known tokens are being computed; its last chunk draws the next token of each of `streams`, unless
    it is the prompt of samples that have outputs already (`drawing`).

    Attributes:
        score: most likely tokens to report with each prompt token's logprob; None = nothing is scored.
        resumed: a stream that has outputs goes on (else a prompt is computed for its task).
        abandoned: it was preempted half-way and another Fill starts over; scores still under way belong to nobody.
    """

    task: Task
    sequence: Sequence
    streams: tuple[Stream, ...]
    resumed: bool
    score: int | None = None
    abandoned: bool = False

    @property
    def order(self) -> tuple[int, int]:
        return self.streams[0].order

    @property
    def age(self) -> tuple[int, int]:
        """As `order`, of a prompt that draws nothing too."""
        return self.task.serial, self.streams[0].sample if self.streams else 0

    @property
    def drawing(self) -> bool:
        return self.resumed or not self.task.resumed

    @property
    def left(self) -> int:
        """Known tokens whose KV no plan computes yet."""
        return len(self.sequence.tokens) - self.sequence.scheduled


@dataclass(eq=False, slots=True)
class Feed:
    """One FeedMedia: `items` (indices into the request's media) can be had from `source`, for `task`.

    Attributes:
        local: the source is this instance: nothing is pulled.
        pages: where the pull writes, all items in order; None until it is started.
        fills: hashes of the items that it is to bring; it holds their entries.
        spare: pages for items that need not be brought any more: a staging is pulled whole.
    """

    task: Task
    source: Handle
    items: tuple[int, ...]
    local: bool
    pages: tuple[int, ...] | None = None
    fills: tuple[str, ...] = ()
    spare: tuple[int, ...] = ()


@dataclass(eq=False, slots=True)
class PromptMedia:
    """What a task that needs embeddings knows of its media: feeds by the key of their source, and how often each item failed to come, by hash."""

    feeds: dict[int, Feed] = field(default_factory=dict)
    tries: dict[str, int] = field(default_factory=dict)


@dataclass(eq=False)
class Task:
    """One accepted command. `serial` counts acceptances and is never used twice.

    `resumed`: the samples of a request that begins again, as its client has seen them; empty at the first attempt.
    `streams` are those that draw here: all samples, of a resumed request the live ones, where it is prefilled none.
    """

    kind: Kind
    role: Role
    request: Request
    serial: int
    arrived: float
    state: State
    resumed: tuple[SampleState, ...] = ()
    streams: tuple[Stream, ...] = ()
    sequence: Sequence | None = None
    cached_tokens: int = 0
    position_offset: int = 0  # RoPE position of a token minus its index
    scores: list[Logprobs] = field(default_factory=list)
    admitted: float | None = None
    reported: bool = False  # the prompt's report was sent, here or by the instance that computed it
    preemptions: int = 0
    embedding_bytes: int = 0  # of its media that came from other instances
    embedding_seconds: float = 0.0  # that their pulls took, added up
    media: PromptMedia | None = None  # of a task that needs embeddings here

    @property
    def key(self) -> TaskKey:
        return self.request.id, self.role

    @property
    def score_top(self) -> int | None:
        """Likely tokens to report with each prompt token, None to score nothing. Whoever has an output has the scores."""
        return None if any(sample.outputs for sample in self.resumed) else self.request.sampling.prompt_logprobs

    def advance(self, trigger: Trigger) -> None:
        """Raises IllegalTransitionError."""
        self.state = next_state(self.kind, self.state, trigger)

    def wakes_at(self) -> float | None:
        """When time alone may change this task: its deadline or, sooner, the end of a grant or lease."""
        return self.request.deadline


@dataclass(eq=False, kw_only=True)
class StagingTask(Task):
    """One whose result is staged for a puller. `released`: the puller is done with it, perhaps early; `waited_for`: it has not begun, for want of
    room, but it lives."""

    staging_key: int
    lease_seconds: float
    lease: Lease | None = None
    released: bool = False
    waited_for: bool = False

    def wakes_at(self) -> float | None:
        return _sooner(self.request.deadline, None if self.lease is None else self.lease.expires)


@dataclass(eq=False, kw_only=True)
class PrefillTask(StagingTask):
    """`next_export`: first prompt page not exported yet."""

    next_export: int


@dataclass(eq=False, kw_only=True)
class EncodeTask(StagingTask):
    """Items to be encoded and staged, in the order of the command; the staging has the pages of one after those of the other.

    Attributes:
        items: indices into request.media.
        sizes: embeddings of each, by hash; two items of one hash are one here.
        pixel_seconds: how long the pixels of an item may take.
        pixels_by: when the next of what is `lacking` must be here; None once everything is.
        room_by: when it must have got pages, set when it is first in line and finds none.
        lacking: hashes whose pixels have not come and whose embeddings are not here.
        held: hashes whose entries it holds.
        exported: places in `items` whose pages are offered to the puller.
        encoded: items that were encoded for this task.
        for_decode: the request's decode task pulls from it, not the one that computes the prompt.
    """

    items: tuple[int, ...]
    sizes: dict[str, int]
    pixel_seconds: float
    pixels_by: float | None
    lacking: dict[str, None] = field(default_factory=dict)
    held: dict[str, None] = field(default_factory=dict)
    room_by: float | None = None
    exported: set[int] = field(default_factory=set)
    encoded: int = 0
    for_decode: bool = False

    @property
    def key(self) -> TaskKey:
        return self.request.id, self.role, self.for_decode

    def found(self, name: str, now: float | None = None) -> None:
        """The pixels of `name` came at `now`, or (None) its embeddings are here. Pixels come one after another: after each the others have
        their time again."""
        if name not in self.lacking:
            return
        del self.lacking[name]
        if not self.lacking:
            self.pixels_by = None
        elif now is not None:
            self.pixels_by = now + self.pixel_seconds

    def wakes_at(self) -> float | None:
        return _sooner(StagingTask.wakes_at(self), _sooner(self.pixels_by, self.room_by))


@dataclass(eq=False, kw_only=True)
class DecodeTask(Task):
    """`expires`: end of the grant unless StartDecode comes. `pulling`: a StartPull is out and not answered yet."""

    expires: float
    pulling: bool = False

    def wakes_at(self) -> float | None:
        return _sooner(self.request.deadline, self.expires if self.state is State.RESERVED else None)


@dataclass(eq=False, kw_only=True)
class LocalTask(Task):
    """Prefill and decode on one pool."""


def _sooner(left: float | None, right: float | None) -> float | None:
    if left is None or right is None:
        return right if left is None else left
    return min(left, right)
