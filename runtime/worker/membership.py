"""The worker's place in the cluster: registered with the scheduler whenever there is one, and what its instances do while there is none.

A lost scheduler ends nothing. Tasks go on, tokens go to their gateways, pulls and leases live; reports have nobody to hear them and are dropped.
Each registration declares what every instance holds, taken on its device loop between two steps: what an instance reports after that moment
follows the registration on the new stream, and what it reported before is in the declaration. So no task ends unheard, and none is declared that has
ended.

Deadlines and leases bound what is held meanwhile. Tasks without a deadline would outlive a scheduler that never comes back, so after
`orphan_seconds` without one every task ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial

from triptych.runtime.core.clock import Clock
from triptych.runtime.core.control import Retire, SetRoles, SetShare
from triptych.runtime.core.errors import InstanceLostError, Status, TriptychError
from triptych.runtime.core.instance import InstanceInfo, InstanceRef
from triptych.runtime.core.tasks import HeldTask, TaskReport
from triptych.runtime.worker.config import WorkerConfig
from triptych.runtime.worker.control_client import ControlClient, WorkerOrder
from triptych.runtime.worker.instance import LiveInstance

log = logging.getLogger(__name__)

RETRY_FIRST, RETRY_MOST = 0.1, 1.0  # seconds between attempts to register
UNREACHED_MOST = 0.25  # seconds between them while nobody listens: a scheduler that is back is found soon, and a refused connection costs little
STABLE = 10.0  # seconds; a registration that lasted longer was a good one
DECLARE_TIMEOUT = 10.0  # seconds; a device loop that is alive answers within a step
REFUSED_FOR_GOOD = frozenset(
    {Status.FAILED_PRECONDITION, Status.INVALID_ARGUMENT, Status.UNAUTHENTICATED, Status.PERMISSION_DENIED}
)  # by the first scheduler it finds: wrong model, page size or token. Later a scheduler may be replaced, and waiting is right.


class Membership:
    """Runs on the worker's asyncio loop.

    Args:
        instances: those that live now, asked whenever they are registered.
        retire: takes an instance out of `instances` and ends it.
    """

    def __init__(
        self,
        config: WorkerConfig,
        instances: Callable[[], Sequence[LiveInstance]],
        retire: Callable[[LiveInstance, str], None],
        clock: Clock,
    ):
        self._config = config
        self._instances = instances
        self._retire = retire
        self._clock = clock
        self._control: ControlClient | None = None  # the registration being made, or that stands
        self._declared: set[str] = set()  # instances whose reports belong on `_control`
        self._lost = asyncio.Event()
        self._orphaning: asyncio.TimerHandle | None = None
        self.registered = asyncio.Event()
        """Whether a scheduler has ever accepted this worker."""

    async def run(self) -> None:
        """Register, and again whenever that ends; until cancelled. Raises the refusal of the first scheduler, if it refuses for good."""
        delay = RETRY_FIRST
        said: tuple[str, float] | None = None  # a long outage is no news after a while
        while True:
            try:
                await self._register()
            except TriptychError as error:
                if error.status in REFUSED_FOR_GOOD and not self.registered.is_set():
                    raise
                if said != (error.message, delay):
                    said = (error.message, delay)
                    log.warning("cannot register at %s: %s; again in %.2f s", self._config.scheduler, *said)
                await asyncio.sleep(delay)
                delay = min(delay * 2, UNREACHED_MOST if error.status is Status.UNAVAILABLE else RETRY_MOST)
                continue
            said = None
            since = self._clock.now()
            self.registered.set()
            await self._lost.wait()
            if self._clock.now() - since > STABLE:
                delay = RETRY_FIRST
            else:  # what takes the registration away may do so again: not as fast as it can
                await asyncio.sleep(delay)
                delay = min(delay * 2, RETRY_MOST)

    async def leave(self, reason: str = "left") -> None:
        """Say good-bye, if a registration stands. Call when `run` has ended."""
        if self._orphaning is not None:
            self._orphaning.cancel()
        if self._control is not None:
            await self._control.leave(reason)

    # ---- what instances say

    def report(self, ref: InstanceRef, report: TaskReport) -> None:
        """For the scheduler, if it knows this instance by now."""
        if self._control is not None and ref.id in self._declared:
            self._control.report(ref, report)

    def reset(self, old: InstanceRef, info: InstanceInfo, reason: str) -> None:
        """An instance goes on under a new epoch."""
        if self._control is not None and old.id in self._declared:
            self._control.instance_reset(old, info, reason)

    def roles_refused(self, ref: InstanceRef, reason: str) -> None:
        """An instance does not take on the roles that it was told to."""
        if self._control is not None and ref.id in self._declared:
            self._control.roles_refused(ref, reason)

    def left(self, ref: InstanceRef, reason: str) -> None:
        """An instance is gone for good."""
        if self._control is not None and ref.id in self._declared:
            self._control.instance_left(ref, reason)
        self._declared.discard(ref.id)

    # ---- registration

    async def _register(self) -> None:
        control = ControlClient(
            self._config.scheduler,
            self._config.token,
            worker=self._config.name,
            loads=lambda: {instance.info.ref: instance.load() for instance in self._instances()},
            on_command=self._on_command,
            on_lost=self._on_lost,
            clock=self._clock,
            tls=self._config.tls,
        )
        self._control = control
        self._lost.clear()
        try:
            infos: list[InstanceInfo] = []
            held: list[HeldTask] = []
            for info, tasks in await self._declarations(control):
                infos.append(info)
                held += tasks
            await control.connect(infos, held)
        except BaseException:
            self._withdraw()
            raise
        if self._orphaning is not None:
            self._orphaning.cancel()
            self._orphaning = None

    async def _declarations(self, control: ControlClient) -> list[tuple[InstanceInfo, tuple[HeldTask, ...]]]:
        """What every instance is and holds; its later reports go to `control`."""
        loop = asyncio.get_running_loop()
        instances = self._instances()
        answers = [loop.create_future() for _ in instances]

        def told(
            answer: asyncio.Future[tuple[InstanceInfo, tuple[HeldTask, ...]]],
            info: InstanceInfo,
            tasks: tuple[HeldTask, ...],
        ) -> None:
            if self._control is control and not answer.done():
                self._declared.add(info.ref.id)
                answer.set_result((info, tasks))

        for instance, answer in zip(instances, answers, strict=True):
            instance.declare(partial(told, answer))
        try:
            async with asyncio.timeout(DECLARE_TIMEOUT):
                return list(await asyncio.gather(*answers))
        except TimeoutError:
            raise InstanceLostError(f"a device loop has not answered for {DECLARE_TIMEOUT:g} s") from None

    def _withdraw(self) -> None:
        """No scheduler listens."""
        self._control = None
        self._declared.clear()

    def _on_command(self, ref: InstanceRef, command: WorkerOrder) -> None:
        instance = next((i for i in self._instances() if i.info.ref == ref), None)
        if instance is None:
            log.warning("dropped %s for %s, which is not an instance here now", type(command).__name__, ref)
            return
        match command:
            case SetRoles():
                instance.set_roles(ref, command.roles)
            case SetShare():
                instance.set_share(ref, command.prefill_tokens)
            case Retire():
                self._retire(instance, command.reason)
            case _:
                instance.command(command)

    def _on_lost(self, reason: str) -> None:
        log.warning("scheduler lost: %s; what runs here goes on", reason)
        self._withdraw()
        self._lost.set()
        orphaned = self._config.orphan_seconds
        self._orphaning = asyncio.get_running_loop().call_later(orphaned, self._abandon, orphaned)

    def _abandon(self, seconds: float) -> None:
        self._orphaning = None
        for instance in self._instances():
            instance.abandon(f"there has been no scheduler for {seconds:g} s")
