"""Tokens on their way to gateways: one bounded outbox per gateway, drained by that gateway's subscription.

Tokens of a step leave in one message. An outbox exists from the first token on, so nothing is lost if a gateway subscribes a moment
later; it is bounded, because a gateway that never comes (or reads too slowly) must not grow this process. Overflow breaks the
subscription: the gateway then knows that tokens were lost instead of missing one silently. A restarted gateway has another name, so an outbox that
nobody has read for UNREAD seconds is forgotten.

Owned by the asyncio loop of the worker process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from triptych.proto.v1 import common_pb2, worker_pb2
from triptych.runtime.core.clock import Clock, MonotonicClock
from triptych.runtime.core.errors import OverloadedError
from triptych.runtime.instance.messages import Emit, EmitPrompt
from triptych.runtime.wire.convert import encode

MAX_PENDING = 65_536  # tokens, prompt tokens with log-probabilities included; about 4 MiB, a second of a large batch
UNREAD = 60.0  # seconds; a gateway that lives subscribes again within its backoff of a few


class TokenOutbox:
    """What one gateway has still to read. At most one reader; a new subscription replaces the old one."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._unread_since: float | None = clock.now()
        self._batch = worker_pb2.TokenBatch()
        self._pending = 0
        self._overflowed = False
        self._reader = 0
        self._wake = asyncio.Event()

    @property
    def pending(self) -> int:
        return self._pending

    @property
    def unread_seconds(self) -> float:
        """Since the last subscription ended, or since it was made; 0 while there is one."""
        return 0.0 if self._unread_since is None else self._clock.now() - self._unread_since

    def add_tokens(self, message: Emit) -> None:
        if not self._admit(len(message.tokens)):
            return
        tokens = self._batch.tokens
        for token in message.tokens:
            if token.logprobs is None and token.finish is None:
                request, attempt, sample, position, value, _, _ = token
                # As `encode`, which takes four times as long: the device loop waits for the interpreter meanwhile.
                tokens.add(request=request, attempt=attempt, sample=sample, position=position, token=value)
            else:
                tokens.append(encode(token, common_pb2.TokenOut, 0.0))

    def add_prompt(self, message: EmitPrompt) -> None:
        if self._admit(1 + len(message.report.prompt_logprobs)):
            self._batch.prompts.append(
                worker_pb2.PromptDone(
                    request=message.request,
                    attempt=message.attempt,
                    report=encode(message.report, common_pb2.PromptReport, 0.0),
                    times=encode(message.times, common_pb2.StageTimes, 0.0),
                )
            )

    async def batches(self) -> AsyncGenerator[worker_pb2.TokenBatch, None]:
        """Everything so far and from now on. Ends when a newer subscription takes over. Raises OverloadedError after an overflow."""
        self._reader += 1
        mine = self._reader
        self._unread_since = None
        self._wake.set()
        try:
            while True:
                await self._wake.wait()
                if self._reader != mine:
                    self._wake.set()
                    return
                self._wake.clear()
                if self._overflowed:
                    raise OverloadedError(
                        f"gateway read too slowly: more than {MAX_PENDING} tokens were waiting for it"
                    )
                if self._pending:
                    batch, self._batch, self._pending = self._batch, worker_pb2.TokenBatch(), 0
                    yield batch
        finally:
            if self._reader == mine:
                self._unread_since = self._clock.now()

    def _admit(self, count: int) -> bool:
        if self._pending and self._pending + count > MAX_PENDING:  # a message larger than that may wait alone
            self._overflowed = True
            self._batch, self._pending = worker_pb2.TokenBatch(), 0
        if not self._overflowed:
            self._pending += count
        self._wake.set()
        return not self._overflowed


class TokenOutboxes:
    """The outboxes of a worker process, by gateway id."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or MonotonicClock()
        self._by_gateway: dict[str, TokenOutbox] = {}

    def of(self, gateway: str) -> TokenOutbox:
        outbox = self._by_gateway.get(gateway)
        if outbox is None:
            for gone in [name for name, other in self._by_gateway.items() if other.unread_seconds > UNREAD]:
                self.forget(gone)
            outbox = self._by_gateway[gateway] = TokenOutbox(self._clock)
        return outbox

    def emit(self, message: Emit | EmitPrompt) -> None:
        outbox = self.of(message.gateway)
        if isinstance(message, Emit):
            outbox.add_tokens(message)
        else:
            outbox.add_prompt(message)

    def forget(self, gateway: str) -> None:
        self._by_gateway.pop(gateway, None)

    @property
    def pending(self) -> int:
        return sum(outbox.pending for outbox in self._by_gateway.values())
