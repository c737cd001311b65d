"""`triptych scheduler`: one process with the scheduler and a gateway, on one port: workers register there, clients call it.

It owns no device and imports no jax. `triptych serve` starts it first; by hand it is the centre of a deployment over several machines.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from pathlib import Path

import grpc

from triptych import __version__
from triptych.models.hub.errors import ModelFetchError
from triptych.models.hub.resolve import ModelKind, ResolvedModel, resolve_model
from triptych.models.hub.text import open_text
from triptych.models.text.chat import ChatTemplate
from triptych.models.text.hf_tokenizer import tokenizer_from_folder
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.gateway import server as gateways
from triptych.runtime.gateway.config import GatewayConfig, ServerFacts
from triptych.runtime.gateway.model import SamplingDefaults, ServedModel
from triptych.runtime.scheduler import server as control
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.wire.auth import bearer_interceptor, bearer_metadata
from triptych.runtime.worker.config import DEFAULT_CONTEXT
from triptych.tools.child import announce_ready, end_with_parent
from triptych.tools.config import ServeConfig, endpoint, local_endpoint
from triptych.tools.settings import add_arguments as add_settings
from triptych.tools.settings import dump, resolve, write_dump


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--supervised", action="store_true", help="end when stdin closes (set by serve)")
    add_settings(parser, ServeConfig)


def run(args: argparse.Namespace) -> int:
    config = resolve(ServeConfig, args)
    if args.dump_config is not None:
        write_dump(config, args.dump_config)
        return 0
    if args.supervised:
        end_with_parent()
    logging.basicConfig(level=config.log_level.upper(), format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        model = served_model(config)
    except (ModelFetchError, OSError, ValueError) as error:  # what cannot be found or read: the user's to mend
        raise ConfigError(str(error)) from error
    return asyncio.run(_serve(config, model))


def served_model(config: ServeConfig) -> ServedModel:
    """The text side of the model, with the tokenizer and chat template that the settings replace. Fetches the model if needed."""
    resolved = resolve_model(
        config.model, config.cache_path, progress=lambda line: print(line, file=sys.stderr, flush=True)
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
    return ServedModel(
        name=config.served_name,
        architecture=text.config.architecture,
        revision=text.revision,
        vocab_size=text.config.vocab_size,
        max_model_len=min(config.max_model_len or DEFAULT_CONTEXT, text.config.max_position),
        tokenizer=tokenizer,
        chat_template=template,
        eos_token_ids=text.config.eos_token_ids,
        parameters=text.config.parameter_count(),
        defaults=_sampling_defaults(resolved),
    )


def _sampling_defaults(resolved: ResolvedModel) -> SamplingDefaults:
    file = resolved.path / "generation_config.json"
    if resolved.kind not in (ModelKind.HF_FOLDER, ModelKind.ORBAX) or not file.is_file():
        return SamplingDefaults()
    return SamplingDefaults.from_generation_config(json.loads(file.read_text()))


async def _serve(config: ServeConfig, model: ServedModel) -> int:
    """Run until SIGTERM or SIGINT. A scheduler that fails raises: its state is no longer to be trusted."""
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    interceptors = [] if config.api_key is None else [bearer_interceptor(config.api_key)]
    limit = config.max_message_mb * 10**6
    options = (*dict((*control.OPTIONS, ("grpc.max_receive_message_length", limit))).items(),)
    server = grpc.aio.server(interceptors=interceptors, options=options)
    port = _listen(server, config)
    loop = control.build_control(
        control.ControlServerConfig(
            scheduler=SchedulerConfig(
                max_queued=config.max_waiting,
                heartbeat_interval=config.heartbeat_interval,
                heartbeat_timeout=config.heartbeat_timeout,
                lease_seconds=config.lease_seconds,
            )
        )
    )
    control.add_control(loop, server)
    address = local_endpoint(config.host, port)
    gateway = gateways.Gateway(
        GatewayConfig(
            scheduler=address,
            max_receive_bytes=limit,
            max_prompt_tokens=config.max_prompt_tokens,
            default_timeout=config.request_timeout,
        ),
        model,
        ServerFacts(__version__, str(config.plan), dump(config)),
        metadata=bearer_metadata(config.api_key),
    )
    gateway.add_to(server)
    gateways.add_reflection(server, (control.SERVICE, gateways.SERVICE.full_name))
    await server.start()
    loop.start()
    await gateway.start()
    announce_ready(address=address, pid=os.getpid())
    stopping, failing = asyncio.create_task(stop.wait()), asyncio.create_task(loop.wait())
    try:
        await asyncio.wait({stopping, failing}, return_when=asyncio.FIRST_COMPLETED)
        if failing.done():
            failing.result()
        return 0
    finally:
        for task in (stopping, failing):
            task.cancel()
        await asyncio.gather(stopping, failing, return_exceptions=True)
        await _drain(gateway, config.shutdown_timeout)
        await gateway.stop()
        await loop.stop()
        await server.stop(grace=None)


async def _drain(gateway: gateways.Gateway, seconds: float) -> None:
    """Wait until nobody is being served, at most `seconds`."""
    deadline = asyncio.get_running_loop().time() + seconds
    while gateway.open_requests and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.05)


def _listen(server: grpc.aio.Server, config: ServeConfig) -> int:
    try:
        return server.add_insecure_port(endpoint(config.host, config.port))
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {endpoint(config.host, config.port)}: {error}") from error
