"""One fault schedule: a small cluster, some requests, some faults; generated from a seed.

Times are compressed: what takes seconds in a live cluster takes tenths here, in the same proportions, so that a few virtual seconds see every timer of the
system fire. Pools are small enough for preemption, prompts share prefixes, the vocabulary is a byte.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from triptych.runtime.core.generation import Patience
from triptych.runtime.core.instance import Role
from triptych.runtime.core.media import MediaItem, MediaKind
from triptych.runtime.core.request import Request
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.policies.queue_order import QUEUE_ORDERS
from triptych.runtime.scheduler.policies.role_controller import ShareByBacklog
from triptych.runtime.scheduler.policies.router import ROUTERS
from triptych.runtime.scheduler.scheduler import Scheduler
from triptych.runtime.simulation.conversation import ConversationConfig
from triptych.runtime.simulation.device import KvDevice
from triptych.runtime.simulation.faults import FOR_GOOD, Fault, Kind
from triptych.runtime.simulation.gateway import GatewayConfig
from triptych.runtime.simulation.moments import NAMES, SUBJECT, Moment
from triptych.runtime.simulation.network import NetworkConfig
from triptych.runtime.simulation.timing import AffineStepTime
from triptych.runtime.simulation.transfer import TransferConfig
from triptych.runtime.simulation.worker import WorkerConfig
from triptych.runtime.simulation.world import SCHEDULER, InstanceShape, WorldConfig

PREFILL, DECODE = frozenset({Role.PREFILL}), frozenset({Role.DECODE})
BOTH, ENCODE = PREFILL | DECODE, frozenset({Role.ENCODE})
TOPOLOGIES = {
    "1P1D": ("p", "d"),
    "2P2D": ("p", "p", "d", "d"),
    "PD": ("pd",),
    "2PD": ("pd", "pd"),
    "1P2D": ("p", "d", "d"),
    "mixed": ("p", "d", "pd"),
    "1E1P1D": ("e", "p", "d"),
    "2E1PD": ("e", "e", "pd"),
    "EP-D": ("ep", "d"),
    "EPD": ("epd",),
    "2EPD": ("epd", "epd"),
    "2E2P1D": ("e", "e", "p", "p", "d"),
}
ROLES = {"p": PREFILL, "d": DECODE, "pd": BOTH, "e": ENCODE, "ep": ENCODE | PREFILL, "epd": ENCODE | BOTH}
MAX_MODEL_LEN = 48
STORM = (0.08, 1.3)  # seconds between which faults begin
MANY = 50  # attempts, or requests: more than any schedule has
UNHURRIED = 60.0  # seconds that a drain may take; longer than any schedule: one that is not answered shows as held
MOST_IMAGES, LARGEST = 3, 5  # images of a request; embeddings and patches of an image
ORPHANED = (
    10.0  # seconds; longer than any storm, shorter than the calm after it: prompts that wait for embeddings end by it
)
PATIENCE = 30.0  # seconds; longer than any schedule: a request that can be served again is


@dataclass(frozen=True)
class Arrival:
    """A client makes `request` at `at`."""

    at: float
    request: Request


@dataclass(frozen=True)
class Pace:
    """Seconds that things take: a message one way, a step, a KV page on its way. Slow messages widen the windows that faults must hit."""

    latency: float = 0.001
    step: float = 0.02
    page: float = 0.002


@dataclass(frozen=True)
class Schedule:
    """Everything that happens to a world. `seed` is the luck of its processes and links; `shares`: a controller moves the shares of shared instances."""

    seed: int
    topology: str
    instances: tuple[InstanceShape, ...]
    gateways: tuple[str, ...]
    arrivals: tuple[Arrival, ...]
    faults: tuple[Fault, ...]
    router: str = "least-loaded"
    queue_order: str = "fcfs"
    max_attempts: int = MANY
    max_queued: int = MANY
    max_active: int = MANY
    shares: bool = False
    flavours: tuple[int, ...] = (0,)
    orphan_seconds: float = PATIENCE
    switch_seconds: float = UNHURRIED
    pace: Pace = field(default_factory=Pace)

    def world_config(self) -> WorldConfig:
        """The world that it happens to."""
        flavours = random.Random(f"flavours {self.seed}")
        return WorldConfig(
            make_device=lambda config: KvDevice(config, flavours.choice(self.flavours)),
            instances=self.instances,
            gateways=self.gateways,
            seed=self.seed,
            scheduler=SchedulerConfig(
                max_attempts=self.max_attempts,
                max_queued=self.max_queued,
                max_active=self.max_active,
                max_encodes=10 * MANY,
                pixel_ttl=0.5,
                heartbeat_interval=0.1,
                heartbeat_timeout=0.5,
                reserve_ttl=0.5,
                lease_seconds=0.5,
                retry_after=0.1,
                reopen_after=0.1,
                patience=PATIENCE,
                rejoin_grace=0.06,
                adopt_grace=0.3,
                gateway_grace=0.5,
                drain_grace=0.5,
                switch_timeout=self.switch_seconds,
            ),
            make_scheduler=lambda config: Scheduler(
                config,
                ROUTERS[self.router](),
                QUEUE_ORDERS[self.queue_order](),
                ShareByBacklog(least=1, most=16, steps=2, interval=0.05) if self.shares else None,
            ),
            worker=WorkerConfig(retry=0.02, retry_most=0.1, welcome_timeout=0.3, orphan_seconds=self.orphan_seconds),
            gateway=GatewayConfig(
                conversation=ConversationConfig(
                    Patience(gap=0.3, last_tokens=0.2, scheduler=PATIENCE, attempts=self.max_attempts), report_grace=0.2
                ),
                max_model_len=MAX_MODEL_LEN,
                backoff_initial=0.01,
                backoff_max=0.1,
                link_linger=1.0,
                still=0.1,
            ),
            network=NetworkConfig(
                latency=self.pace.latency, jitter=1.0, bandwidth=1 / self.pace.page, keepalive=0.3, connect_timeout=0.3
            ),
            transfer=TransferConfig(page_bytes=1, alive_interval=0.1, idle_seconds=0.4, release_seconds=0.2),
            step_time=AffineStepTime(step=self.pace.step, token=0.0005, row=0.0005),
        )


def generate(seed: int, kinds: Sequence[Kind] = tuple(Kind)) -> Schedule:
    """The schedule of `seed` with faults of some `kinds`; two of three have more than two faults, one of twenty has none."""
    luck = random.Random(f"schedule {seed}")
    topology = luck.choice(list(TOPOLOGIES))
    instances = make_instances(topology, luck)
    gateways = ("gateway-0",) if luck.random() < 0.7 else ("gateway-0", "gateway-1")
    arrivals = _arrivals(luck, gateways)
    if encodes(topology):
        arrivals = with_media(arrivals, luck)
    count = 0 if luck.random() < 0.05 else 1 + min(int(luck.expovariate(0.4)), 7)
    faults: list[Fault] = []
    for _ in range(count):
        kind = luck.choices(kinds, [WEIGHTS[kind] for kind in kinds])[0]
        fault = make_fault(kind, luck, instances, gateways, arrivals, faults)
        faults.append(_timed(fault, luck) if luck.random() < 0.5 else fault)
    return Schedule(
        seed,
        topology,
        instances,
        gateways,
        arrivals,
        tuple(sorted(_consistent(faults), key=lambda fault: fault.at)),
        router=luck.choice(list(ROUTERS)),
        queue_order=luck.choice(list(QUEUE_ORDERS)),
        max_attempts=2 if luck.random() < 0.1 else MANY,
        switch_seconds=0.3 if luck.random() < 0.3 else UNHURRIED,
        orphan_seconds=2.0 if luck.random() < 0.3 else ORPHANED if encodes(topology) else PATIENCE,
        max_queued=luck.choice([1, 3]) if luck.random() < 0.1 else MANY,
        max_active=luck.choice([1, 2, 3]) if luck.random() < 0.1 else MANY,
        shares=luck.random() < 0.3,
        flavours=(0, 1, 2) if luck.random() < 0.7 else (0,),
        pace=Pace(
            luck.choice([0.001, 0.004, 0.015]), luck.choice([0.005, 0.02, 0.04]), luck.choice([0.001, 0.01, 0.03])
        ),
    )


def make_instances(topology: str, luck: random.Random) -> tuple[InstanceShape, ...]:
    """The instances of a topology, with small pools, one a worker or sometimes all on one."""
    together = luck.random() < 0.15
    page_size = luck.choice([2, 4])
    least = -(-MAX_MODEL_LEN // page_size) + 4  # any request of ours fits an empty instance, with its forks
    shapes = tuple(
        InstanceShape(
            id=f"{kind}{index}",
            roles=ROLES[kind],
            worker="worker" if together else f"worker-{kind}{index}",
            num_pages=least + luck.choice([0, 2, 6, 30]),
            page_size=page_size,
            max_num_seqs=luck.choice([3, 4, 6]),
            max_model_len=MAX_MODEL_LEN,
            chunk_tokens=luck.choice([4, 8, 16]),
            max_prefill_rows=luck.choice([1, 2]),
            max_waiting=luck.choice([2, 8]),
            export_pages=luck.choice([1, 2]),
            prefix_cache=luck.random() < 0.8,
        )
        for index, kind in enumerate(TOPOLOGIES[topology])
    )
    return _with_encoders(shapes, luck) if encodes(topology) else shapes


def encodes(topology: str) -> bool:
    """Whether some instance of it encodes media."""
    return any(Role.ENCODE in ROLES[kind] for kind in TOPOLOGIES[topology])


def _with_encoders(shapes: tuple[InstanceShape, ...], luck: random.Random) -> tuple[InstanceShape, ...]:
    """Media pools, with room for the media of one request or a little more, and what it takes to encode: sometimes everywhere,
    so that every instance may take on every role, else only where the role is."""
    everywhere = luck.random() < 0.5
    least = 1 + MOST_IMAGES * -(-LARGEST // shapes[0].page_size)
    out = []
    for shape in shapes:
        able = everywhere or Role.ENCODE in shape.roles
        patches = luck.choice([LARGEST, 2 * LARGEST, 30]) if able else 0
        pages = least + luck.choice([0, 1, 4, 12])
        switchable = BOTH | ENCODE if able else BOTH
        lean = shape.roles == ENCODE and not everywhere
        if lean:
            shape, switchable = replace(shape, num_pages=1, max_num_seqs=0), ENCODE
        turns = len(shape.roles) > 1 and luck.random() < 0.4
        out.append(replace(shape, media_pages=pages, encode_patches=patches, switchable=switchable, taking_turns=turns))
    return tuple(out)


def with_media(arrivals: tuple[Arrival, ...], luck: random.Random) -> tuple[Arrival, ...]:
    """Images in most of the prompts, few different ones: some at the beginning, behind some text, or next to each other."""
    sizes = {f"i{number}": luck.randint(1, LARGEST) for number in range(luck.choice([1, 3, 6]))}
    out = []
    for arrival in arrivals:
        request = arrival.request
        prompt, items = list(request.prompt), list[MediaItem]()
        for at in sorted(luck.choices(range(len(prompt)), k=luck.choice([0, 1, 1, 2, MOST_IMAGES]))):
            name, tokens = luck.choice(list(sizes.items()))
            offset = at + sum(item.tokens for item in items)
            if len(prompt) + tokens + 2 > MAX_MODEL_LEN:
                break
            prompt[offset:offset] = [1] * tokens
            items.append(MediaItem(name, MediaKind.IMAGE, offset, tokens, tokens, (1, 1, tokens)))
        out.append(replace(arrival, request=replace(request, prompt=tuple(prompt), media=tuple(items))))
    return tuple(out)


def _arrivals(luck: random.Random, gateways: tuple[str, ...]) -> tuple[Arrival, ...]:
    blocks = [tuple(luck.randrange(1, 256) for _ in range(4)) for _ in range(3)]
    arrivals = []
    for index in range(luck.randint(2, 9)):
        at = 0.05 + luck.choice([0.1, 0.7]) * luck.random()
        start = [token for _ in range(luck.choice([0, 1, 2, 3])) for token in luck.choice(blocks)]
        prompt = (*start, *(luck.randrange(1, 256) for _ in range(luck.randint(1, 12))))
        sampling = SamplingParams(
            max_tokens=luck.choice([1, 2, 6, 12, 20, 24]),
            min_tokens=luck.choice([0, 0, 1]),
            seed=luck.getrandbits(32),
            n=luck.choice([1, 1, 1, 1, 2, 3]),
            stop_token_ids=tuple(luck.sample(range(1, 256), luck.choice([0, 0, 20]))),
            ignore_eos=luck.random() < 0.5,
        )
        deadline = at + luck.choice([0.2, 0.6, 2.0]) if luck.random() < 0.12 else None
        request = Request(
            f"r{index}", luck.choice(gateways), "m", prompt, sampling, deadline=deadline, priority=luck.randint(0, 2)
        )
        arrivals.append(Arrival(at, request))
    return tuple(sorted(arrivals, key=lambda arrival: arrival.at))


WEIGHTS = {
    Kind.KILL: 5.0,
    Kind.VANISH: 2.0,
    Kind.PAUSE: 4.0,
    Kind.CUT: 5.0,
    Kind.ISOLATE: 2.0,
    Kind.RESET: 4.0,
    Kind.SLOW: 1.0,
    Kind.ENGINE: 1.5,
    Kind.CORRUPT: 1.0,
    Kind.REPEAT: 1.5,
    Kind.TERM: 1.5,
    Kind.DRAIN: 3.0,
    Kind.FORCE: 1.0,
    Kind.LEAVE: 2.0,
}


def make_fault(
    kind: Kind,
    luck: random.Random,
    instances: tuple[InstanceShape, ...],
    gateways: tuple[str, ...],
    arrivals: tuple[Arrival, ...],
    others: list[Fault],
) -> Fault:
    """One random fault; `others` are those chosen before."""
    at = luck.uniform(*STORM)
    workers = list(dict.fromkeys(shape.worker for shape in instances))
    match kind:
        case Kind.KILL | Kind.VANISH | Kind.TERM | Kind.PAUSE | Kind.ISOLATE:
            target = luck.choice([SCHEDULER, luck.choice(gateways), *workers, *workers])
            seconds = luck.choice([luck.uniform(0.01, 0.15), luck.uniform(0.1, 1.0)])
            lasting = 0.0 if kind is Kind.PAUSE else 0.15 if kind is not Kind.ISOLATE else 0.3 * (target in workers)
            if luck.random() < lasting and _survivable(target, instances, others):
                seconds = FOR_GOOD
            return Fault(kind, at, target, seconds=seconds)
        case Kind.CUT | Kind.RESET | Kind.SLOW:
            one, other = luck.choice(_links(workers, gateways))
            seconds = 0.0 if kind is Kind.RESET else luck.choice([luck.uniform(0.01, 0.2), luck.uniform(0.2, 1.2)])
            isolating = kind is Kind.CUT and one == SCHEDULER and other in workers
            if isolating and luck.random() < 0.3 and _survivable(other, instances, others):
                seconds = FOR_GOOD
            return Fault(kind, at, one, other, seconds)
        case Kind.ENGINE | Kind.CORRUPT:
            return Fault(kind, at, luck.choice(instances).id)
        case Kind.DRAIN | Kind.FORCE:
            instance = luck.choice(instances)
            possible = sorted(instance.switchable | instance.roles)
            choices = [BOTH, PREFILL, DECODE, ENCODE, ENCODE | PREFILL, ENCODE | BOTH]
            names = ["", *("+".join(sorted(roles)) for roles in choices if roles <= set(possible))]
            return Fault(kind, at, instance.id, luck.choice(names), luck.uniform(0.0, 0.5))
        case Kind.REPEAT:
            return Fault(kind, at, luck.choice(workers), luck.choice(gateways))
        case Kind.LEAVE:
            arrival = luck.choice(arrivals)
            return Fault(kind, arrival.at + luck.uniform(0.0, 0.6), arrival.request.id)


def _consistent(faults: list[Fault]) -> list[Fault]:
    """Who is dead for good cannot be replaced by who changes roles: with drains all deaths end."""
    if all(fault.kind not in (Kind.DRAIN, Kind.FORCE) for fault in faults):
        return faults
    return [replace(fault, seconds=min(fault.seconds, 1.0)) for fault in faults]


def _timed(fault: Fault, luck: random.Random) -> Fault:
    """`fault` at some moment instead of some time; mostly it strikes what the moment is about."""
    moment = Moment(luck.choice(NAMES), luck.choice([1, 1, 2, 3, 5, 8]))
    delay = luck.choice([0.0, luck.uniform(0.0, 0.02), luck.uniform(0.0, 0.1)])
    aimed = fault.seconds < FOR_GOOD and fault.kind is not Kind.REPEAT and luck.random() < 0.6
    return replace(fault, at=delay, when=moment, target=SUBJECT if aimed else fault.target)


def _links(workers: list[str], gateways: tuple[str, ...]) -> list[tuple[str, str]]:
    pairs = [(SCHEDULER, name) for name in (*workers, *gateways)]
    pairs += [(worker, gateway) for worker in workers for gateway in gateways]
    return pairs + [(one, other) for index, one in enumerate(workers) for other in workers[index + 1 :]]


def _survivable(target: str, instances: tuple[InstanceShape, ...], others: list[Fault]) -> bool:
    """Whether requests can still be served when `target`, too, is dead or cut from the scheduler for good."""
    dead = {fault.other or fault.target for fault in others if fault.seconds >= FOR_GOOD} | {target}
    left = [shape.roles for shape in instances if shape.worker not in dead]
    needed = frozenset().union(*(shape.roles for shape in instances))
    return SCHEDULER not in dead and all(any(role in roles for roles in left) for role in needed)
