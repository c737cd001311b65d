"""Instances and the wires between them: messages, exported pages, pulls, pixels. Everything moves only when told, and with
`trouble` some of it is lost.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass

from tests.runtime.instance.cluster import Node
from triptych.runtime.core.errors import Status
from triptych.runtime.core.request import Continuation, Request, SampleState, TokenOut
from triptych.runtime.core.tasks import FeedMedia, StageTimes, TaskReport
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
    KeepStaged,
    LeaseExtended,
    MediaArrived,
    MediaImported,
    OpenStaging,
    Report,
    StagedReleased,
    StartPull,
)
from triptych.runtime.instance.plan import Pool


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
    released: bool = False  # its puller gave up, or is the owner itself, so the rest need not be exported


def seen_samples(request: Request, tokens: dict[int, dict[int, TokenOut]]) -> tuple[SampleState, ...]:
    """All samples as the client has seen them, from `tokens` by sample and position. What lies behind a gap never counts, and is dropped
    from `tokens`."""
    states, first = [], len(request.prompt)
    for sample in range(request.sampling.n):
        outputs: list[TokenOut] = []
        while (token := tokens[sample].get(first + len(outputs))) is not None:
            outputs.append(token)
        tokens[sample] = {token.position: token for token in outputs}
        finish = outputs[-1].finish if outputs else None
        states.append(SampleState(sample, tuple(token.token for token in outputs), finish))
    return tuple(states) if any(state.outputs for state in states) else ()


class Wires:
    """What instances say goes into `reports` (in order, each its own), to `hear_token`, or into stagings and pulls."""

    def __init__(self, nodes: list[Node], luck: random.Random, trouble: float):
        self.nodes, self.luck, self.trouble = nodes, luck, trouble
        self.reports: dict[Node, deque[TaskReport]] = {node: deque() for node in nodes}
        self.pixels: list[tuple[Node, str]] = []
        self.stagings: dict[int, Staging] = {}
        self.pulls: list[Pull] = []
        self.counts: Counter[str] = Counter()

    def hear_token(self, token: TokenOut) -> None:
        raise NotImplementedError

    def send(self, node: Node, event: InstanceEvent) -> None:
        match event:
            case Command(command=FeedMedia(source=source)) if source.owner == node.core.ref:
                self.stagings[source.key].released = True  # nothing is pulled
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

    def route(self, node: Node, message: InstanceMessage) -> None:
        match message:
            case Report():
                self.reports[node].append(message.report)
            case Emit():
                for token in message.tokens:
                    self.hear_token(token)
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
            case KeepStaged():
                for key in message.keys:
                    staging = self.stagings[key]
                    if staging.owner.core.ref == message.owner and staging.closed is None:
                        self.send(staging.owner, LeaseExtended(key, waiting=True))
            case _:
                pass

    def move(self, pull: Pull) -> bool:
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

    def bring(self, pixels: tuple[Node, str]) -> None:
        node, name = pixels
        if self.luck.random() < self.trouble or name in node.device.shelf:
            self.counts["pixels lost"] += name not in node.device.shelf
            return
        node.device.shelf.add(name)
        self.send(node, MediaArrived(name))
