"""The front of a cluster inside one Python process: scheduler and gateway behind one port, without devices and without jax.

They are two parties all the same: the gateway reaches the scheduler through its gRPC service as one in a process of its own does
(docs/decisions/009-processes.md), and neither reads the other's state.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from triptych.models.hub.media import open_multimodal
from triptych.models.hub.resolve import ModelKind, ResolvedModel
from triptych.models.hub.text import ModelText, open_text
from triptych.models.speech.bundle import is_speech, open_speech
from triptych.models.speech.config import ARCHITECTURE as SPEECH_ARCHITECTURE
from triptych.runtime.gateway.config import GatewayConfig, ServerFacts
from triptych.runtime.gateway.model import MediaModel, SamplingDefaults, ServedModel, SpeechModel
from triptych.runtime.gateway.server import SERVICE as INFERENCE
from triptych.runtime.gateway.server import Gateway, server_options
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.server import OPTIONS as CONTROL_OPTIONS
from triptych.runtime.scheduler.server import SERVICE as CONTROL
from triptych.runtime.scheduler.server import ControlServerConfig, add_control, build_control
from triptych.runtime.wire.auth import bearer_interceptor, bearer_metadata
from triptych.runtime.wire.listening import listen, local_endpoint
from triptych.runtime.wire.standard import add_reflection


@dataclass(frozen=True)
class FrontConfig:
    """Where the front listens and how its two halves behave. `gateway.scheduler` is filled in with the front's own address."""

    host: str
    port: int
    model: ServedModel
    facts: ServerFacts
    scheduler: SchedulerConfig
    gateway: GatewayConfig
    token: str | None = field(default=None, repr=False)


class Front:
    """Started by `start`, ended by `stop`; `wait` raises if the scheduler fails."""

    def __init__(self, config: FrontConfig):
        self._config = config
        self.address = ""

    async def start(self) -> None:
        """Raises ConfigError if the address is taken."""
        config = self._config
        interceptors = [] if config.token is None else [bearer_interceptor(config.token)]
        options = dict(CONTROL_OPTIONS) | dict(server_options(config.gateway))
        self._server = grpc.aio.server(interceptors=interceptors, options=tuple(options.items()))
        self.control = build_control(
            ControlServerConfig(config.host, config.port, config.token, scheduler=config.scheduler)
        )
        add_control(self.control, self._server)
        port = listen(self._server, config.host, config.port)
        self.address = local_endpoint(config.host, port)
        gateway_config = GatewayConfig(**{**vars(config.gateway), "scheduler": self.address})
        self.gateway = Gateway(gateway_config, config.model, config.facts, metadata=bearer_metadata(config.token))
        self.gateway.add_to(self._server)
        add_reflection(self._server, (INFERENCE.full_name, CONTROL))
        await self._server.start()
        self.control.start()
        await self.gateway.start()

    async def wait(self) -> None:
        await self.control.wait()

    async def wait_serving(self, timeout: float) -> None:
        """Until a request could be placed; TimeoutError after `timeout` seconds."""
        async with asyncio.timeout(timeout):
            while not self.gateway.serving:
                await asyncio.sleep(0.02)

    async def stop(self, grace: float = 1.0) -> None:
        """`close_gateway`, then `close`."""
        await self.close_gateway(grace)
        await self.close()

    async def close_gateway(self, grace: float) -> None:
        """New requests are refused at once, running ones get `grace` seconds. Workers may leave in good order after this."""
        await self.gateway.drain(grace)
        await self.gateway.stop()

    async def close(self) -> None:
        """End the streams of workers that are still there, and free the port."""
        await self.control.stop()
        await self._server.stop(0)


def open_served(resolved: ResolvedModel, *, name: str, max_model_len: int) -> ServedModel:
    """Any model that can be served, as the gateway presents it. Raises what `open_text` and `open_speech` raise."""
    if not is_speech(resolved):
        return served_model(resolved, open_text(resolved), name=name, max_model_len=max_model_len)
    bundle = open_speech(resolved)
    return ServedModel(
        name=name,
        architecture=SPEECH_ARCHITECTURE,
        revision=bundle.revision,
        vocab_size=bundle.config.vocab_size,
        max_model_len=min(max_model_len, bundle.config.max_position),
        tokenizer=bundle.tokenizer,
        eos_token_ids=(bundle.tokens.end,),
        # A transcript is what was most likely said, unless somebody asks for another.
        defaults=SamplingDefaults(temperature=0.0),
        speech=SpeechModel(bundle.config, bundle.tokens),
    )


def served_model(resolved: ResolvedModel, text: ModelText, *, name: str, max_model_len: int) -> ServedModel:
    """The model as the gateway presents it. Sampling defaults are those of a generation_config.json beside the weights, if there is one."""
    defaults = SamplingDefaults()
    beside = resolved.path / "generation_config.json"
    if resolved.kind in (ModelKind.HF_FOLDER, ModelKind.ORBAX) and beside.is_file():
        defaults = SamplingDefaults.from_generation_config(_json(beside))
    multimodal = open_multimodal(resolved)
    media = None if multimodal is None or text.tokenizer is None else MediaModel.of(multimodal, text.tokenizer)
    return ServedModel(
        name=name,
        architecture=text.config.architecture,
        revision=text.revision,
        vocab_size=text.config.vocab_size,
        max_model_len=min(max_model_len, text.config.max_position),
        tokenizer=text.tokenizer,
        chat_template=text.chat_template,
        eos_token_ids=text.config.eos_token_ids,
        parameters=text.config.parameter_count(),
        defaults=defaults,
        media=media,
    )


def _json(path: Path) -> dict[str, object]:
    return json.loads(path.read_text(encoding="utf-8"))
