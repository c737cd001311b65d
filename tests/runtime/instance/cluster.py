"""A test bench around InstanceCore: nodes (core + fake device), a wire between them, and a scheduler that does the
least.

Everything advances only when told: plans are executed at once, as a device with an in-order queue would, but a node's
core hears of results one at a time; a pull moves one page at a time, read at that moment from the owner's pages, so
that pages that were not kept show.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tests.runtime.instance.fake_device import EOS, FakeDevice, TokenProbe, expected_outputs
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.core.request import Continuation, Finish, PromptReport, Request, SampleState, TokenOut
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.core.tasks import (
    AbortTask,
    Accepted,
    DecodeStarted,
    Granted,
    PrefillDone,
    Refused,
    ReserveDecode,
    Staged,
    StageTimes,
    StartDecode,
    StartLocal,
    StartPrefill,
    TaskCommand,
    TaskEnded,
    TaskReport,
)
from triptych.runtime.instance.composer import DefaultComposer, StepComposer
from triptych.runtime.instance.config import InstanceConfig
from triptych.runtime.instance.core import InstanceCore
from triptych.runtime.instance.messages import (
    CancelPull,
    CloseStaging,
    Command,
    CompleteStaging,
    DeviceReady,
    DropMedia,
    Emit,
    EmitPrompt,
    Imported,
    ImportFailed,
    InstanceEvent,
    InstanceMessage,
    OpenStaging,
    Report,
    StagedReleased,
    StartPull,
    StepDone,
    Tick,
)
from triptych.runtime.instance.plan import StepPlan, StepResult
from triptych.runtime.instance.speculation import DrafterFactory
from triptych.runtime.instance.termination import StopProbeFactory


def config(name: str = "i", **changes) -> InstanceConfig:
    base = InstanceConfig(
        ref=InstanceRef(name, 7),
        address=f"host:{name}",
        digest="d",
        roles=frozenset({Role.PREFILL, Role.DECODE}),
        num_pages=64,
        page_size=4,
        max_num_seqs=8,
        max_model_len=64,
        chunk_tokens=16,
        max_prefill_rows=3,
        max_waiting=8,
        export_pages=2,
        eos_ids=(EOS,),
    )
    return replace(base, **changes)


def request(
    name: str, prompt: int | tuple[int, ...] = 10, *, deadline: float | None = None, salt: str = "", **params
) -> Request:
    """A request of a prompt (given, or of a length and then individual to `name`); it ignores EOS unless told."""
    tokens = (
        tuple((sum(map(ord, name)) * 17 + i * 29) % 89 + 1 for i in range(prompt))
        if isinstance(prompt, int)
        else prompt
    )
    chosen = {"max_tokens": 6, "ignore_eos": True, "seed": sum(map(ord, name))} | params
    return Request(name, "gw", "m", tokens, SamplingParams(**chosen), deadline=deadline, cache_salt=salt)


class Node:
    """One instance. `messages` is everything it said, `results` what its core has not heard of yet."""

    def __init__(
        self,
        cfg: InstanceConfig,
        *,
        composer: StepComposer | None = None,
        stop_probe: StopProbeFactory = TokenProbe,
        seed: int = 1,
        drafter: DrafterFactory | None = None,
    ):
        self.config = cfg
        self.core = InstanceCore(
            cfg, stop_probe=stop_probe, random=random.Random(seed), composer=composer, drafter=drafter
        )
        self.device = FakeDevice(cfg)
        self.results: deque[StepResult] = deque()
        self.messages: list[InstanceMessage] = []
        self.exported: dict[int, dict[int, int]] = defaultdict(dict)
        self.now = 0.0

    def send(self, event: InstanceEvent) -> list[InstanceMessage]:
        """Feed one event, execute what comes, audit."""
        answers = self.core.handle(event, self.now)
        self.core.audit()
        messages: list[InstanceMessage] = []
        for answer in answers:
            if isinstance(answer, StepPlan):
                self.results.append(self.device.execute(answer))
                for export in answer.exports:
                    for offset, page in enumerate(export.pages):
                        assert export.first_page + offset not in self.exported[export.key], "a page is exported twice"
                        self.exported[export.key][export.first_page + offset] = page
            else:
                self.obey(answer)
                messages.append(answer)
        self.messages += messages
        return messages

    def obey(self, message: InstanceMessage) -> None:
        """What the shell itself does about a message."""
        if isinstance(message, DropMedia):
            self.device.shelf.remove(message.hash)

    def command(self, command: TaskCommand) -> list[InstanceMessage]:
        return self.send(Command(command))

    def ready(self) -> bool:
        """Whether the core had a plan to give."""
        before = len(self.results)
        self.send(DeviceReady())
        return len(self.results) > before

    def done(self) -> list[InstanceMessage]:
        """The core hears of the oldest plan's result."""
        return self.send(StepDone(self.results.popleft())) if self.results else []

    def run(self, steps: int = 1000) -> None:
        """One step ahead, until there is nothing left to do."""
        for _ in range(steps):
            planned = self.ready()
            if len(self.results) == 2 or (not planned and self.results):
                self.done()
            elif not planned:
                return
        raise AssertionError("the node does not come to rest")

    def reports(self, kind: type) -> list:
        return [m.report for m in self.messages if isinstance(m, Report) and isinstance(m.report, kind)]

    def tokens(self, request_id: str, sample: int = 0) -> list[TokenOut]:
        emitted = [token for m in self.messages if isinstance(m, Emit) for token in m.tokens]
        return [token for token in emitted if token.request == request_id and token.sample == sample]


