"""`triptych info`: what a running server serves, and how busy its instances are."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from triptych.runtime.client import Client
from triptych.tools.connection import Connection
from triptych.tools.settings import add_flags, resolve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_flags(parser, Connection)


def run(args: argparse.Namespace) -> int:
    connection = resolve(Connection, args)
    with Client(connection.address, connection.token, connection.tls) as client:
        if connection.wait:
            client.wait_ready(connection.wait)
        model, server, loads = client.model_info(), client.server_info(), client.loads()
    if args.json:
        facts = _plain(server)
        facts["config"] = json.loads(facts.pop("config_json") or "null")
        print(json.dumps({"model": _plain(model), "server": facts, "loads": _plain(loads)}, indent=1))
        return 0
    print(
        f"model     {model.model} ({model.architecture}, {model.parameters / 1e6:.1f} M parameters, revision {model.revision[:12]})"
    )
    print(
        f"context   {model.max_model_len} tokens, vocabulary {model.vocab_size}, {'with' if model.has_chat_template else 'no'} chat template"
    )
    if model.media_kinds:
        print(f"media     {', '.join(model.media_kinds)}; {model.media_placeholder} stands for one in a prompt")
    print(f"server    triptych {server.version}, topology {server.topology}, up {server.uptime:.0f} s")
    settings = json.loads(server.config_json or "null") or {}
    if settings.get("speculative", "off") != "off":
        by = settings.get("speculative_model") or settings["speculative"]
        print(f"guesses   {by}, at most {settings['speculative_tokens']} tokens of a sequence in a step")
    print(f"requests  {loads.active} active, {loads.queued} queued")
    print(
        f"\n{'instance':<14}{'roles':<18}{'tp':>3}{'running':>9}{'waiting':>9}{'pages free':>16}{'slots free':>12}{'staged':>8}"
    )
    for i in loads.instances:
        pages = f"{i.free_pages}/{i.num_pages}"
        print(
            f"{i.id:<14}{','.join(i.roles):<18}{i.tp:>3}{i.running:>9}{i.waiting:>9}{pages:>16}{i.free_slots:>12}{i.staged:>8}"
        )
    if missing := {"prefill", "decode"} - {role for i in loads.instances for role in i.roles}:
        print(f"\ncannot serve now: no instance for {' and '.join(sorted(missing, reverse=True))}")
    return 0


def _plain(message: Any) -> Any:
    """A protobuf message as dicts, lists and numbers, zeros included."""
    if not hasattr(message, "DESCRIPTOR"):
        return message
    out: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        out[field.name] = [_plain(v) for v in value] if _is_list(value) else _plain(value)
    return out


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
