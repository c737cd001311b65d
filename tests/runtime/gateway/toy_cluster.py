"""A whole deployment in one event loop: the real gateway, a fake scheduler and two fake workers, all over real gRPC on loopback.

The fakes are honest. A request's tokens come from the real termination rules on toy drawings: sample s of a prompt draws the bytes of
`reply(prompt, s)`, then EOS. The prefill worker emits the first token and the prompt's report, the decode worker the rest. What a test
wants to go wrong it does itself, by replacing `TinyScheduler.script`.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from tests.runtime.gateway.calls import until
from triptych.models.text.chat import ChatTemplate
from triptych.models.text.detokenizer import Detokenizer
from triptych.models.text.stop import StopMatcher
from triptych.models.text.toy import TOY_CHAT_TEMPLATE, toy_tokenizer
from triptych.proto.v1 import (
    common_pb2,
    control_pb2,
    control_pb2_grpc,
    inference_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)
from triptych.runtime.core.control import (
    Cancel,
    Completed,
    Declare,
    Directory,
    Failed,
    Interrupted,
    MediaNeeded,
    Placed,
    Progress,
    Resume,
    Submit,
)
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import Capacity, Compatibility, InstanceInfo, InstanceRef, Load, Role
from triptych.runtime.core.request import Finish, Logprobs, PromptReport, Request, SampleState, TokenOut
from triptych.runtime.core.tasks import StageTimes
from triptych.runtime.gateway.config import GatewayConfig, ServerFacts
from triptych.runtime.gateway.media.desk import Processor
from triptych.runtime.gateway.model import ServedModel
from triptych.runtime.gateway.server import Gateway, start_server
from triptych.runtime.instance.termination import Termination
from triptych.runtime.wire.convert import decode_oneof, encode, encode_oneof

TOKENIZER = toy_tokenizer()
EOS = TOKENIZER.eos_ids[0]
MODEL_LEN = 128
PREFILL_TIMES = StageTimes(queue=0.5, compute=2.0)
CACHED = 16  # prompt tokens that the toy prefill reports as cached
MARKS = itertools.count()


def toy_model(**changes: Any) -> ServedModel:
    arguments: dict[str, Any] = {
        "name": "toy",
        "architecture": "LlamaForCausalLM",
        "revision": "r1",
        "vocab_size": 260,
        "max_model_len": MODEL_LEN,
        "tokenizer": TOKENIZER,
        "chat_template": ChatTemplate(TOY_CHAT_TEMPLATE, bos_token=TOKENIZER.bos_token, eos_token=TOKENIZER.eos_token),
        "eos_token_ids": TOKENIZER.eos_ids,
        "parameters": 7,
    }
    return ServedModel(**(arguments | changes))


def reply(prompt: Sequence[int], sample: int) -> str:
    """What the toy model says: different for every prompt and sample, with characters of two and four bytes."""
    return f"s{sample}:{sum(prompt) % 97} é😀 the end"


def instance(name: str, address: str, *roles: Role) -> InstanceInfo:
    return InstanceInfo(
        InstanceRef(name, 7),
        f"worker-{name}",
        address,
        frozenset(roles),
        Capacity(8, 64, 16, MODEL_LEN),
        Compatibility(1, "toy", "r1", "float32", 16, "v1"),
        tp=2,
    )


class TextProbe:
    """The decode instance's side of stop strings."""

    def __init__(self, stops: tuple[str, ...]):
        self._detokenizer = Detokenizer(TOKENIZER)
        self._matcher = StopMatcher(stops)

    def push(self, token: int) -> str | None:
        return self._matcher.push(self._detokenizer.push(token)).matched


def generation(request: Request, text: Callable[[Sequence[int], int], str] = reply) -> list[list[TokenOut]]:
    """Every token of the request, per sample, as honest instances emit them."""
    samples = []
    for sample in range(request.sampling.n):
        rules = Termination(request, eos_ids=TOKENIZER.eos_ids, max_model_len=MODEL_LEN, stop_probe=TextProbe)
        drawn = [*TOKENIZER.encode(text(request.prompt, sample), add_special_tokens=False), EOS]
        emitted: list[TokenOut] = []
        finish: Finish | None = None
        while finish is None:
            index = len(emitted)
            token = drawn[index % len(drawn)]
            finish = rules.check(token, index + 1)
            position = len(request.prompt) + index
            emitted.append(
                TokenOut(request.id, request.attempt, sample, position, token, _logprobs(request, token), finish)
            )
        samples.append(emitted)
    return samples