@dataclass
class Pull:
    node: Node
    message: StartPull
    moved: int = 0


@dataclass
class Staging:
    owner: Node
    opened: OpenStaging
    final: Continuation | None = None
    closed: CloseStaging | None = None


@dataclass
class Journal:
    """What gateway and scheduler know of one request, whose present attempt is `request`."""

    request: Request
    split: bool
    resumed: tuple[SampleState, ...] = ()
    refused: list[Refused] = field(default_factory=list)
    ended: dict[Role, TaskEnded] = field(default_factory=dict)
    begun: set[Role] = field(default_factory=set)
    prompt_report: PromptReport | None = None
    prefill_done: PrefillDone | None = None
    decode_started: DecodeStarted | None = None
    tokens: dict[int, list[TokenOut]] = field(default_factory=lambda: defaultdict(list))
    aborted: bool = False
    repeated: bool = False  # a command was repeated: what it started anew says things again
    stale: int = 0

    @property
    def over(self) -> bool:
        return self.begun <= self.ended.keys()

    def hear(self, token: TokenOut) -> None:
        """A position counts once, and only under the present attempt."""
        if token.attempt != self.request.attempt:
            assert token.attempt < self.request.attempt
            self.stale += 1
            return
        same = [known for known in self.tokens[token.sample] if known.position == token.position]
        if same:
            assert self.repeated and same[0].token == token.token and same[0].finish == token.finish
            return
        self.tokens[token.sample].append(token)

    def seen(self) -> tuple[SampleState, ...]:
        """All samples as the client has seen them; what lies behind a gap never counts."""
        for tokens in self.tokens.values():
            tokens.sort(key=lambda token: token.position)
            first = len(self.request.prompt)
            del tokens[sum(token.position == first + index for index, token in enumerate(tokens)) :]
        samples = range(self.request.sampling.n)
        return tuple(SampleState(sample, tuple(self.outputs(sample)), self.finish(sample)) for sample in samples)

    def next_attempt(self) -> None:
        seen = self.seen()
        self.resumed = seen if any(sample.outputs for sample in seen) else ()
        self.request = replace(self.request, attempt=self.request.attempt + 1)
        self.refused, self.ended, self.begun = [], {}, set()
        self.prefill_done = self.decode_started = None

    def outputs(self, sample: int = 0) -> list[int]:
        return [token.token for token in sorted(self.tokens[sample], key=lambda token: token.position)]

    def finish(self, sample: int = 0) -> Finish | None:
        return max(self.tokens[sample], key=lambda token: token.position).finish if self.tokens[sample] else None


