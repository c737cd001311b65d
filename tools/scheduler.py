"""`triptych scheduler`: one process with the scheduler and a gateway, on one port: workers register there, clients call it.

It owns no device and imports no jax. `triptych serve` starts it first; by hand it is the centre of a deployment over several machines.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import logging
import os
import signal
import sys
from pathlib import Path

from triptych import __version__
from triptych.models.hub.errors import ModelFetchError
from triptych.models.hub.resolve import resolve_model
from triptych.models.hub.text import open_text
from triptych.models.text.chat import ChatTemplate
from triptych.models.text.hf_tokenizer import tokenizer_from_folder
from triptych.runtime.cluster import front
from triptych.runtime.cluster.front import Front, FrontConfig
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.gateway.config import GatewayConfig, ServerFacts
from triptych.runtime.gateway.model import ServedModel
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.worker.config import DEFAULT_CONTEXT
from triptych.tools.child import announce_ready, end_with_parent
from triptych.tools.config import ServeConfig
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
    model = front.served_model(
        resolved, text, name=config.served_name, max_model_len=config.max_model_len or DEFAULT_CONTEXT
    )
    return dataclasses.replace(model, tokenizer=tokenizer, chat_template=template)


async def _serve(config: ServeConfig, model: ServedModel) -> int:
    """Run until SIGTERM or SIGINT. A scheduler that fails raises: its state is no longer to be trusted."""
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    running = Front(front_config(config, model))
    await running.start()
    announce_ready(address=running.address, pid=os.getpid())
    stopping, failing = asyncio.create_task(stop.wait()), asyncio.create_task(running.wait())
    try:
        await asyncio.wait({stopping, failing}, return_when=asyncio.FIRST_COMPLETED)
        if failing.done():
            failing.result()
        return 0
    finally:
        for task in (stopping, failing):
            task.cancel()
        await asyncio.gather(stopping, failing, return_exceptions=True)
        await running.stop(config.shutdown_timeout)


def front_config(config: ServeConfig, model: ServedModel) -> FrontConfig:
    """The front's part of the deployment's settings."""
    return FrontConfig(
        host=config.host,
        port=config.port,
        model=model,
        facts=ServerFacts(__version__, str(config.plan), dump(config)),
        scheduler=SchedulerConfig(
            max_queued=config.max_waiting,
            heartbeat_interval=config.heartbeat_interval,
            heartbeat_timeout=config.heartbeat_timeout,
            lease_seconds=config.lease_seconds,
        ),
        gateway=GatewayConfig(
            scheduler="filled in by the front",
            max_receive_bytes=config.max_message_mb * 10**6,
            max_prompt_tokens=config.max_prompt_tokens,
            default_timeout=config.request_timeout,
        ),
        token=config.api_key,
    )
