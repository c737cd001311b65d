"""What the scheduler tells an instance, and what an instance reports back.

One request on a P/D split, in order (P = prefill instance, D = decode instance):

    scheduler -> D  ReserveDecode          D answers Granted(cached_tokens) or Refused at once; granted pages and slots are held
    scheduler -> P  StartPrefill           P answers Staged(handle) or Refused at once, then computes
    scheduler -> D  StartDecode(handle)    D pulls what it lacks while P still computes
    P -> scheduler  PrefillDone            first token(s) went to the gateway; KV stays staged under a lease
    D -> scheduler  DecodeStarted          everything arrived and was checked; P's staging was released
    D -> scheduler  TaskEnded              all samples finished

A request with media goes on like this meanwhile (E = encode instance, P = the instance that computes the prompt, whatever its other roles):

    P -> scheduler  MediaWanted(items)     neither its prefix cache nor its embedding store covers these; may come again
    scheduler -> E  StartEncode(items)     E answers EncodeStaged(handle) or Refused at once; the gateway is told to bring the pixels of what
                                           E lacks (MediaNeeded); one request's items may go to several instances
    scheduler -> P  FeedMedia(handle)      P pulls into its embedding store, when it has room there; on E itself nothing moves
    E -> scheduler  EncodeDone             all items are encoded; they stay staged under a lease
    E -> scheduler  TaskEnded              the puller has released them
    P computes the prompt once every item it wanted is there. What it lost again, or could not pull, it wants again.

Media that every token attends to (MediaItem.attended) are needed wherever tokens are computed. D wants those too, from its grant on, and
is fed in the same way beside its pull of the KV; it reports DecodeStarted when it has both. One encode instance may have two encode
tasks of a request then, one that P pulls from and one that D pulls from (`for_decode`).

An instance that holds both roles gets StartLocal instead of all of the former. AbortTask may come at any time and is always answered by
exactly one TaskEnded for a task that the instance knows. Every task ends in exactly one TaskEnded; a refused one never began.

A request that lost an instance begins again under its next attempt. `resumed` then says what its client has seen: prefill computes the
prompt and draws nothing, and decode recomputes the outputs of each sample before it draws on. Commands and reports carry the attempt, so
that what is left of an earlier one is never taken for news of this one.
"""

from __future__ import annotations

from dataclasses import dataclass

from triptych.runtime.core.errors import Status
from triptych.runtime.core.handle import Handle
from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.core.request import PromptReport, Request, SampleState


@dataclass(frozen=True)
class ReserveDecode:
    """Hold pages for the prompt and one slot per sample. The grant expires after `ttl` seconds unless StartDecode came."""

    request: Request
    ttl: float
    resumed: tuple[SampleState, ...] = ()


@dataclass(frozen=True)
class StartPrefill:
    """Compute the prompt, draw the first token of each sample, and stage the KV for a puller.

    `skip_tokens`: leading prompt tokens whose KV the decode instance already has (a multiple of the page size): not offered.
    `lease`: seconds that staged KV outlives the puller's last sign of life.
    `resumed`: every sample as its client has seen it, or empty at the first attempt. If it is not empty, nothing is drawn and the
    final record carries these samples.
    """

    request: Request
    skip_tokens: int
    lease: float
    resumed: tuple[SampleState, ...] = ()


@dataclass(frozen=True)
class StartDecode:
    """Pull from `source` into the reservation of `request`, then generate."""

    request: str
    source: Handle
    attempt: int = 1


@dataclass(frozen=True)
class StartLocal:
    """Prefill and decode on the same instance and pool (topology PD). `resumed` as for StartPrefill."""

    request: Request
    resumed: tuple[SampleState, ...] = ()


@dataclass(frozen=True)
class StartEncode:
    """Encode `items` (indices into request.media) and stage their embeddings for a puller.

    `ttl`: seconds to wait for the pixels of an item. `lease`: seconds that staged embeddings outlive the puller's last sign of life.
    `for_decode`: the decode task pulls them, not the one that computes the prompt.
    """

    request: Request
    items: tuple[int, ...]
    ttl: float
    lease: float
    for_decode: bool = False


@dataclass(frozen=True)
class FeedMedia:
    """`source` has (or will have) the embeddings of `items`, which this instance's task of the request wanted."""

    request: str
    source: Handle
    items: tuple[int, ...]
    attempt: int = 1