class Cluster:
    """A prefill node, a decode node and the wire between them; requests run split over both, or locally on the decode
    node."""

    def __init__(
        self,
        prefill: InstanceConfig,
        decode: InstanceConfig,
        lease: float = 5.0,
        ttl: float = 5.0,
        drafter: DrafterFactory | None = None,
        composer: Callable[[], StepComposer] = DefaultComposer,
    ):
        self.prefill, self.decode = (Node(own, drafter=drafter, composer=composer()) for own in (prefill, decode))
        self.nodes = (self.prefill, self.decode)
        self.lease, self.ttl = lease, ttl
        self.journals: dict[str, Journal] = {}
        self.stagings: dict[int, Staging] = {}
        self.pulls: list[Pull] = []
        self.sent: list[tuple[Node, TaskCommand]] = []

    def advance(self, seconds: float) -> None:
        for node in self.nodes:
            node.now += seconds
            self.send(node, Tick())

    def submit(self, req: Request, *, split: bool) -> Journal:
        journal = self.journals[req.id] = Journal(req, split)
        self._begin(journal)
        return journal

    def interrupt(self, journal: Journal) -> None:
        """The scheduler gives this attempt up; every task of it ends."""
        for node in self.nodes:
            for role in Role:
                abort = AbortTask(journal.request.id, Status.UNAVAILABLE, "interrupted", role, journal.request.attempt)
                self.command(node, abort)

    def resume(self, journal: Journal, *, split: bool) -> None:
        """The request begins again from what its client has seen, whether or not the last attempt has ended here."""
        journal.next_attempt()
        journal.split = split
        self._begin(journal)

    def command(self, node: Node, command: TaskCommand) -> None:
        self.sent.append((node, command))
        self.send(node, Command(command))

    def repeat(self, back: int) -> None:
        """A command comes again, late."""
        if back < len(self.sent):
            node, command = self.sent[-1 - back]
            name = command.request if isinstance(command.request, str) else command.request.id
            self.journals[name].repeated = True
            self.send(node, Command(command))

    def _begin(self, journal: Journal) -> None:
        req, resumed = journal.request, journal.resumed
        self.command(self.decode, ReserveDecode(req, self.ttl, resumed) if journal.split else StartLocal(req, resumed))

    def abort(self, request_id: str) -> None:
        self.journals[request_id].aborted = True
        for node in self.nodes:
            self.send(node, Command(AbortTask(request_id, Status.CANCELLED, "client went away")))

    def send(self, node: Node, event: InstanceEvent) -> None:
        for message in node.send(event):
            self.route(node, message)

    def ready(self, node: Node) -> None:
        before = len(node.messages)
        node.ready()
        for message in node.messages[before:]:
            self.route(node, message)

    def done(self, node: Node) -> None:
        for message in node.done():
            self.route(node, message)

    def move(self, index: int = 0) -> bool:
        """One pull makes one move: a page, or its end. False if it has to wait."""
        if not self.pulls:
            return False
        pull = self.pulls[index % len(self.pulls)]
        message = pull.message
        staging = self.stagings[message.source_key]
        if staging.closed is not None:
            self.pulls.remove(pull)
            self.send(
                pull.node, ImportFailed(message.request, Status.UNAVAILABLE, staging.closed.reason, message.attempt)
            )
            return True
        if pull.moved < len(message.pages):
            index = message.first_page + pull.moved
            source = staging.owner.exported[message.source_key].get(index)
            if source is None:
                return False
            pull.node.device.pages[message.pages[pull.moved]] = list(staging.owner.device.pages[source])
            pull.moved += 1
            return True
        if staging.final is None:
            return False
        self.pulls.remove(pull)
        times = StageTimes(transfer=1.0, pages_pulled=pull.moved)
        self.send(pull.node, Imported(message.request, staging.final, times, message.attempt))
        self.send(staging.owner, StagedReleased(message.source_key))
        return True

    def settle(self, rounds: int = 3000) -> None:
        """Let everything run until nothing moves."""
        for _ in range(rounds):
            moved = False
            for node in self.nodes:
                before = (node.device.last_plan, len(node.results))
                self.ready(node)
                self.done(node)
                moved |= before != (node.device.last_plan, len(node.results)) or bool(node.results)
            for index in range(len(self.pulls)):
                moved |= self.move(index)
            if not moved:
                return
        raise AssertionError("the cluster does not come to rest")

    def check(self, journal: Journal) -> None:
        """A request that ended well gave exactly the expected tokens, each position once."""
        assert journal.over
        req = journal.request
        for sample in range(req.sampling.n):
            positions = [token.position for token in journal.tokens[sample]]
            assert sorted(positions) == [len(req.prompt) + i for i in range(len(positions))], (
                "positions are contiguous, each once"
            )
            outputs, finish = expected_outputs(req, self.decode.config.max_model_len, sample)
            assert journal.outputs(sample) == outputs[: len(positions)]
            if journal.ended and all(end.status is Status.OK for end in journal.ended.values()) and not journal.refused:
                assert journal.outputs(sample) == outputs
                assert journal.finish(sample) == finish

    def assert_idle(self) -> None:
        for node in self.nodes:
            held = node.core.resources()
            assert held.idle, held
            assert held.free_slots == node.config.max_num_seqs
            assert held.free_pages + held.cached_pages == node.config.usable_pages

    def route(self, node: Node, message: InstanceMessage) -> None:
        match message:
            case Report():
                self._report(node, message.report)
            case Emit():
                for token in message.tokens:
                    self.journals[token.request].hear(token)
            case EmitPrompt():
                journal = self.journals[message.request]
                if message.attempt == journal.request.attempt and journal.prompt_report is None:
                    journal.prompt_report = message.report
            case OpenStaging():
                self.stagings[message.key] = Staging(node, message)
            case CompleteStaging():
                staging = self.stagings[message.key]
                exported, opened = node.exported[message.key], staging.opened
                assert sorted(exported) == list(range(opened.first_page, opened.first_page + opened.pages))
                staging.final = message.continuation
            case CloseStaging():
                self.stagings[message.key].closed = message
            case StartPull():
                self.pulls.append(Pull(node, message))
            case CancelPull():
                cancelled = [pull for pull in self.pulls if pull.message.request == message.request]
                assert len(cancelled) == 1
                self.pulls.remove(cancelled[0])

    def _report(self, node: Node, report: TaskReport) -> None:
        journal = self.journals[report.request]
        role = _role(report, journal.split)
        current = report.attempt == journal.request.attempt
        if not current or role in journal.ended:
            assert not current or journal.repeated, "a task ends once"
            if not isinstance(report, Refused | TaskEnded):
                orphan = AbortTask(report.request, Status.CANCELLED, "nobody waits for it", role, report.attempt)
                self.command(node, orphan)
            return
        if role in journal.begun and journal.repeated and isinstance(report, Refused | Granted | Staged | Accepted):
            return
        match report:
            case Granted():
                journal.begun.add(Role.DECODE)
                self.command(
                    self.prefill, StartPrefill(journal.request, report.cached_tokens, self.lease, journal.resumed)
                )
            case Staged():
                journal.begun.add(Role.PREFILL)
                self.command(self.decode, StartDecode(report.request, report.handle, report.attempt))
            case Refused():
                journal.refused.append(report)
                self._abort_rest(report.request)
            case PrefillDone():
                assert journal.prefill_done is None
                journal.prefill_done = report
                if report.finished and journal.split:
                    self._abort_rest(report.request)
            case DecodeStarted():
                assert journal.decode_started is None
                journal.decode_started = report
            case TaskEnded():
                journal.begun.add(report.role)
                journal.ended[report.role] = report
                if report.status is not Status.OK:
                    self._abort_rest(report.request)
            case _:
                journal.begun.add(Role.DECODE)

    def _abort_rest(self, request_id: str) -> None:
        finished = self.journals[request_id].prefill_done
        status = Status.OK if finished is not None and finished.finished else Status.CANCELLED
        attempt = self.journals[request_id].request.attempt
        for node in self.nodes:
            self.send(node, Command(AbortTask(request_id, status, "the other half ended", attempt=attempt)))


def _role(report: TaskReport, split: bool) -> Role:
    match report:
        case Refused() | TaskEnded():
            return report.role
        case Staged():
            return Role.PREFILL
        case PrefillDone() if split:
            return Role.PREFILL
        case _:
            return Role.DECODE  # a local task's, too
