"""`triptych gateway`: what clients talk to, as a process of its own: the model's text side, the requests that are open, and no device.

It reaches the scheduler at --scheduler and finds the workers through it. A scheduler that is away, or comes back without its memory, costs running requests
nothing. Several gateways may serve one cluster. `triptych serve` starts and watches one.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import signal
import sys
from pathlib import Path

from triptych import __version__
from triptych.models.hub.errors import ModelFetchError
from triptych.models.hub.resolve import resolve_model
from triptych.models.hub.text import open_text
from triptych.models.speech.bundle import is_speech
from triptych.models.text.chat import ChatTemplate
from triptych.models.text.hf_tokenizer import tokenizer_from_folder
from triptych.runtime.cluster import front
from triptych.runtime.core.clock import MonotonicClock
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.gateway.config import GatewayConfig, ServerFacts
from triptych.runtime.gateway.links import connect_with
from triptych.runtime.gateway.model import MediaModel, ServedModel
from triptych.runtime.gateway.server import Gateway, start_server
from triptych.runtime.media.limits import MediaLimits
from triptych.runtime.media.pool import PoolConfig
from triptych.runtime.metrics.gateway import DroppedTokens
from triptych.runtime.metrics.gateway_media import GatewayMedia
from triptych.runtime.metrics.observer import RequestObserver
from triptych.runtime.metrics.registry import Metrics
from triptych.runtime.metrics.requests import RequestMetrics
from triptych.runtime.metrics.tracing import open_tracer
from triptych.runtime.wire.auth import bearer_interceptor, bearer_metadata
from triptych.runtime.wire.listening import endpoint, local_endpoint
from triptych.runtime.wire.rate import Rate
from triptych.runtime.worker.config import DEFAULT_CONTEXT
from triptych.tools.child import announce_ready, end_with_parent
from triptych.tools.config import ServeConfig
from triptych.tools.credentials import client_tokens, cluster_token, door_tls, inside_tls
from triptych.tools.memory import keep_level
from triptych.tools.observing import open_port, start_log
from triptych.tools.settings import add_arguments as add_settings
from triptych.tools.settings import dump, resolve, write_dump

FLUSH = 1.0  # seconds that the last statuses get on their way to clients


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scheduler", metavar="HOST:PORT", help="address of the scheduler")
    parser.add_argument("--supervised", action="store_true", help="end when stdin closes (set by serve)")
    add_settings(parser, ServeConfig)


def run(args: argparse.Namespace) -> int:
    config = resolve(ServeConfig, args)
    if args.dump_config is not None:
        write_dump(config, args.dump_config)
        return 0
    if args.scheduler is None:
        raise ConfigError("--scheduler HOST:PORT is missing; `triptych serve` starts scheduler and gateway together")
    keep_level()
    if args.supervised:
        end_with_parent()
    start_log(config, "gateway")
    try:
        model = served_model(config)
    except (ModelFetchError, OSError, ValueError) as error:  # what cannot be found or read: the user's to mend
        raise ConfigError(str(error)) from error
    return asyncio.run(_serve(config, model, args.scheduler))


def served_model(config: ServeConfig) -> ServedModel:
    """The text side of the model, with the tokenizer and chat template that the settings replace. Fetches the model if needed."""
    resolved = resolve_model(
        config.model, config.cache_path, progress=lambda line: print(line, file=sys.stderr, flush=True)
    )
    if is_speech(resolved):
        return front.open_served(
            resolved, name=config.served_name, max_model_len=config.max_model_len or DEFAULT_CONTEXT
        )
    text = open_text(resolved)
    tokenizer = text.tokenizer
    if config.tokenizer is not None:
        path = Path(config.tokenizer).expanduser()
        tokenizer = tokenizer_from_folder(path.parent if path.is_file() else path)
    template = text.chat_template
    if config.chat_template is not None:
        bos, eos = (tokenizer.bos_token, tokenizer.eos_token) if tokenizer else (None, None)
        template = ChatTemplate(Path(config.chat_template).expanduser().read_text(), bos_token=bos, eos_token=eos)
    model = front.served_model(
        resolved, text, name=config.served_name, max_model_len=config.max_model_len or DEFAULT_CONTEXT
    )
    media = None if model.media is None or tokenizer is None else MediaModel.of(model.media.config, tokenizer)
    return dataclasses.replace(model, tokenizer=tokenizer, chat_template=template, media=media)


async def _serve(config: ServeConfig, model: ServedModel, scheduler: str) -> int:
    """Run until SIGTERM or SIGINT; then refuse new requests and give running ones their time."""
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    limits = gateway_config(config, scheduler)
    facts = ServerFacts(__version__, str(config.plan), dump(config))
    inside, tokens, door = inside_tls(config), client_tokens(config), door_tls(config)
    clock, metrics = MonotonicClock(), Metrics(lambda: {"model_name": model.name})
    tracer = open_tracer(config.otlp_traces_endpoint, "triptych-gateway")
    gateway = Gateway(
        limits,
        model,
        facts,
        clock=clock,
        connect=connect_with(inside),
        metadata=bearer_metadata(cluster_token(config)),
        observer=RequestObserver(RequestMetrics(metrics, clock), tracer, clock, model.name),
    )
    metrics.add(DroppedTokens(lambda: gateway.counts))
    metrics.add(GatewayMedia(lambda: gateway.media, lambda: gateway.courier))
    shown = await open_port(config, metrics, ready=lambda: None if gateway.serving else "no request could be placed")
    server, port = await start_server(
        gateway,
        limits,
        endpoint(config.host, config.port),
        credentials=None if door is None else door[0].server_credentials(door[1]),
        interceptors=[bearer_interceptor(*tokens)] if tokens else [],
    )
    try:
        announce_ready(address=local_endpoint(config.host, port), pid=os.getpid())
        await stop.wait()
        await gateway.drain(config.shutdown_timeout)
        return 0
    finally:
        await gateway.stop()
        await server.stop(FLUSH)
        await shown.stop()
        await asyncio.to_thread(tracer.close)


def gateway_config(config: ServeConfig, scheduler: str) -> GatewayConfig:
    """The gateway's part of the deployment's settings."""
    item = config.max_media_item_mb * 10**6
    return GatewayConfig(
        scheduler=scheduler,
        media=MediaLimits(
            item_bytes=item,
            request_bytes=max(item, MediaLimits.request_bytes),
            image_pixels=config.max_image_pixels,
            sampled_frames=config.max_video_frames,
        ),
        media_pool=PoolConfig(processes=config.media_processes),
        max_media_bytes=config.max_media_mb * 10**6,
        spare_media_bytes=config.spare_media_mb * 10**6,
        max_in_flight=config.max_in_flight,
        rate=None if config.rate_limit is None else Rate(config.rate_limit, config.rate_burst),
        max_receive_bytes=config.max_message_mb * 10**6,
        max_prompt_tokens=config.max_prompt_tokens,
        default_timeout=config.request_timeout,
        max_attempts=config.max_attempts,
        scheduler_patience=config.patience,
    )
