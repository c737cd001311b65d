"""What an instance takes on: tasks into its queue or reservations, and queued sequences into memory.

A refusal is an answer, never a wait: a decode reservation is granted or refused at once, a prefill is refused when the
bounded queue is full, and both are refused for good when the request could never fit. A queued sequence is admitted
when slots for its samples and pages for all its known tokens are there: prompts that are half computed never wait for
each other's pages. A prompt that lacks embeddings waits beside the queue (gathering.py), not in it.
"""

from __future__ import annotations

from enum import Enum, auto

from triptych.runtime.core.errors import Status
from triptych.runtime.core.handle import Handle
from triptych.runtime.core.instance import Role
from triptych.runtime.core.media import MediaItem
from triptych.runtime.core.request import Request, SampleState
from triptych.runtime.core.tasks import (
    Accepted,
    Granted,
    Refused,
    ReserveDecode,
    Staged,
    StartLocal,
    StartPrefill,
    TaskEnded,
)
from triptych.runtime.instance import attending, positions, spans
from triptych.runtime.instance.agreement import disagreement
from triptych.runtime.instance.gathering import attend, begin
from triptych.runtime.instance.lifecycle import Kind, State, Trigger
from triptych.runtime.instance.messages import InstanceMessage, OpenStaging, Report
from triptych.runtime.instance.resuming import least_pages, room, try_reserve
from triptych.runtime.instance.sequence import Sequence
from triptych.runtime.instance.state import InstanceState, end_task
from triptych.runtime.instance.tasks import DecodeTask, EncodeTask, Fill, LocalTask, PrefillTask, Task, live_samples

_PREFILLS, _DECODES = frozenset({Role.PREFILL}), frozenset({Role.DECODE})

KEY_BITS = 63  # a handle's key is random and unguessable; 63 bits fit every signed 64-bit field on the wire


def reserve_decode(state: InstanceState, command: ReserveDecode, now: float) -> list[InstanceMessage]:
    """Hold pages for the prompt and each live sample's outputs so far and next one, a slot per live sample, and room for the media that it
    attends to; or refuse."""
    request, resumed = command.request, command.resumed
    refused = _refusal(state, request, Role.DECODE, _DECODES, resumed)
    if refused is not None:
        return [Report(refused)]
    head = next(iter(state.waiting.values()), None)
    if head is not None and head.resumed:
        return [_refused(request, Role.DECODE, "preempted sequences wait for memory")]
    slots = len(live_samples(request, resumed))
    if state.slots.free < slots:
        return [_refused(request, Role.DECODE, f"{slots} slots were asked for, {state.slots.free} are free")]
    sequence = _new_sequence(state, request)
    if request.media and not attending.can_attend(state, request):
        return [_refused(request, Role.DECODE, "too few pages are free for the media that it attends to")]
    cached = sequence.pin_prefix(len(request.prompt))
    if not try_reserve(state, sequence, *room(state.config, request, resumed)):
        sequence.evict()
        return [_refused(request, Role.DECODE, f"too few KV pages are free ({state.memory.pool.available})")]
    task = DecodeTask(
        Kind.DECODE,
        Role.DECODE,
        request,
        state.next_serial,
        now,
        State.RESERVED,
        resumed,
        sequence=sequence,
        expires=now + command.ttl,
    )
    task.cached_tokens = cached
    task.reported = True
    task.streams = state.streams_for(task)
    for stream in task.streams:
        state.seat(stream)
    if request.media:
        attend(state, task)
    state.add(task)
    return [Report(Granted(request.id, cached, request.attempt))]