def _logprobs(request: Request, token: int) -> Logprobs | None:
    count = request.sampling.logprobs
    return None if count is None else Logprobs(-token / 100, tuple((rank, -0.5 - rank) for rank in range(count)))


class MediaDoor:
    """The encode instances' side of PutMedia.

    Attributes:
        headers: of every call, in order.
        stored: bytes by (instance, hash).
        failures: what the next calls end with, after this many messages of data: (messages, status).
        gate: calls wait for it before they answer the header.
        answer: calls wait for it before they say that all is stored.
    """

    def __init__(self) -> None:
        self.headers: list[worker_pb2.MediaHeader] = []
        self.stored: dict[tuple[str, str], bytes] = {}
        self.failures: list[tuple[int, grpc.StatusCode]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.answer = asyncio.Event()
        self.answer.set()
        self.broken_off = 0

    async def take(self, requests: Any, context: Any) -> AsyncIterator[worker_pb2.PutMediaReply]:
        messages = aiter(requests)
        header = (await anext(messages)).header
        self.headers.append(header)
        key = (header.owner.id, header.hash)
        await self.gate.wait()
        left, code = self.failures.pop(0) if self.failures else (1 << 30, None)
        if left == 0:
            await context.abort(code, "the test says so")
        yield worker_pb2.PutMediaReply(wanted=key not in self.stored)
        if key in self.stored:
            return
        data = b""
        try:
            async for message in messages:
                data += message.data
                left -= 1
                if left == 0:
                    await context.abort(code, "the test says so")
        except asyncio.CancelledError:
            self.broken_off += 1
            raise
        assert zlib.crc32(data) == header.checksum and len(data) == math.prod(header.shape)
        self.stored[key] = data
        await self.answer.wait()
        yield worker_pb2.PutMediaReply(stored=True)


class TinyWorker(worker_pb2_grpc.WorkerServicer):
    """Emits what it is told; keeps tokens until a gateway subscribes."""

    def __init__(self) -> None:
        self.subscriptions = self.unsubscribed = 0
        self.media = MediaDoor()
        self._batches: asyncio.Queue[worker_pb2.TokenBatch | None] = asyncio.Queue()

    async def Subscribe(self, request: Any, context: Any) -> AsyncIterator[worker_pb2.TokenBatch]:
        self.subscriptions += 1
        try:
            await context.send_initial_metadata(())
            while (batch := await self._batches.get()) is not None:
                yield batch
        finally:
            self.unsubscribed += 1

    async def PutMedia(self, requests: Any, context: Any) -> AsyncIterator[worker_pb2.PutMediaReply]:
        async for reply in self.media.take(requests, context):
            yield reply

    def emit(self, *tokens: TokenOut) -> None:
        self._batches.put_nowait(worker_pb2.TokenBatch(tokens=[encode(t, common_pb2.TokenOut, 0.0) for t in tokens]))

    def prompt_done(self, request: Request, attempt: int = 1) -> None:
        report = PromptReport(len(request.prompt), min(CACHED, len(request.prompt) - 1), _prompt_logprobs(request))
        done = worker_pb2.PromptDone(
            request=request.id,
            attempt=attempt,
            report=encode(report, common_pb2.PromptReport, 0.0),
            times=encode(PREFILL_TIMES, common_pb2.StageTimes, 0.0),
        )
        self._batches.put_nowait(worker_pb2.TokenBatch(prompts=[done]))

    def break_stream(self) -> None:
        """End the current subscription, as a dying worker does."""
        self._batches.put_nowait(None)


def _prompt_logprobs(request: Request) -> tuple[tuple[int, Logprobs | None], ...]:
    if request.sampling.prompt_logprobs is None:
        return ()
    return tuple((token, Logprobs(-float(i)) if i else None) for i, token in enumerate(request.prompt))


def rest(request: Request, resumed: Sequence[SampleState]) -> list[list[TokenOut]]:
    """The tokens that are left to emit when the client has seen `resumed` (empty: nothing)."""
    samples = generation(request)
    for state in resumed:
        drawn = [token.token for token in samples[state.sample]]
        assert list(state.outputs) == drawn[: len(state.outputs)], "resumed from something that was never emitted"
        samples[state.sample] = [] if state.finish else samples[state.sample][len(state.outputs) :]
    return samples


@dataclass
class Order:
    """One submitted or resumed request, with the means to serve it."""

    request: Request
    scheduler: TinyScheduler
    prefill: TinyWorker
    decode: TinyWorker
    resumed: tuple[SampleState, ...] = ()
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    cancel_reason: str = ""

    def place(self) -> None:
        prefill, decode = (info.ref for info in self.scheduler.instances[:2])
        self.notice(Placed(self.request.id, prefill, decode, queue=0.25, attempt=self.request.attempt))

    def progress(self) -> None:
        self.notice(Progress(self.request.id, Role.PREFILL, PREFILL_TIMES, self.request.attempt))
        times = StageTimes(transfer=3.0, bytes_moved=1000, pages_pulled=5, pages_skipped=1)
        self.notice(Progress(self.request.id, Role.DECODE, times, self.request.attempt))

    def need(self, *items: int, encode: str = "e0", attempt: int | None = None) -> None:
        """The encode instance of this name, in the prefill worker's process, lacks these items."""
        ref, address = InstanceRef(encode, 9), self.scheduler.instances[0].address
        self.notice(MediaNeeded(self.request.id, ref, address, items, attempt or self.request.attempt))

    def complete(self) -> None:
        self.notice(Completed(self.request.id, preemptions=2, attempt=self.request.attempt))

    def interrupt(self, attempt: int) -> None:
        self.notice(Interrupted(self.request.id, attempt, "instance d0 was lost"))

    def fail(self, status: Status, reason: str, retry_after: float | None = None) -> None:
        self.notice(Failed(self.request.id, status, reason, retry_after))

    def notice(self, notice: Any) -> None:
        self.scheduler.send(notice)


async def serve_well(order: Order) -> None:
    """What a healthy cluster does with a request."""
    order.place()
    samples = rest(order.request, order.resumed)
    order.prefill.emit(*(tokens[0] for tokens in samples if tokens))
    order.prefill.prompt_done(order.request, order.request.attempt)
    order.progress()
    for step in range(1, max(map(len, samples))):
        order.decode.emit(*(tokens[step] for tokens in samples if step < len(tokens)))
        await asyncio.sleep(0)
    order.complete()


async def never(order: Order) -> None:
    """Place it, and then nothing."""
    order.place()


Script = Callable[[Order], Coroutine[Any, Any, None]]


class TinyScheduler(control_pb2_grpc.ControlServicer):
    """Hands each submission to `script`; records everything."""

    def __init__(self, workers: tuple[TinyWorker, TinyWorker]):
        self.script: Script = serve_well
        self.orders: dict[str, Order] = {}
        self.instances: tuple[InstanceInfo, ...] = ()
        self.gateways: list[str] = []
        self.said_good_bye = False
        self.declared: list[Request] = []
        self.resumed: list[Resume] = []
        self._workers = workers
        self._outgoing: asyncio.Queue[control_pb2.GatewayNotice | None] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def last(self) -> Order:
        return list(self.orders.values())[-1]

    def send(self, notice: Any) -> None:
        self._outgoing.put_nowait(encode_oneof(notice, control_pb2.GatewayNotice, 0.0))

    def announce(self, instances: Iterable[InstanceInfo]) -> None:
        self.instances = tuple(instances)
        self.send(Directory(self.instances))

    def break_stream(self) -> None:
        """End the gateway's stream, as a dying scheduler does."""
        self._outgoing.put_nowait(None)

    async def Gateway(self, request_iterator: Any, context: Any) -> AsyncIterator[control_pb2.GatewayNotice]:
        self._outgoing = outgoing = asyncio.Queue()
        listener = asyncio.create_task(self._listen(request_iterator))
        try:
            while (notice := await outgoing.get()) is not None:
                yield notice
        finally:
            listener.cancel()
            await asyncio.gather(listener, *self._tasks, return_exceptions=True)

    async def _listen(self, messages: Any) -> None:
        async for message in messages:
            if message.WhichOneof("kind") == "hello":
                self.gateways.append(message.hello.gateway)
                self.announce(self.instances)
                continue
            if message.WhichOneof("kind") == "leave":
                self.said_good_bye = True
                continue
            event = decode_oneof(message, asyncio.get_running_loop().time())
            if isinstance(event, Declare):
                self.declared.append(event.request)
            elif isinstance(event, Submit | Resume):
                samples = event.samples if isinstance(event, Resume) else ()
                if isinstance(event, Resume):
                    self.resumed.append(event)
                order = self.orders[event.request.id] = Order(event.request, self, *self._workers, samples)
                task = asyncio.create_task(self._play(order))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            elif isinstance(event, Cancel) and event.request in self.orders:
                self.orders[event.request].cancel_reason = event.reason
                self.orders[event.request].cancelled.set()

    async def _play(self, order: Order) -> None:
        try:
            await self.script(order)
        except Exception as error:
            order.fail(Status.INTERNAL, f"the test's script failed: {error!r}")
            raise

    async def GetCluster(self, request: Any, context: Any) -> control_pb2.Cluster:
        cluster = control_pb2.Cluster(queued=3, active=4)
        for info in self.instances:
            load = Load(running=1, waiting=2, free_pages=30, free_slots=5, staged=6)
            cluster.instances.add(
                info=encode(info, common_pb2.InstanceInfo, 0.0), load=encode(load, common_pb2.Load, 0.0)
            )
        return cluster


@dataclass
class Cluster:
    """The running deployment."""

    gateway: Gateway
    scheduler: TinyScheduler
    prefill: TinyWorker
    decode: TinyWorker
    address: str
    channel: grpc.aio.Channel
    stub: inference_pb2_grpc.InferenceStub
    servers: list[grpc.aio.Server]  # of the two workers and of the scheduler
    control_address: str

    @property
    def emitted(self) -> int:
        """Tokens of open requests that the gateway has put in order."""
        return sum(live.session.journal.emitted for live in self.gateway._requests._lives())

    async def noticed(self) -> None:
        """Until the gateway has heard every notice so far. Notices and tokens come on streams of their own, which nothing orders."""
        here = self.scheduler.instances
        mark = instance(f"mark-{next(MARKS)}", here[0].address, Role.ENCODE)
        self.scheduler.announce((*here, mark))
        await until(lambda: any(one.ref == mark.ref for one in self.gateway._directory.instances))
        self.scheduler.announce(here)

    async def restart_scheduler(self) -> None:
        """The scheduler's process dies; another one, with an empty memory, takes its address."""
        await self.servers.pop().stop(None)
        fresh = TinyScheduler((self.prefill, self.decode))
        fresh.instances, self.scheduler = self.scheduler.instances, fresh
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        control_pb2_grpc.add_ControlServicer_to_server(fresh, server)
        server.add_insecure_port(self.control_address)
        self.servers.append(server)
        await server.start()


@asynccontextmanager
async def cluster(
    model: ServedModel | None = None,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    processor: Processor | None = None,
    **limits: Any,
) -> AsyncIterator[Cluster]:
    """Start everything, wait until the gateway serves; afterwards no request may be left open."""
    workers = TinyWorker(), TinyWorker()
    servers, addresses = [], []
    for worker in workers:
        server = grpc.aio.server()
        worker_pb2_grpc.add_WorkerServicer_to_server(worker, server)
        addresses.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        servers.append(server)
    scheduler = TinyScheduler(workers)
    scheduler.instances = (
        instance("p0", addresses[0], Role.PREFILL),
        instance("d0", addresses[1], Role.DECODE),
    )
    control = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    control_pb2_grpc.add_ControlServicer_to_server(scheduler, control)
    config = GatewayConfig(scheduler=f"127.0.0.1:{control.add_insecure_port('127.0.0.1:0')}", **limits)
    servers.append(control)
    for server in servers:
        await server.start()
    gateway = Gateway(
        config, model or toy_model(), ServerFacts("0.1.0", "1P1D", '{"model": "toy"}'), processor=processor
    )
    front, port = await start_server(gateway, config, "127.0.0.1:0", interceptors=interceptors)
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=(("grpc.max_send_message_length", -1),))
    try:
        await until(lambda: gateway.serving)
        stub = inference_pb2_grpc.InferenceStub(channel)
        yield Cluster(gateway, scheduler, *workers, f"127.0.0.1:{port}", channel, stub, servers, config.scheduler)
        await until(lambda: gateway.open_requests == 0 and gateway.courier.active == 0)
        assert gateway.media is None or gateway.media.keep.held_bytes == 0
    finally:
        await channel.close()
        await front.stop(0)
        await gateway.stop()
        for server in servers:
            await server.stop(0)
