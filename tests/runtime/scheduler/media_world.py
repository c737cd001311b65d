"""A request with media brought to where its prompt wants them."""

from __future__ import annotations

from tests.runtime.scheduler.world import Driver, driver, handle, image, info
from triptych.runtime.core.control import Heartbeat, WorkerLeft
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceInfo, Role
from triptych.runtime.core.media import MediaItem
from triptych.runtime.core.request import PromptReport
from triptych.runtime.core.tasks import (
    AbortTask,
    Accepted,
    EncodeStaged,
    Granted,
    MediaWanted,
    PrefillDone,
    Staged,
    StartEncode,
    TaskEnded,
)
from triptych.runtime.scheduler.config import SchedulerConfig

P, D = info("p", "p", media_pages=9), info("d", "d")
E, E2, E3 = (info(name, "e", media_pages=32, max_patches=100) for name in ("e1", "e2", "e3"))
EPD = info("epd", "epd", media_pages=9, max_patches=100)
PD = info("pd", "pd", media_pages=9)
CAT, DOG = image("cat"), image("dog")
DONE = PrefillDone("r", PromptReport(4, 0), finished=False)


def prefilling(
    *encoders: InstanceInfo, media: tuple[MediaItem, ...] = (CAT,), config: SchedulerConfig | None = None
) -> Driver:
    """Request "r" is being prefilled on P for D; nothing is wanted yet."""
    made = driver(P, D, *encoders, config=config)
    start(made, "r", media)
    return made


def start(world: Driver, name: str, media: tuple[MediaItem, ...], **options: object) -> None:
    """Another request on P and D."""
    world.submit(name, media=media, **options)
    world.report(D, Granted(name, 0))
    world.report(P, Staged(name, handle(P.ref)))


def local(*encoders: InstanceInfo, on: InstanceInfo = EPD, media: tuple[MediaItem, ...] = (CAT,)) -> Driver:
    """Request "r" has been accepted by an instance that computes and generates."""
    made = driver(on, *encoders)
    made.submit("r", media=media)
    made.report(on, Accepted("r"))
    return made


def want(world: Driver, *items: int, name: str = "r", on: InstanceInfo = P) -> list[tuple[str, tuple[int, ...]]]:
    """The prompt's instance wants `items`; who is told to encode what."""
    world.report(on, MediaWanted(name, items))
    return started(world)


def started(world: Driver) -> list[tuple[str, tuple[int, ...]]]:
    """What the last event started: (instance, items)."""
    return [(to, command.items) for to, command in world.now_sent() if isinstance(command, StartEncode)]


def aborts(world: Driver) -> list[tuple[str, Role | None, Status]]:
    """What the last event aborted."""
    return [(to, c.role, c.status) for to, c in world.now_sent() if isinstance(c, AbortTask)]


def staged(
    world: Driver, encoder: InstanceInfo, *, name: str = "r", key: int = 7, lacking: tuple[int, ...] = ()
) -> None:
    world.report(encoder, EncodeStaged(name, handle(encoder.ref, key), lacking))


def ended(role: Role, status: Status = Status.OK, reason: str = "", name: str = "r") -> TaskEnded:
    return TaskEnded(name, role, status, reason)


def leave(world: Driver, one: InstanceInfo) -> None:
    world.send(WorkerLeft(one.worker, "done"))


def live_on(world: Driver, seconds: float) -> None:
    """Time passes, and everybody lives."""
    while seconds > 0:
        step = min(seconds, 1.0)
        seconds -= step
        for one in world.scheduler.snapshot(world.clock.now()).instances:
            world.send(Heartbeat(one.info.worker))
        world.tick(step)
