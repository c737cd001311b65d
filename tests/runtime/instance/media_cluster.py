"""Instances of any roles, and a scheduler and gateways that do the least for requests with media. What goes from one to another
keeps its order, and nothing else does; pulls, pixels and pools can be lost.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field, replace

from tests.runtime.instance.cluster import Node
from tests.runtime.instance.fake_device import expected_outputs
from tests.runtime.instance.media_wires import Wires, seen_samples
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.core.request import Request, SampleState, TokenOut
from triptych.runtime.core.tasks import (
    AbortTask,
    DecodeStarted,
    EncodeDone,
    EncodeStaged,
    FeedMedia,
    Granted,
    MediaWanted,
    PrefillDone,
    Refused,
    ReserveDecode,
    Staged,
    StartDecode,
    StartEncode,
    StartLocal,
    StartPrefill,
    TaskCommand,
    TaskEnded,
    TaskReport,
)
from triptych.runtime.instance.messages import Command, Tick

TTL, LEASE = 3.0, 6.0
LOST = (Status.UNAVAILABLE, Status.DATA_LOSS)


Want = tuple[bool, int]  # whether it is the decode task that wants it, the item


@dataclass
class Journal:
    """What scheduler and gateway know of one request under its present attempt."""

    request: Request
    prompt: Node
    decode: Node
    resumed: tuple[SampleState, ...] = ()
    live: set[tuple[Node, Role]] = field(default_factory=set)
    wanted: set[Want] = field(default_factory=set)
    encodes: dict[tuple[Node, bool], tuple[tuple[int, ...], bool]] = field(
        default_factory=dict
    )  # items, whether they were fed
    tokens: dict[int, dict[int, TokenOut]] = field(default_factory=lambda: defaultdict(dict))
    over: Status | None = None
    reason: str = ""

    @property
    def local(self) -> bool:
        return self.prompt is self.decode

    def seen(self) -> tuple[SampleState, ...]:
        """All samples as the client has seen them; what lies behind a gap never counts."""
        return seen_samples(self.request, self.tokens)


class MediaCluster(Wires):
    """`luck` decides where things are placed and, with `trouble`, what is lost."""

    def __init__(self, nodes: list[Node], luck: random.Random, trouble: float = 0.0):
        super().__init__(nodes, luck, trouble)
        self.journals: dict[str, Journal] = {}
        self.commands: dict[Node, deque[TaskCommand]] = {node: deque() for node in nodes}
        self.begun: Counter[tuple[str, int, Role, int, bool]] = Counter()  # node index; of an encode task, who pulls
        self.backlog: list[Journal] = []

    def hear_token(self, token: TokenOut) -> None:
        journal = self.journals[token.request]
        if token.attempt == journal.request.attempt:
            assert token.position not in journal.tokens[token.sample], "a position is emitted once"
            journal.tokens[token.sample][token.position] = token

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
            self.route(node, message)
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
            self.bring(self.pixels.pop(luck.randrange(len(self.pixels))))
        elif kind == 3 and self.pulls:
            self.move(luck.choice(self.pulls))
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
                self.bring(self.pixels.pop(0))
            for pull in list(self.pulls):
                moved |= pull in self.pulls and self.move(pull)
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

    # ---- the scheduler ------------------------------------------------------------------------------------------------------------------

    def _place(self) -> tuple[Node, Node]:
        both = [node for node in self.nodes if {Role.PREFILL, Role.DECODE} <= node.config.roles]
        prefills = [node for node in self.nodes if Role.PREFILL in node.config.roles]
        decodes = [node for node in self.nodes if Role.DECODE in node.config.roles]
        # Two that do both never serve one request together: each could wait for room that the other's requests hold.
        pairs = [(p, d) for p in prefills for d in decodes if p is not d and not (p in both and d in both)]
        pairs += [(node, node) for node in both]
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
        """Every wanted item goes to an encode instance that has no task of this request for the same puller."""
        encoders = [node for node in self.nodes if Role.ENCODE in node.config.roles]
        parts: dict[tuple[Node, bool], list[int]] = {}
        for for_decode, index in sorted(journal.wanted):
            free = [node for node in encoders if (node, for_decode) not in journal.encodes]
            if free:
                parts.setdefault((self.luck.choice(free), for_decode), []).append(index)
        for (node, for_decode), items in parts.items():
            journal.wanted -= {(for_decode, item) for item in items}
            journal.encodes[node, for_decode] = (tuple(items), False)
            self.commands[node].append(StartEncode(journal.request, tuple(items), TTL, LEASE, for_decode))

    def _end_encodes(self, journal: Journal, for_decode: bool) -> None:
        """The puller has all that it needs."""
        journal.wanted = {want for want in journal.wanted if want[0] is not for_decode}
        name, attempt = journal.request.id, journal.request.attempt
        for node, pulled_by in journal.encodes:
            if pulled_by is for_decode:
                done = AbortTask(name, Status.OK, "all is there", Role.ENCODE, attempt, for_decode)
                self.commands[node].append(done)

    def _report(self, node: Node, report: TaskReport) -> None:
        journal = self.journals[report.request]
        index = self.nodes.index(node)
        match report:
            case Granted() | Staged() | EncodeStaged():
                role = {Granted: Role.DECODE, Staged: Role.PREFILL, EncodeStaged: Role.ENCODE}[type(report)]
                for_decode = isinstance(report, EncodeStaged) and report.for_decode
                self.begun[report.request, report.attempt, role, index, for_decode] += 1
            case TaskEnded():
                key = (report.request, report.attempt, report.role, index, report.for_decode)
                if not (
                    report.role is Role.DECODE and key not in self.begun
                ):  # a local task's start is not reported so
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
                for_decode = node is not journal.prompt
                assert not for_decode or all(journal.request.media[item].attended for item in report.items)
                journal.wanted |= {(for_decode, item) for item in report.items}
                self._encode(journal)
            case EncodeStaged():
                items, _ = journal.encodes[node, report.for_decode]
                journal.encodes[node, report.for_decode] = (items, True)
                puller = journal.decode if report.for_decode else journal.prompt
                self.commands[puller].append(FeedMedia(report.request, report.handle, items, report.attempt))
                names = {journal.request.media[item].hash for item in report.lacking}
                self.pixels += [(node, name) for name in sorted(names)]
            case EncodeDone():
                self.counts["encoded"] += report.encoded
            case PrefillDone():
                self._end_encodes(journal, for_decode=False)
                if report.finished:
                    self._end(journal, Status.OK, "")
            case DecodeStarted():
                self._end_encodes(journal, for_decode=True)
            case Refused(role=Role.ENCODE):
                items, _ = journal.encodes.pop((node, report.for_decode))
                if report.permanent:
                    self._end(journal, Status.INVALID_ARGUMENT, report.reason)
                else:
                    journal.wanted |= {(report.for_decode, item) for item in items}
            case Refused():
                if report.permanent:
                    self._end(journal, Status.INVALID_ARGUMENT, report.reason)
                elif journal not in self.backlog:
                    self._abort_all(journal, Status.UNAVAILABLE, "refused")
                    self.backlog.append(journal)
            case TaskEnded(role=Role.ENCODE):
                items, fed = journal.encodes.pop((node, report.for_decode), ((), True))
                journal.wanted |= set() if fed else {(report.for_decode, item) for item in items}
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
