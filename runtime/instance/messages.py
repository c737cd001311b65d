"""Events an InstanceCore is fed and messages it returns, besides the task commands and reports of `core.tasks`.

Page imports are two-phased: a grant names the pages that a pull may write (`ImportTarget`), and the shell reports `Imported` once every
byte has arrived, passed its checksum and been scattered on the device loop. Until then the pages belong to the reservation alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceRef
from triptych.runtime.core.request import Continuation, PromptReport, TokenOut
from triptych.runtime.core.tasks import StageTimes, TaskCommand, TaskReport
from triptych.runtime.instance.plan import Pool, StepResult


@dataclass(frozen=True)
class Command:
    """A command of the scheduler arrived."""

    command: TaskCommand


@dataclass(frozen=True)
class StepDone:
    """The device finished a plan."""

    result: StepResult


@dataclass(frozen=True)
class Imported:
    """A pull is complete and verified: the reservation's pages hold the prompt's KV. `attempt` is that of its StartPull."""

    request: str
    continuation: Continuation
    times: StageTimes
    attempt: int


@dataclass(frozen=True)
class MediaArrived:
    """The pixels of an item are in the shell's hands until DropMedia; `patches` as the item says."""

    hash: str


@dataclass(frozen=True)
class MediaImported:
    """A pull of embeddings is complete and verified; `key` is that of its StartPull's source."""

    request: str
    key: int
    times: StageTimes
    attempt: int


@dataclass(frozen=True)
class ImportFailed:
    """A pull failed for good; the reservation must end. `attempt` is that of its StartPull.

    A pull of embeddings has `pool` MEDIA and `key`, that of its source: its items are wanted again.
    """

    request: str
    status: Status
    reason: str
    attempt: int
    pool: Pool = Pool.KV
    key: int = 0


@dataclass(frozen=True)
class StagedReleased:
    """The puller has everything (or gave up): staged KV under `key` may go."""

    key: int


@dataclass(frozen=True)
class LeaseExtended:
    """The puller of `key` showed a sign of life. `waiting`: it has not begun, because it has no room yet."""

    key: int
    waiting: bool = False


@dataclass(frozen=True)
class Tick:
    """Time passed: deadlines, leases and reservation grants are checked. Send one at least every 100 ms."""


@dataclass(frozen=True)
class DeviceReady:
    """The device loop can take one more plan. Answered with at most one StepPlan among the messages."""


InstanceEvent = (
    DeviceReady
    | Command
    | StepDone
    | Imported
    | ImportFailed
    | MediaArrived
    | MediaImported
    | StagedReleased
    | LeaseExtended
    | Tick
)


@dataclass(frozen=True)
class Report:
    """For the scheduler."""

    report: TaskReport


@dataclass(frozen=True)
class Emit:
    """For the request's gateway: tokens of one step, one message per gateway."""

    gateway: str
    tokens: tuple[TokenOut, ...]


@dataclass(frozen=True)
class EmitPrompt:
    """For the request's gateway: the prompt is done."""

    gateway: str
    request: str
    attempt: int
    report: PromptReport
    times: StageTimes


@dataclass(frozen=True)
class OpenStaging:
    """For the transfer producer: a puller may open `key`. `first_page` pages are skipped; `prompt_tokens` and `pages` bound what comes."""

    request: str
    key: int
    prompt_tokens: int
    first_page: int
    pages: int
    pool: Pool = (
        Pool.KV
    )  # MEDIA: embeddings; prompt_tokens is pages * page_size, and there is no final record but an empty one


@dataclass(frozen=True)
class CompleteStaging:
    """For the transfer producer: the final record of `key`."""

    key: int
    continuation: Continuation | None  # None for embeddings
    pool: Pool = Pool.KV


@dataclass(frozen=True)
class CloseStaging:
    """For the transfer producer: forget `key` (released, expired, aborted or failed); pullers get `reason` unless they have all."""

    key: int
    status: Status
    reason: str
    pool: Pool = Pool.KV


@dataclass(frozen=True)
class StartPull:
    """For the transfer consumer: pull `command.source` into `pages` (prompt pages from `first_page` on)."""

    request: str
    attempt: int
    source_key: int
    source_address: str
    source_instance: str
    source_epoch: int
    source_digest: str
    prompt_tokens: int
    first_page: int
    pages: tuple[int, ...]
    deadline: float | None
    pool: Pool = Pool.KV


@dataclass(frozen=True)
class CancelPull:
    """For the transfer consumer: stop pulling for `request`; then its pages may be reused (see InstanceCore on in-flight scatters).

    Pulls of embeddings (`pool` MEDIA) are told apart by `key`, that of their source: a request may have several.
    """

    request: str
    pool: Pool = Pool.KV
    key: int = 0


@dataclass(frozen=True)
class KeepStaged:
    """For the transfer consumer: tell `owner` at `address` that its stagings of embeddings `keys` will be pulled once there is room here."""

    address: str
    owner: InstanceRef
    keys: tuple[int, ...]
    pool: Pool = Pool.MEDIA


@dataclass(frozen=True)
class DropMedia:
    """For the shell: the pixels of `hash` are not needed any more."""

    hash: str


InstanceMessage = (
    Report
    | Emit
    | EmitPrompt
    | OpenStaging
    | CompleteStaging
    | CloseStaging
    | StartPull
    | CancelPull
    | KeepStaged
    | DropMedia
)
