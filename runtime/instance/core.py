"""InstanceCore: the pure half of an instance. Events in, step plans and messages out; no I/O, no clock of its own.

The life of a request here, on the prefill side of a split: StartPrefill queues the prompt and opens a staging
(admission.py); when pages and a slot are free its chunks enter plans beside everyone else's decode rows (planner.py,
composer.py), and every full page is exported in the plan that fills it; the result of the last chunk brings the first
tokens, which go to the gateway, and the final record (results.py); the pages stay until the puller released them or its
lease ran out (expiry.py). On the decode side: ReserveDecode holds pages and slots, StartDecode pulls, Imported turns
the reservation into streams (importing.py), each decodes a token a step until it ends (termination.py) or is preempted
(preemption.py). StartLocal is both without a transfer. A prompt with media, or a reservation that attends to some, waits beside the
queue for their embeddings (gathering.py), which an encode task has staged on this instance or another one (encoding.py); both share one store
(media.py, embeddings.py).

What the shell promises, on its one device loop:
- It executes messages in the order in which they come, and plans in the order of their ids, at most two ahead of the
  last StepDone.
- Pages freed here are reused by later plans and pulls at once. That is safe for whatever was enqueued on the device
  before, and only for that: once the shell has seen CancelPull no further page of that pull may be scattered, and once
  it has seen CloseStaging none of that key may be gathered.
- It asks again (DeviceReady) after any other event, because an answer without a plan means that there was nothing to
  do.
"""

from __future__ import annotations

import random
from dataclasses import replace

from triptych.runtime.core.errors import Status, TriptychError
from triptych.runtime.core.instance import InstanceRef, Load, Role
from triptych.runtime.core.media import MediaItem
from triptych.runtime.core.tasks import (
    AbortTask,
    FeedMedia,
    HeldTask,
    ReserveDecode,
    StartDecode,
    StartEncode,
    StartLocal,
    StartPrefill,
    TaskCommand,
)
from triptych.runtime.instance import (
    admission,
    attempts,
    audit,
    encoding,
    expiry,
    feeding,
    gathering,
    importing,
    renewing,
    results,
)
from triptych.runtime.instance.composer import DefaultComposer, StepComposer
from triptych.runtime.instance.config import InstanceConfig
from triptych.runtime.instance.lifecycle import Trigger
from triptych.runtime.instance.media import MediaCounts, MediaMemory
from triptych.runtime.instance.memory import KvMemory
from triptych.runtime.instance.messages import (
    Command,
    DeviceReady,
    DropMedia,
    Imported,
    ImportFailed,
    InstanceEvent,
    InstanceMessage,
    LeaseExtended,
    MediaArrived,
    MediaImported,
    StagedReleased,
    StepDone,
)
from triptych.runtime.instance.ngram import NgramDrafter
from triptych.runtime.instance.plan import Pool, StepPlan
from triptych.runtime.instance.planner import plan_step
from triptych.runtime.instance.slots import SlotPool
from triptych.runtime.instance.speculation import DrafterFactory, Speculation, SpeculationCounts
from triptych.runtime.instance.state import InstanceState, end_task
from triptych.runtime.instance.termination import StopProbeFactory


class RolesRefusedError(TriptychError):
    """The instance cannot take on these roles (now)."""

    status = Status.FAILED_PRECONDITION