@dataclass(frozen=True)
class AbortTask:
    """End the instance's task of `role` (None: every task) of this request, free what it holds, answer TaskEnded(status, reason).

    `attempt`: only if the task is of this attempt (None: whichever it is of). `for_decode`: of encode tasks only the one that the decode task
    pulls from, or (False) only the other one (None: both).
    """

    request: str
    status: Status
    reason: str
    role: Role | None = None
    attempt: int | None = None
    for_decode: bool | None = None


TaskCommand = ReserveDecode | StartPrefill | StartDecode | StartLocal | StartEncode | FeedMedia | AbortTask


@dataclass(frozen=True)
class Granted:
    """Answer to ReserveDecode. `cached_tokens`: leading tokens whose KV is already here and pinned (multiple of the page size)."""

    request: str
    cached_tokens: int
    attempt: int = 1


@dataclass(frozen=True)
class Refused:
    """Answer to ReserveDecode, StartPrefill, StartLocal or StartEncode: nothing is held. `permanent`: it can never fit here. `for_decode`:
    as in StartEncode."""

    request: str
    role: Role
    reason: str
    permanent: bool = False
    attempt: int = 1
    for_decode: bool = False


@dataclass(frozen=True)
class Staged:
    """Answer to StartPrefill: accepted; the KV can be pulled from `handle` as it is computed."""

    request: str
    handle: Handle
    attempt: int = 1


@dataclass(frozen=True)
class Accepted:
    """Answer to StartLocal: queued on the instance."""

    request: str
    attempt: int = 1


@dataclass(frozen=True)
class MediaWanted:
    """The task of this instance (it computes the prompt, or decodes) needs the embeddings of `items` and has no others under way for them."""

    request: str
    items: tuple[int, ...]
    attempt: int = 1


@dataclass(frozen=True)
class EncodeStaged:
    """Answer to StartEncode: accepted; the embeddings can be pulled from `handle`, in the order of the command's items, as they are computed.

    `lacking`: those of the items whose pixels are not here; the request's gateway brings them.
    """

    request: str
    handle: Handle
    lacking: tuple[int, ...] = ()
    attempt: int = 1
    for_decode: bool = False


@dataclass(frozen=True)
class StageTimes:
    """Seconds a task spent: waiting on the instance, computing, and pulling (decode: KV; prefill: embeddings); bytes and pages moved by pulls."""

    queue: float = 0.0
    compute: float = 0.0
    transfer: float = 0.0
    bytes_moved: int = 0
    pages_pulled: int = 0
    pages_skipped: int = 0


@dataclass(frozen=True)
class PrefillDone:
    """The prompt is computed. `finished`: every sample already ended at its first token, so nothing will be decoded."""

    request: str
    report: PromptReport
    finished: bool
    times: StageTimes = StageTimes()
    attempt: int = 1


@dataclass(frozen=True)
class EncodeDone:
    """Every item of the encode task has its embeddings. `encoded` were computed for it, the others were in the store or under way for others."""

    request: str
    encoded: int
    times: StageTimes = StageTimes()
    attempt: int = 1
    for_decode: bool = False


@dataclass(frozen=True)
class DecodeStarted:
    """All KV (and all media that it attends to) arrived and passed its checks; decoding goes on from the continuation."""

    request: str
    times: StageTimes = StageTimes()
    attempt: int = 1


@dataclass(frozen=True)
class TaskEnded:
    """The task's single end: everything it held on the instance is free. Status OK, or why not.

    UNAVAILABLE and DATA_LOSS say that what it ran on or pulled from is lost, and that another attempt may succeed; so does DEADLINE_EXCEEDED
    as long as the request's own deadline has not passed. With every other status the request has failed for good. `for_decode`: as in
    StartEncode.
    """

    request: str
    role: Role
    status: Status
    reason: str = ""
    preemptions: int = 0
    attempt: int = 1
    for_decode: bool = False


TaskReport = (
    Granted
    | Refused
    | Staged
    | Accepted
    | MediaWanted
    | EncodeStaged
    | EncodeDone
    | PrefillDone
    | DecodeStarted
    | TaskEnded
)


@dataclass(frozen=True)
class HeldTask:
    """A task that an instance holds, as its worker declares it when it registers.

    Attributes:
        role: None for a local task, which has both.
        gateway: who hears its tokens.
        running: needs nothing of any other instance any more: a local task that does not wait for media, or a decode task whose KV (and media
            that it attends to) have arrived.
        for_decode: as in StartEncode.
    """

    ref: InstanceRef
    request: str
    attempt: int
    role: Role | None
    gateway: str
    running: bool
    for_decode: bool = False
