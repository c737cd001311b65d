"""Instances of any roles, a scheduler and gateways that do the least for requests with media, and wires between them that
keep the order of each pair and nothing else. Everything moves only when told; pulls, pixels and pools can be lost.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field, replace

from tests.runtime.instance.cluster import Node
from tests.runtime.instance.fake_device import expected_outputs
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.core.request import Continuation, Request, SampleState, TokenOut
from triptych.runtime.core.tasks import (
    AbortTask,
    EncodeDone,
    EncodeStaged,
    FeedMedia,
    Granted,
    MediaWanted,
    PrefillDone,
    Refused,
    ReserveDecode,
    Staged,
    StageTimes,
    StartDecode,
    StartEncode,
    StartLocal,
    StartPrefill,
    TaskCommand,
    TaskEnded,
    TaskReport,
)
from triptych.runtime.instance.messages import (
    CancelPull,
    CloseStaging,
    Command,
    CompleteStaging,
    Emit,
    Imported,
    ImportFailed,
    InstanceEvent,
    InstanceMessage,
    MediaArrived,
    MediaImported,
    OpenStaging,
    Report,
    StagedReleased,
    StartPull,
    Tick,
)
from triptych.runtime.instance.plan import Pool

TTL, LEASE = 3.0, 6.0
LOST = (Status.UNAVAILABLE, Status.DATA_LOSS)


@dataclass
class Pull:
    node: Node
    message: StartPull
    moved: int = 0


@dataclass
class Staging:
    owner: Node
    opened: OpenStaging
    complete: bool = False
    final: Continuation | None = None
    closed: str | None = None
    released: bool = False  # its puller gave up, so the rest need not be exported


@dataclass
class Journal:
    """What scheduler and gateway know of one request under its present attempt."""

    request: Request
    prompt: Node
    decode: Node
    resumed: tuple[SampleState, ...] = ()
    live: set[tuple[Node, Role]] = field(default_factory=set)
    wanted: set[int] = field(default_factory=set)
    encodes: dict[Node, tuple[tuple[int, ...], bool]] = field(default_factory=dict)  # items, whether they were fed
    tokens: dict[int, dict[int, TokenOut]] = field(default_factory=lambda: defaultdict(dict))
    over: Status | None = None
    reason: str = ""

    @property
    def local(self) -> bool:
        return self.prompt is self.decode

    def seen(self) -> tuple[SampleState, ...]:
        """All samples as the client has seen them; what lies behind a gap never counts."""
        states, first = [], len(self.request.prompt)
        for sample in range(self.request.sampling.n):
            tokens, outputs = self.tokens[sample], []
            while (token := tokens.get(first + len(outputs))) is not None:
                outputs.append(token)
            self.tokens[sample] = {token.position: token for token in outputs}
            finish = outputs[-1].finish if outputs else None
            states.append(SampleState(sample, tuple(token.token for token in outputs), finish))
        return tuple(states) if any(state.outputs for state in states) else ()


class MediaCluster:
    """`luck` decides where things are placed and, with `trouble`, what is lost."""

    def __init__(self, nodes: list[Node], luck: random.Random, trouble: float = 0.0):
        self.nodes, self.luck, self.trouble = nodes, luck, trouble
        self.journals: dict[str, Journal] = {}
        self.commands: dict[Node, deque[TaskCommand]] = {node: deque() for node in nodes}
        self.reports: dict[Node, deque[TaskReport]] = {node: deque() for node in nodes}
        self.pixels: list[tuple[Node, str]] = []
        self.stagings: dict[int, Staging] = {}
        self.pulls: list[Pull] = []
        self.begun: Counter[tuple[str, int, Role, int]] = Counter()  # node index
        self.counts: Counter[str] = Counter()
        self.backlog: list[Journal] = []

    # ---- what tests do ----------------------------------------------------------------------------------------------------------------

    def submit(self, req: Request) -> Journal:
        prompt, decode = self._place()
        journal = self.journals[req.id] = Journal(req, prompt, decode)
        self._begin(journal)
        return journal

    def abort(self, name: str) -> None:
        self._end(self.journals[name], Status.CANCELLED, "the client went away")

    def lose(self, node: Node) -> None:
        """The pools are gone; what was on its way to the instance never arrives."""
        node.results.clear()
        for page in (*node.device.pages, *node.device.embeddings):
            page[:] = [None] * len(page)
        node.device.slots.clear()
        for message in node.core.reset(InstanceRef(node.config.ref.id, node.core.ref.epoch + 1)):
            node.obey(message)
            self._route(node, message)
        node.core.audit()

    def advance(self, seconds: float) -> None:
        for node in self.nodes:
            node.now += seconds
            self.send(node, Tick())
        backlog, self.backlog = self.backlog, []
        for journal in backlog:
            if journal.over is None:
                self._again(journal, "")
        for journal in self.journals.values():
            self._encode(journal)

    def act(self) -> None:
        """One thing happens, whichever."""
        luck = self.luck
        kind = luck.randrange(6)
        node = luck.choice(self.nodes)
        if kind == 0 and self.commands[node]:
            self.send(node, Command(self.commands[node].popleft()))
        elif kind == 1 and self.reports[node]:
            self._report(node, self.reports[node].popleft())
        elif kind == 2 and self.pixels:
            self._bring(self.pixels.pop(luck.randrange(len(self.pixels))))
        elif kind == 3 and self.pulls:
            self._move(luck.choice(self.pulls))
        elif kind == 4:
            self.ready(node)
        else:
            self.done(node)

    def settle(self, rounds: int = 4000) -> None:
        """Everything that can happen without time passing does."""
        for _ in range(rounds):
            moved = False
            for node in self.nodes:
                while self.commands[node]:
                    moved = True
                    self.send(node, Command(self.commands[node].popleft()))
                while self.reports[node]:
                    moved = True
                    self._report(node, self.reports[node].popleft())
                before = node.device.last_plan
                self.ready(node)
                moved |= before != node.device.last_plan or bool(node.results)
                self.done(node)
            while self.pixels:
                moved = True
                self._bring(self.pixels.pop(0))
            for pull in list(self.pulls):
                moved |= pull in self.pulls and self._move(pull)
            if not moved:
                return
        raise AssertionError("the cluster does not come to rest")

    def assert_idle(self) -> None:
        for node in self.nodes:
            held, cfg = node.core.resources(), node.config
            assert held.idle, held
            assert held.free_slots == cfg.max_num_seqs
            assert held.free_pages + held.cached_pages == max(0, cfg.usable_pages)
            assert held.free_media_pages + held.cached_media_pages == max(0, cfg.media_pages - 1)
            assert not node.device.shelf
        assert all(count == 0 for count in self.begun.values()), "a task ended more or less often than it began"

    def check(self, journal: Journal) -> None:
        """What was given is right, and if the request ended well it is all."""
        req = journal.request
        longest = min(node.config.max_model_len for node in self.nodes)
        for sample in range(req.sampling.n):
            outputs, finish = expected_outputs(req, longest, sample)
            tokens = [journal.tokens[sample][position] for position in sorted(journal.tokens[sample])]
            for token in tokens:
                assert token.token == outputs[token.position - len(req.prompt)]
            if journal.over is Status.OK:
                assert [token.token for token in tokens] == outputs and tokens[-1].finish == finish

    # ---- events and messages ------------------------------------------------------------------------------------------------------------

    def send(self, node: Node, event: InstanceEvent) -> None:
        for message in node.send(event):
            self._route(node, message)

    def ready(self, node: Node) -> None:
        before = len(node.messages)
        node.ready()
        for message in node.messages[before:]:
            self._route(node, message)

    def done(self, node: Node) -> None:
        for message in node.done():
            self._route(node, message)

    def _route(self, node: Node, message: InstanceMessage) -> None:
        match message:
            case Report():
                self.reports[node].append(message.report)
            case Emit():
                for token in message.tokens:
                    journal = self.journals[token.request]
                    if token.attempt == journal.request.attempt:
                        assert token.position not in journal.tokens[token.sample], "a position is emitted once"
                        journal.tokens[token.sample][token.position] = token
            case OpenStaging():
                self.stagings[message.key] = Staging(node, message)
            case CompleteStaging():
                staging = self.stagings[message.key]
                first, pages = staging.opened.first_page, staging.opened.pages
                assert message.pool is staging.opened.pool
                if not staging.released:
                    assert sorted(node.exported[message.key]) == list(range(first, first + pages))
                staging.complete, staging.final = True, message.continuation
            case CloseStaging():
                assert message.pool is self.stagings[message.key].opened.pool
                self.stagings[message.key].closed = message.reason
            case StartPull():
                opened = self.stagings[message.source_key].opened
                assert (message.pool, message.first_page) == (opened.pool, opened.first_page)
                assert len(message.pages) == opened.pages and message.prompt_tokens == opened.prompt_tokens
                assert message.pool is Pool.KV or len(set(message.pages)) == len(message.pages)
                self.pulls.append(Pull(node, message))
            case CancelPull():
                (pull,) = (
                    pull
                    for pull in self.pulls
                    if pull.node is node
                    and (pull.message.request, pull.message.pool) == (message.request, message.pool)
                    and (message.pool is Pool.KV or pull.message.source_key == message.key)
                )
                self.pulls.remove(pull)
            case _:
                pass

    def _move(self, pull: Pull) -> bool:
        """A page, or the end of a pull. False if it has to wait."""
        message, staging = pull.message, self.stagings[pull.message.source_key]
        media = message.pool is Pool.MEDIA
        lost = self.luck.random() < self.trouble
        if staging.closed is not None or lost:
            self.pulls.remove(pull)
            self.counts["pulls lost"] += media
            failed = ImportFailed(
                message.request,
                Status.UNAVAILABLE,
                staging.closed or "lost",
                message.attempt,
                message.pool,
                message.source_key if media else 0,
            )
            self.send(pull.node, failed)
            if staging.closed is None:
                staging.released = True
                self.send(staging.owner, StagedReleased(message.source_key))
            return True
        if pull.moved < len(message.pages):
            source = staging.owner.exported[message.source_key].get(message.first_page + pull.moved)
            if source is None:
                return False
            mine, theirs = pull.node.device, staging.owner.device
            to = message.pages[pull.moved]
            if media:
                mine.embeddings[to] = list(theirs.embeddings[source])
            else:
                mine.pages[to] = list(theirs.pages[source])
            pull.moved += 1
            return True
        if not staging.complete:
            return False
        self.pulls.remove(pull)
        times = StageTimes(transfer=1.0, pages_pulled=pull.moved)
        if media:
            self.counts["pulled"] += 1
            self.send(pull.node, MediaImported(message.request, message.source_key, times, message.attempt))
        else:
            assert staging.final is not None
            self.send(pull.node, Imported(message.request, staging.final, times, message.attempt))
        self.send(staging.owner, StagedReleased(message.source_key))
        return True

    def _bring(self, pixels: tuple[Node, str]) -> None:
        node, name = pixels
        if self.luck.random() < self.trouble or name in node.device.shelf:
            self.counts["pixels lost"] += name not in node.device.shelf
            return
        node.device.shelf.add(name)
        self.send(node, MediaArrived(name))

    # ---- the scheduler ------------------------------------------------------------------------------------------------------------------

    def _place(self) -> tuple[Node, Node]:
        both = [node for node in self.nodes if {Role.PREFILL, Role.DECODE} <= node.config.roles]
        prefills = [node for node in self.nodes if Role.PREFILL in node.config.roles]
        decodes = [node for node in self.nodes if Role.DECODE in node.config.roles]
        pairs = [(p, d) for p in prefills for d in decodes if p is not d] + [(node, node) for node in both]
        return self.luck.choice(pairs)

    def _begin(self, journal: Journal) -> None:
        req = journal.request
        if journal.local:
            self.commands[journal.decode].append(StartLocal(req, journal.resumed))
        else:
            self.commands[journal.decode].append(ReserveDecode(req, TTL, journal.resumed))
        journal.live = {(journal.decode, Role.DECODE)}

    def _again(self, journal: Journal, reason: str) -> None:
        """The attempt is lost; the next one begins."""
        if journal.request.attempt == 30:
            self._end(journal, Status.UNAVAILABLE, reason)
            return
        self._abort_all(journal, Status.UNAVAILABLE, "the attempt is lost")
        journal.resumed = journal.seen()
        journal.request = replace(journal.request, attempt=journal.request.attempt + 1)
        journal.wanted, journal.encodes = set(), {}
        journal.prompt, journal.decode = self._place()
        self.counts["attempts"] += 1
        self._begin(journal)

    def _end(self, journal: Journal, status: Status, reason: str) -> None:
        if journal.over is None:
            journal.over, journal.reason = status, reason
            journal.wanted.clear()
            self._abort_all(journal, status, reason)

    def _abort_all(self, journal: Journal, status: Status, reason: str) -> None:
        for node in self.nodes:
            for role in Role:
                abort = AbortTask(journal.request.id, status, reason, role, journal.request.attempt)
                self.commands[node].append(abort)

    def _encode(self, journal: Journal) -> None:
        """Every wanted item goes to an encode instance that has no task of this request."""
        free = [node for node in self.nodes if Role.ENCODE in node.config.roles and node not in journal.encodes]
        parts: dict[Node, list[int]] = {}
        for index in sorted(journal.wanted) if free else ():
            parts.setdefault(self.luck.choice(free), []).append(index)
        for node, items in parts.items():
            journal.wanted -= set(items)
            journal.encodes[node] = (tuple(items), False)
            self.commands[node].append(StartEncode(journal.request, tuple(items), TTL, LEASE))

    def _report(self, node: Node, report: TaskReport) -> None:
        journal = self.journals[report.request]
        index = self.nodes.index(node)
        match report:
            case Granted() | Staged() | EncodeStaged():
                role = {Granted: Role.DECODE, Staged: Role.PREFILL, EncodeStaged: Role.ENCODE}[type(report)]
                self.begun[report.request, report.attempt, role, index] += 1
            case TaskEnded():
                key = (report.request, report.attempt, report.role, index)
                if not (report.role is Role.DECODE and key not in self.begun):  # a local task's start is not reported so
                    self.begun[key] -= 1
        if report.attempt != journal.request.attempt or journal.over is not None:
            return
        match report:
            case Granted():
                start = StartPrefill(journal.request, report.cached_tokens, LEASE, journal.resumed)
                self.commands[journal.prompt].append(start)
            case Staged():
                self.commands[journal.decode].append(StartDecode(report.request, report.handle, report.attempt))
            case MediaWanted():
                self.counts["wanted"] += len(report.items)
                journal.wanted |= set(report.items)
                self._encode(journal)
            case EncodeStaged():
                items, _ = journal.encodes[node]
                journal.encodes[node] = (items, True)
                self.commands[journal.prompt].append(FeedMedia(report.request, report.handle, items, report.attempt))
                names = {journal.request.media[item].hash for item in report.lacking}
                self.pixels += [(node, name) for name in sorted(names)]
            case EncodeDone():
                self.counts["encoded"] += report.encoded
            case PrefillDone():
                journal.wanted.clear()
                for encoder in journal.encodes:
                    done = AbortTask(report.request, Status.OK, "the prompt is computed", Role.ENCODE, report.attempt)
                    self.commands[encoder].append(done)
                if report.finished:
                    self._end(journal, Status.OK, "")
            case Refused(role=Role.ENCODE):
                items, _ = journal.encodes.pop(node)
                if report.permanent:
                    self._end(journal, Status.INVALID_ARGUMENT, report.reason)
                else:
                    journal.wanted |= set(items)
            case Refused():
                if report.permanent:
                    self._end(journal, Status.INVALID_ARGUMENT, report.reason)
                elif journal not in self.backlog:
                    self._abort_all(journal, Status.UNAVAILABLE, "refused")
                    self.backlog.append(journal)
            case TaskEnded(role=Role.ENCODE):
                items, fed = journal.encodes.pop(node, ((), True))
                journal.wanted |= set() if fed else set(items)
                self._encode(journal)
            case TaskEnded():
                if report.status is Status.OK:
                    if report.role is Role.DECODE:
                        self._end(journal, Status.OK, "")
                elif report.status in LOST:
                    self.counts["media ends"] += "media" in report.reason
                    self._again(journal, report.reason)
                else:
                    self._end(journal, report.status, report.reason)
            case _:
                pass
