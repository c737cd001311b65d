"""The Inference service. The life of one Generate call:

    enter        a place and two ids                             OpenRequests.enter
    media        decoded and processed, held until the end       media/desk.py
    windows      of a sound: each goes through what follows      windows.py
    validate     envelope, deadline; text on a thread            validate.py, prompt.py
    submit       to the scheduler, or wait for one               LiveRequest.changed, SchedulerLink.send
    deliver      tokens, notices and timers feed its Session; what the Session queues is written to the client
    leave        counted once, by status; what still runs is cancelled

A client that goes away cancels this coroutine, at whatever point it is; `leave` happens all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial

import grpc

from triptych.models.speech.config import SAMPLE_RATE
from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core.clock import Clock
from triptych.runtime.core.control import Cancel
from triptych.runtime.core.errors import CancelledByClientError, InvalidRequestError, Status, TriptychError
from triptych.runtime.gateway.assemble import TextOptions
from triptych.runtime.gateway.config import GatewayConfig, ServerFacts
from triptych.runtime.gateway.live import LiveRequest, Write
from triptych.runtime.gateway.media.asking import Asked, asked_media, check_text_only, without_data
from triptych.runtime.gateway.media.bringing import MediaCourier
from triptych.runtime.gateway.media.desk import MediaDesk
from triptych.runtime.gateway.media.pieces import Medium, Piece
from triptych.runtime.gateway.media.uploads import UnsupportedMediaError, UploadShelf, owner_of
from triptych.runtime.gateway.model import ServedModel
from triptych.runtime.gateway.open_requests import Entry, OpenRequests
from triptych.runtime.gateway.prompt import chat_ids, check_ids, text_ids, tokenizer_of
from triptych.runtime.gateway.scheduler_link import SchedulerLink
from triptych.runtime.gateway.session import Session
from triptych.runtime.gateway.speech import check_speech
from triptych.runtime.gateway.text_pool import TextPool
from triptych.runtime.gateway.transcript import Transcript
from triptych.runtime.gateway.validate import build_request, check_envelope, deadline_of
from triptych.runtime.gateway.windows import transcribe_windows
from triptych.runtime.metrics.observer import RequestObserver
from triptych.runtime.wire.auth import client_of
from triptych.runtime.wire.rate import RateLimiter

Context = grpc.aio.ServicerContext

CLOCK_SLACK = 0.02  # seconds; a client ends its call at its own deadline, which comes a little before ours


class InferenceService:
    """Methods of triptych.v1.Inference; mounted by wire.handlers.service_handler, which turns what they raise into statuses."""

    def __init__(
        self,
        gateway: str,
        model: ServedModel,
        facts: ServerFacts,
        config: GatewayConfig,
        clock: Clock,
        requests: OpenRequests,
        scheduler: SchedulerLink,
        observer: RequestObserver,
        courier: MediaCourier,
        desk: MediaDesk | None = None,
        shelf: UploadShelf | None = None,
    ):
        self._gateway = gateway
        self._model = model
        self._facts = facts
        self._config = config
        self._clock = clock
        self._requests = requests
        self._scheduler = scheduler
        self._observer = observer
        self._text = TextPool(config)
        self._courier = courier
        self._desk = desk
        self._shelf = shelf
        self._limiter = None if config.rate is None else RateLimiter(config.rate)
        self._started = clock.now()

    def close(self) -> None:
        self._text.close()

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        arrived = self._clock.now()
        seen = self._observer.begin(request.request_id, context.invocation_metadata())
        status = Status.INTERNAL
        try:
            self._check_rate(context)
            check_envelope(request, self._model)
            asked = self._asked(request)
            check_speech(request, asked, self._model)
            deadline = deadline_of(request, context.time_remaining(), self._config.default_timeout, arrived)
            with self._requests.enter(request.request_id) as entry:
                write = seen.through(entry.public_id, context.write)
                try:
                    if self._desk is None:
                        await self._generate(request, write, entry, arrived, deadline, ())
                    else:
                        with self._desk.holding() as holding:
                            filling = self._desk.fill(holding, asked, owner_of(context), deadline - arrived)
                            await entry.unless_failed(filling)
                            if asked:
                                asked.clear()
                                request = without_data(request)
                            if self._model.speech is not None:
                                await self._transcribe(request, write, entry, arrived, deadline, holding.pieces)
                            else:
                                entry.pieces = holding.pieces
                                await self._generate(request, write, entry, arrived, deadline, holding.media)
                finally:
                    self._courier.forget(entry.internal_id)
            status = Status.OK
        except TriptychError as error:
            status = error.status
            raise
        except asyncio.CancelledError:
            left = context.time_remaining()
            status = Status.CANCELLED if left is None or left > CLOCK_SLACK else Status.DEADLINE_EXCEEDED
            raise
        finally:
            self._requests.counts.ended[status] += 1
            seen.end(status)

    def _asked(self, request: pb.GenerateRequest) -> list[Asked]:
        """The request's media. Raises InvalidRequestError where the model takes none."""
        asked = asked_media(request)
        if asked and self._desk is None:
            raise InvalidRequestError(f"{asked[0].field}: {self._model.name} takes no media; expected text")
        return asked

    async def _transcribe(
        self,
        request: pb.GenerateRequest,
        write: Write,
        entry: Entry,
        arrived: float,
        deadline: float,
        pieces: Sequence[Piece],
    ) -> None:
        """A sound: each of its windows is a request of its own to the scheduler."""

        async def window(index: int, piece: Piece, heard: Write) -> None:
            with self._requests.part(entry) as part:
                part.pieces = (piece,)
                try:
                    await self._generate(request, heard, part, arrived, deadline, (), piece)
                finally:
                    self._courier.forget(part.internal_id)

        seconds = sum(piece.shape[0] for piece in pieces) / SAMPLE_RATE
        transcript = Transcript(entry.public_id, len(pieces), seconds)
        await transcribe_windows(pieces, window, transcript, write)

    async def _generate(
        self,
        request: pb.GenerateRequest,
        write: Write,
        entry: Entry,
        arrived: float,
        deadline: float,
        media: Sequence[Medium],
        window: Piece | None = None,
    ) -> None:
        began = self._clock.now()
        build = partial(
            build_request,
            request,
            self._model,
            self._config,
            id=entry.internal_id,
            gateway=self._gateway,
            deadline=deadline,
            media=media,
            window=window,
        )
        admitted = await entry.unless_failed(self._text.run(build, timeout=deadline - began))
        options = request.sampling
        text = TextOptions(
            first_position=len(admitted.prompt),
            stop=admitted.sampling.stop,
            min_tokens=admitted.sampling.min_tokens,
            include_stop=options.include_stop,
            skip_special_tokens=options.skip_special_tokens if options.HasField("skip_special_tokens") else True,
        )
        self._scheduler.check_backlog()
        away_since = None if self._scheduler.connected else self._clock.now()
        media_time = began - arrived if admitted.media else 0.0
        session = Session(admitted, entry.public_id, self._model, text, self._config, arrived, away_since, media_time)
        entry.live = LiveRequest(session, self._scheduler, self._clock, self._config.drain_grace, self._ended)
        await entry.live.deliver(write)

    def _ended(self, session: Session) -> None:
        if not session.outlives_client or not self._scheduler.connected:
            return  # a scheduler that comes back ends what is not declared
        if session.error is not None:
            reason = session.error.message
        else:
            reason = "finished by a stop string" if session.ended else "the client went away"
        self._scheduler.send(Cancel(session.request.id, reason))

    def _check_rate(self, context: Context) -> None:
        """Raises RateLimitedError for a client that calls too often."""
        if self._limiter is not None:
            self._limiter.admit(client_of(context), self._clock.now())

    async def Abort(self, request: pb.AbortRequest, context: Context) -> pb.AbortResponse:
        self._requests.abort(request.request_id, CancelledByClientError(f"request {request.request_id!r} was aborted"))
        return pb.AbortResponse()

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Context) -> pb.ModelInfo:
        model = self._model
        return pb.ModelInfo(
            model=model.name,
            architecture=model.architecture,
            revision=model.revision,
            vocab_size=model.vocab_size,
            max_model_len=model.max_model_len,
            eos_token_ids=model.eos_token_ids,
            has_chat_template=model.chat_template is not None,
            parameters=model.parameters,
            media_kinds=[] if self._desk is None else [kind.value for kind in model.media_kinds],
            transcribes=model.speech is not None,
            languages=[] if model.speech is None else [code for code, _ in model.speech.tokens.languages],
            media_placeholder="" if model.media is None or self._desk is None else model.media.placeholder,
        )

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.ServerInfo:
        return pb.ServerInfo(
            version=self._facts.version,
            topology=self._facts.topology,
            uptime=self._clock.now() - self._started,
            config_json=self._facts.config_json,
        )

    async def GetLoads(self, request: pb.GetLoadsRequest, context: Context) -> pb.Loads:
        cluster = await self._scheduler.get_cluster()
        loads = pb.Loads(queued=cluster.queued, active=cluster.active)
        for entry in cluster.instances:
            loads.instances.add(
                id=entry.info.ref.id,
                roles=entry.info.roles,
                tp=entry.info.tp,
                running=entry.load.running,
                waiting=entry.load.waiting,
                free_pages=entry.load.free_pages,
                num_pages=entry.info.capacity.num_pages,
                free_slots=entry.load.free_slots,
                staged=entry.load.staged,
            )
        return loads

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        self._check_rate(context)
        kind, limit = request.WhichOneof("input"), self._config.max_prompt_chars
        if kind is None:
            raise InvalidRequestError("input is not set; expected text or chat")
        if kind == "chat":
            check_text_only(request.chat)
            tokenise = partial(chat_ids, request.chat, self._model, limit)
        elif not request.text:
            return pb.TokenizeResponse()
        else:
            special = request.add_special_tokens if request.HasField("add_special_tokens") else True
            tokenise = partial(text_ids, "text", request.text, self._model, limit, add_special_tokens=special)
        return pb.TokenizeResponse(ids=await self._text.run(tokenise, context.time_remaining()))

    async def UploadMedia(
        self, messages: AsyncIterator[pb.UploadMediaRequest], context: Context
    ) -> pb.UploadMediaResponse:
        self._check_rate(context)
        self._requests.check_taking()
        return await self._uploads().take(messages, owner_of(context))

    async def DeleteMedia(self, request: pb.DeleteMediaRequest, context: Context) -> pb.DeleteMediaResponse:
        self._check_rate(context)
        self._uploads().delete(request.handle, owner_of(context))
        return pb.DeleteMediaResponse()

    def _uploads(self) -> UploadShelf:
        if self._shelf is None:
            raise UnsupportedMediaError(f"{self._model.name} takes no media")
        return self._shelf

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Context) -> pb.DetokenizeResponse:
        self._check_rate(context)
        tokenizer, ids = tokenizer_of(self._model), list(request.ids)
        check_ids("ids", ids, self._model.vocab_size)
        decode = partial(tokenizer.decode, ids, skip_special_tokens=request.skip_special_tokens)
        return pb.DetokenizeResponse(text=await self._text.run(decode, context.time_remaining()))
