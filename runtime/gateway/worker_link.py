"""Subscriptions to the tokens of every worker in the directory.

A link exists as long as its worker's address is in the directory and a while longer (news of a departure may overtake the last tokens, and the
directory of a scheduler that has just started is empty), and reconnects while the address is there. A worker keeps what it emits before the
subscription; what is lost when a stream breaks in the middle shows as a gap in a journal, and those requests go on under a new attempt.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any, Protocol

import grpc

from triptych.proto.v1 import worker_pb2, worker_pb2_grpc
from triptych.runtime.core.clock import Clock
from triptych.runtime.core.errors import InvalidRequestError
from triptych.runtime.core.request import PromptReport, TokenOut
from triptych.runtime.core.tasks import StageTimes
from triptych.runtime.gateway.config import GatewayConfig
from triptych.runtime.gateway.links import Backoff, Connect, describe
from triptych.runtime.wire.convert import decode

logger = logging.getLogger(__name__)


class WorkerListener(Protocol):
    def on_tokens(self, tokens: Iterable[TokenOut]) -> None: ...

    def on_prompt(self, request: str, attempt: int, report: PromptReport, times: StageTimes) -> None: ...

    def on_subscriptions_changed(self) -> None: ...


class WorkerLink:
    """One worker's subscription."""

    def __init__(
        self,
        address: str,
        gateway: str,
        config: GatewayConfig,
        clock: Clock,
        listener: WorkerListener,
        connect: Connect,
        metadata: tuple[tuple[str, str], ...],
    ):
        self._address = address
        self._gateway = gateway
        self._config = config
        self._clock = clock
        self._listener = listener
        self._metadata = metadata
        self.leaving = (
            False  # whether the directory names it no more: then the end of its stream is no news, and the last one
        )
        self._channel = connect(address)
        self._stub = worker_pb2_grpc.WorkerStub(self._channel)
        self.subscribed = False
        self._task = asyncio.create_task(self._run(), name=f"worker link {address}")

    @property
    def over(self) -> bool:
        """Whether it has given up, because it ended while it was leaving."""
        return self._task.done()

    def put_media(self, timeout: float) -> Any:
        """A PutMedia call on the channel of the subscription. `timeout` in seconds."""
        return self._stub.PutMedia(timeout=timeout, metadata=self._metadata)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._channel.close()

    async def _run(self) -> None:
        backoff = Backoff(self._config)
        while True:
            reason = await self._listen(backoff)
            if self.leaving:
                return
            logger.warning("worker %s: %s", self._address, reason)
            await asyncio.sleep(backoff.next())

    async def _listen(self, backoff: Backoff) -> str:
        """One life of the subscription; returns why it ended."""
        await self._channel.channel_ready()
        call = self._stub.Subscribe(worker_pb2.SubscribeRequest(gateway=self._gateway), metadata=self._metadata)
        try:
            await call.initial_metadata()  # the worker sends its headers once the subscription stands
            self._set_subscribed(True)
            async for batch in call:
                backoff.reset()
                self._dispatch(batch)
        except grpc.aio.AioRpcError as error:
            return describe(error)
        except InvalidRequestError as error:  # a token that this version cannot read: the two do not belong together
            return error.message
        except (
            Exception
        ) as error:  # the link must survive a defect of whoever listens: a dead one would leave every request waiting
            logger.exception("a token batch could not be handled")
            return f"a token batch could not be handled: {type(error).__name__}"
        finally:
            call.cancel()
            self._set_subscribed(False)
        return "the worker closed the subscription"

    def _dispatch(self, batch: worker_pb2.TokenBatch) -> None:
        now = self._clock.now()
        # reports first: a request whose only token is in the same batch can then end without waiting for its usage
        for done in batch.prompts:
            times = decode(done.times, StageTimes, now)
            self._listener.on_prompt(done.request, done.attempt, decode(done.report, PromptReport, now), times)
        if batch.tokens:
            self._listener.on_tokens([decode(token, TokenOut, now) for token in batch.tokens])

    def _set_subscribed(self, subscribed: bool) -> None:
        if subscribed != self.subscribed:
            self.subscribed = subscribed
            self._listener.on_subscriptions_changed()


class WorkerLinks:
    """One link per worker address; `update` follows the directory."""

    def __init__(
        self,
        gateway: str,
        config: GatewayConfig,
        clock: Clock,
        listener: WorkerListener,
        connect: Connect,
        metadata: tuple[tuple[str, str], ...] = (),
    ):
        self._arguments = (gateway, config, clock, listener, connect, metadata)
        self._linger = config.link_linger
        self._links: dict[str, WorkerLink] = {}
        self._leaving: dict[str, asyncio.TimerHandle] = {}
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def subscribed(self) -> frozenset[str]:
        """Addresses whose tokens arrive now."""
        return frozenset(address for address, link in self._links.items() if link.subscribed)

    def put_media(self, address: str, timeout: float) -> Any:
        """A PutMedia call to the worker at `address`; None while there is no link to it. `timeout` in seconds."""
        link = self._links.get(address)
        return None if link is None else link.put_media(timeout)

    def update(self, addresses: frozenset[str]) -> None:
        """Open links to new addresses; let go of those to addresses that are gone."""
        for address in addresses:
            if address in self._leaving:
                self._leaving.pop(address).cancel()
                if self._links[address].over:
                    self._close(address)
            if address not in self._links:
                self._links[address] = WorkerLink(address, *self._arguments)
            self._links[address].leaving = False
        for address in self._links.keys() - addresses - self._leaving.keys():
            self._links[address].leaving = True
            self._leaving[address] = asyncio.get_running_loop().call_later(self._linger, self._close, address)

    async def close(self) -> None:
        """Close every link now."""
        for timer in self._leaving.values():
            timer.cancel()
        for address in list(self._links):
            self._close(address)
        while self._closing:
            await asyncio.gather(*self._closing)

    def _close(self, address: str) -> None:
        self._leaving.pop(address, None)
        task = asyncio.create_task(self._links.pop(address).close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