def start_prefill(state: InstanceState, command: StartPrefill, now: float) -> list[InstanceMessage]:
    """Queue a prompt whose KV is staged for a puller; or refuse. Resumed, it draws nothing and needs no slot."""
    request, config = command.request, state.config
    pages = config.pages_for(len(request.prompt))
    refused = _refusal(state, request, Role.PREFILL, _PREFILLS, command.resumed) or _queue_full(
        state, request, Role.PREFILL
    )
    if refused is not None:
        return [Report(refused)]
    key = state.random.getrandbits(KEY_BITS)
    first_page = min(command.skip_tokens // config.page_size, pages)
    task = PrefillTask(
        Kind.PREFILL,
        Role.PREFILL,
        request,
        state.next_serial,
        now,
        State.WAITING,
        command.resumed,
        staging_key=key,
        lease_seconds=command.lease,
        next_export=first_page,
    )
    state.staged[key] = task
    _queue(state, task)
    handle = Handle(state.ref, config.address, key, config.digest)
    opened = OpenStaging(request.id, key, len(request.prompt), first_page, pages - first_page)
    return [opened, Report(Staged(request.id, handle, request.attempt))]


def start_local(state: InstanceState, command: StartLocal, now: float) -> list[InstanceMessage]:
    """Queue a prompt that is decoded here as well; or refuse. Resumed with no sample left to decode, it ends at once."""
    request, resumed = command.request, command.resumed
    refused = _refusal(state, request, Role.DECODE, _PREFILLS | _DECODES, resumed) or _queue_full(
        state, request, Role.DECODE
    )
    if refused is not None:
        return [Report(refused)]
    accepted = Report(Accepted(request.id, request.attempt))
    if not live_samples(request, resumed):  # its client has seen everything
        return [accepted, Report(TaskEnded(request.id, Role.DECODE, Status.OK, attempt=request.attempt))]
    _queue(state, LocalTask(Kind.LOCAL, Role.DECODE, request, state.next_serial, now, State.WAITING, resumed))
    return [accepted]


class _Admission(Enum):
    DONE = auto()
    NO_ROOM = auto()
    LACKS_MEDIA = auto()


def admit_waiting(state: InstanceState, now: float, shortest_first: bool = False) -> list[InstanceMessage]:
    """Move sequences from the head of the queue into memory, as many as the next step can start on. Strictly in order:
    none overtakes, unless `shortest_first` (`_overtaking`). One whose media the prefix cache no longer covers goes beside the queue. Where it can get none its task ends,
    once its other samples have: or a request of several that do not fit together would be interrupted again and again."""
    config = state.config
    messages: list[InstanceMessage] = []
    budget = config.chunk_tokens - sum(fill.left for fill in state.filling.values())
    while state.waiting and (budget > 0 or shortest_first) and len(state.filling) < config.max_prefill_rows:
        number, fill = next(iter(state.waiting.items()))
        if shortest_first:
            overtaking = _overtaking(state, number, fill)
            if overtaking is None:
                break
            number, fill = overtaking
        admission = _admit(state, fill, now)
        if admission is _Admission.NO_ROOM or (admission is _Admission.LACKS_MEDIA and _others_go_on(state, fill)):
            break
        del state.waiting[number]
        if admission is _Admission.DONE:
            state.filling[number] = fill
            budget -= fill.left
        elif not begin(state, fill):
            reason = "a sample was preempted; the embeddings of its media are not on this instance to compute it again"
            messages += end_task(state, fill.task, Trigger.FAILED, Status.UNAVAILABLE, reason)
    return messages


def _overtaking(state: InstanceState, head: int, fill: Fill) -> tuple[int, Fill] | None:
    """Which sequence of the queue, whose head is given, is to be admitted next where short prompts come first; None: none now.

    The oldest of all always has a row, and half of a step. Others are admitted while something is left of the other half, the shortest first; and beyond it
    those that would overtake one of them, if they fit into half a step. One row stays for such, unless the oldest prompt ends in this step. A sequence that was preempted is not overtaken: the memory that became free is for it.
    """
    if not state.filling or head < (oldest := min(state.filling)):
        return head, fill
    chunk, rows = state.config.chunk_tokens, state.config.max_prefill_rows - len(state.filling)
    half, left = max(1, chunk // 2), state.filling[oldest].left
    others = [other.left for number, other in state.filling.items() if number != oldest]
    room = chunk - min(left, half) - sum(others)
    if fill.resumed or fill.task.admitted is not None:
        return (head, fill) if room > 0 else None
    number, shortest = min(state.waiting.items(), key=lambda item: (item[1].left, item[0]))
    if room > 0 and (rows > 1 or left <= half):
        return number, shortest
    overtakes = shortest.left <= half and (room > 0 or shortest.left < max(others, default=0))
    return (number, shortest) if overtakes else None


def _others_go_on(state: InstanceState, fill: Fill) -> bool:
    """Whether `fill` cannot get its embeddings here, and other samples of its task do not need any."""
    if fill.task.kind is not Kind.DECODE and state.media is not None:
        return False
    return any(stream.task is fill.task for stream in state.running) or any(
        other.task is fill.task for other in state.filling.values()
    )


def _admit(state: InstanceState, fill: Fill, now: float) -> _Admission:
    """Pages and slots for `fill`, or else nothing held."""
    available, number = state.memory.pool.available, fill.sequence.number
    blocked_number, blocked_available = state.blocked or (0, 0)
    if number == blocked_number and available <= blocked_available:
        return (
            _Admission.NO_ROOM
        )  # a failed attempt costs a walk over the prompt's pages; nothing was freed since the last one
    if state.slots.free < sum(stream.slot is None for stream in fill.streams):
        return _Admission.NO_ROOM
    task, sequence = fill.task, fill.sequence
    known = len(sequence.tokens)
    cached = 0
    if fill.score is None:  # prompt logprobs need every position computed
        cached = sequence.pin_prefix(known - 1)  # at least one token is computed: its hidden state draws the next
    if sequence.media and (
        state.media.lacks(fill, cached) if state.media is not None else sequence.media[-1].end > cached
    ):
        sequence.evict()
        return _Admission.LACKS_MEDIA
    if not _reserve(state, fill):
        sequence.evict()
        state.blocked = (number, available)
        return _Admission.NO_ROOM
    state.blocked = None
    if state.media is not None and sequence.media:
        state.media.passed(number, cached)
    for stream in fill.streams:
        state.seat(stream)
    if not fill.resumed:
        if task.admitted is None:  # a second admission, after a preemption, finds what the first one computed
            task.cached_tokens, task.admitted = cached, now
        task.advance(Trigger.ADMITTED)
    return _Admission.DONE


def _reserve(state: InstanceState, fill: Fill) -> bool:
    if fill.resumed:
        # one more than known, so that the next decode step does not preempt again at once; but a pool of just the
        # known size must do, too
        known, most = len(fill.sequence.tokens), state.config.usable_pages * state.config.page_size
        return try_reserve(state, fill.sequence, min(known + 1, most))
    if fill.task.kind is Kind.PREFILL:
        return try_reserve(state, fill.sequence, len(fill.sequence.tokens))
    return try_reserve(state, fill.sequence, *room(state.config, fill.task.request, fill.task.resumed))


def _queue(state: InstanceState, task: Task) -> None:
    if task.kind is not Kind.PREFILL or not task.resumed:
        task.streams = state.streams_for(task)
    task.sequence = _new_sequence(state, task.request)
    if state.config.mrope:
        task.position_offset = positions.offset_at(task.request.media, len(task.request.prompt))
    fill = Fill(task, task.sequence, task.streams, False, task.score_top)
    if not begin(state, fill):
        state.waiting[task.sequence.number] = fill
    state.add(task)


def _new_sequence(state: InstanceState, request: Request) -> Sequence:
    names = tuple(item.hash for item in spans.attended(request.media)) if request.media else ()
    return Sequence(state.memory, list(request.prompt), state.memory.roots(request.cache_salt, names), request.media)


def _refusal(
    state: InstanceState, request: Request, role: Role, roles: frozenset[Role], resumed: tuple[SampleState, ...]
) -> Refused | None:
    """Why `request` cannot be taken whatever the load, if so."""
    config, prompt = state.config, len(request.prompt)
    held = conflict(state, request, role)
    if held is not None:
        return held
    held_here = request.media if Role.PREFILL in roles else spans.attended(request.media) if request.media else ()
    media = _media_difference(state, request, held_here) if held_here else None
    if media is None and request.media and roles == _DECODES:
        media = attending.difference(state, request)
    if role is Role.DECODE:
        slots, pages = len(live_samples(request, resumed)), least_pages(config, request, resumed)
    else:
        slots, pages = 0 if resumed else request.sampling.n, config.pages_for(prompt)
    longest = max((len(sample.outputs) for sample in resumed if sample.finish is None), default=0) if resumed else 0
    if not roles <= config.roles:
        reason = (
            f"instance {state.ref.id} has roles {', '.join(sorted(config.roles))}; {', '.join(sorted(roles))} needed"
        )
    elif prompt == 0:
        reason = "the prompt is empty"
    elif resumed and [sample.sample for sample in resumed] != list(range(request.sampling.n)):
        reason = f"samples {[sample.sample for sample in resumed]} are to be resumed; n is {request.sampling.n}"
    elif prompt + longest + 1 > config.max_model_len:
        reason = (
            f"the prompt has {prompt} tokens and {longest} outputs; max_model_len {config.max_model_len} leaves no room"
        )
    elif slots > config.max_num_seqs:
        reason = f"n is {request.sampling.n}; the instance has {config.max_num_seqs} slots"
    elif pages > config.usable_pages:
        reason = f"the request needs {pages} KV pages; the instance has {config.usable_pages}"
    elif media is not None:
        reason = media
    else:
        return None
    return Refused(request.id, role, reason, permanent=True, attempt=request.attempt)


def conflict(state: InstanceState, request: Request, role: Role, for_decode: bool = False) -> Refused | None:
    """Why `request` cannot have another task of `role` here now, if so. `for_decode` tells its two encode tasks apart."""
    for live in state.tasks_of(request.id):
        same = live.role is role and (not isinstance(live, EncodeTask) or live.for_decode is for_decode)
        if same or live.request.attempt > request.attempt:
            reason = f"request {request.id} already has a {live.role} task here, of attempt {live.request.attempt}"
            return Refused(request.id, role, reason, attempt=request.attempt, for_decode=for_decode)
    return None


def _media_difference(state: InstanceState, request: Request, items: tuple[MediaItem, ...]) -> str | None:
    """Why `items` of `request`, whose embeddings are needed here, can never be taken, if so."""
    media = state.media
    if media is None:
        return f"{len(items)} media items are needed to compute it; instance {state.ref.id} takes none"
    pages = sum(media.store.pages_for(tokens) for tokens in {item.hash: item.tokens for item in items}.values())
    if pages > media.store.usable_pages:
        return f"the media need {pages} pages of embeddings; the instance has {media.store.usable_pages}"
    wrong = spans.difference(request.media, len(request.prompt)) or disagreement(media, items)
    return positions.difference(request.media) if wrong is None and state.config.mrope else wrong


def _queue_full(state: InstanceState, request: Request, role: Role) -> Refused | None:
    """Those that wait beside the queue for media keep out others with media only."""
    waiting = len(state.waiting)
    if request.media and state.media is not None and len(state.media.beside) >= state.config.max_waiting:
        waiting = max(waiting, len(state.media.prompts_beside()))
    if waiting < state.config.max_waiting:
        return None
    reason = f"{waiting} sequences wait here already (max_waiting {state.config.max_waiting})"
    return Refused(request.id, role, reason, attempt=request.attempt)


def _refused(request: Request, role: Role, reason: str) -> Report:
    return Report(Refused(request.id, role, reason, attempt=request.attempt))