class InstanceCore:
    """Deterministic: the same events at the same times with the same `random` give the same answers."""

    def __init__(
        self,
        config: InstanceConfig,
        *,
        stop_probe: StopProbeFactory,
        random: random.Random,
        composer: StepComposer | None = None,
        drafter: DrafterFactory | None = None,
    ):
        """`stop_probe` is called only for requests with stop strings; `random` makes staging keys; `composer` defaults
        to DefaultComposer(); `drafter` to prompt look-up, and is called only if the config has a speculation without a draft model."""
        self._composer = composer or DefaultComposer()
        self._state = InstanceState(
            config,
            config.ref,
            stop_probe,
            random,
            KvMemory(config),
            SlotPool(config.max_num_seqs),
            drafter or _prompt_lookup(config),
            share=config.chunk_tokens,
            media=_media(config),
        )

    @property
    def ref(self) -> InstanceRef:
        return self._state.ref

    @property
    def state(self) -> InstanceState:
        """For simulators, which look into plans in flight and take runs of steps at once. Everybody else sends events."""
        return self._state

    def handle(self, event: InstanceEvent, now: float) -> list[StepPlan | InstanceMessage]:
        """What `event` at `now` (seconds) leads to, in the order in which it must be done. A plan, if any, comes last.

        Raises EngineError if a StepDone does not belong to the oldest plan in flight; the pool is then lost (`reset`).
        """
        state = self._state
        if isinstance(event, DeviceReady):
            messages = [*expiry.expire(state, now), *self._tend_media(now)]
            more, plan = plan_step(state, self._composer, now)
            messages += more
            # What the plan gave up may be pulled into only after it: another event comes when it is done.
            return [*messages, *self._tend_media(now)] if plan is None else [*messages, plan]
        return [*self._heard(event, now), *self._tend_media(now)]

    def _heard(self, event: InstanceEvent, now: float) -> list[InstanceMessage]:
        state = self._state
        match event:
            case StepDone():
                return results.apply_result(state, event.result, now)
            case Command():
                return self._command(event.command, now)
            case Imported():
                return importing.imported(state, event)
            case ImportFailed(pool=Pool.MEDIA):
                return feeding.media_import_failed(state, event)
            case ImportFailed():
                return importing.import_failed(state, event)
            case MediaArrived():
                return encoding.media_arrived(state, event.hash, now)
            case MediaImported():
                return feeding.media_imported(state, event)
            case StagedReleased():
                return expiry.release_staged(state, event)
            case LeaseExtended():
                return expiry.extend_lease(state, event, now)
            case _:
                return expiry.expire(state, now)

    def _tend_media(self, now: float) -> list[InstanceMessage]:
        """What follows for media once something has changed. Ends: each round ends a task, moves one on, or changes nothing."""
        state = self._state
        messages = renewing.make_room(state, now)
        while state.media is not None and state.media.stirred:
            state.media.stirred = False
            messages += encoding.tend(state, now)
            messages += gathering.gather(state)
            messages += importing.gathered(state)
        return [*messages, *renewing.renew(state, now)]

    def load(self) -> Load:
        """How busy the instance is; cheap enough for every heartbeat."""
        state, media = self._state, self._state.media
        beside = [gathering.fill for gathering in media.prompts_beside()] if media is not None else []
        waiting = [*state.waiting.values(), *beside]
        return Load(
            running=len(state.running) + len(state.filling),
            waiting=len(waiting),
            waiting_tokens=sum([fill.left for fill in waiting]) if waiting else 0,
            free_pages=state.memory.pool.available,
            free_slots=state.slots.free,
            staged=len(state.staged),
            share=state.share,
            free_media_pages=media.store.pool.available if media is not None else 0,
            encoding=media.waiting_patches if media is not None else 0,
        )

    @property
    def media_counts(self) -> MediaCounts:
        """Items encoded, pulled and found since the last reset."""
        return self._state.media.counts if self._state.media is not None else MediaCounts()

    def lacks_pixels(self, name: str) -> MediaItem | None:
        """The item of this hash if some task waits for its pixels and the shell has not reported them (MediaArrived)."""
        media = self._state.media
        if media is None or not media.awaited(name) or name in media.shelf:
            return None
        return media.encoded_item(name)

    def pixels_refused(self, name: str, now: float) -> bool:
        """The shell has no room for the pixels of an item: whether it must take them all the same; if not, tasks give them their time again."""
        return encoding.pixels_refused(self._state, name, now)

    def held(self) -> tuple[HeldTask, ...]:
        """Every task, as it is declared to a scheduler that does not know it."""
        return attempts.held(self._state)

    @property
    def stale(self) -> int:
        """Commands and events dropped because they were of another attempt than the task here, or of none."""
        return self._state.stale

    @property
    def speculated(self) -> SpeculationCounts:
        """Tokens guessed, and guessed rightly."""
        return self._state.speculated

    def resources(self) -> audit.Resources:
        """Who holds what."""
        return audit.resources(self._state)

    def audit(self) -> None:
        """Raises AssertionError if anything is owned twice or by nobody."""
        audit.audit(self._state)

    def reset(
        self, ref: InstanceRef, *, status: Status = Status.UNAVAILABLE, reason: str = "the instance lost its KV pool"
    ) -> list[InstanceMessage]:
        """The device lost the pool: every task ends, everything cached is forgotten; from now on the instance is `ref`.

        Results of plans made before are ignored afterwards; plan ids go on increasing.
        """
        old = self._state
        messages = [
            message
            for task in list(old.tasks.values())
            for message in end_task(old, task, Trigger.FAILED, status, reason)
        ]
        if old.media is not None:
            messages += [DropMedia(name) for name in old.media.shelf]
        self._state = InstanceState(
            old.config,
            ref,
            old.stop_probe,
            old.random,
            KvMemory(old.config),
            SlotPool(old.config.max_num_seqs),
            old.drafter,
            share=old.share,
            media=_media(old.config),
            next_serial=old.next_serial,
            next_plan=old.next_plan,
            stale=old.stale,
            speculated=old.speculated,
        )
        return messages

    def switch(self, ref: InstanceRef, roles: frozenset[Role]) -> None:
        """Take on other roles, and go on as `ref`. The pool and everything cached in it stay: a page's key says all that its KV depends
        on, and that is not the role. Plans in flight are of tasks that ended; they are heard of as usual.

        Raises RolesRefusedError, and nothing has changed, if a task is held or a role was not prepared for.
        """
        state = self._state
        possible = state.config.roles | state.config.switchable
        if state.tasks:
            raise RolesRefusedError(
                f"{ref.id} holds {len(state.tasks)} tasks; it can change its roles when it holds none"
            )
        if not roles or not roles <= possible:
            raise RolesRefusedError(
                f"{ref.id} can have the roles {', '.join(sorted(possible))}; {', '.join(sorted(roles)) or 'none'} were asked for"
            )
        state.config = replace(state.config, roles=roles, switchable=possible - roles)
        state.ref = ref

    def set_share(self, prefill_tokens: int) -> None:
        """From the next plan on, at most so many prefill tokens a step: at least 1, at most what the programs hold."""
        self._state.share = max(1, min(prefill_tokens, self._state.config.chunk_tokens))

    def _command(self, command: TaskCommand, now: float) -> list[InstanceMessage]:
        state = self._state
        match command:
            case ReserveDecode():
                return [*attempts.supersede(state, command.request), *admission.reserve_decode(state, command, now)]
            case StartPrefill():
                return [*attempts.supersede(state, command.request), *admission.start_prefill(state, command, now)]
            case StartDecode():
                return importing.start_decode(state, command)
            case StartEncode():
                return [*attempts.supersede(state, command.request), *encoding.start_encode(state, command, now)]
            case FeedMedia():
                return feeding.feed_media(state, command)
            case StartLocal():
                return [*attempts.supersede(state, command.request), *admission.start_local(state, command, now)]
            case AbortTask():
                return attempts.abort(state, command)


def _prompt_lookup(config: InstanceConfig) -> DrafterFactory:
    speculation = config.speculation or Speculation()
    return lambda request, sample: NgramDrafter(speculation.longest, speculation.shortest)


def _media(config: InstanceConfig) -> MediaMemory | None:
    return MediaMemory(config) if config.media_pages else None
