"""`triptych generate`: complete one prompt (or answer one message) on a running server, streaming to stdout."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from triptych.runtime.client import Client, Result, Stream
from triptych.runtime.core.errors import ConfigError
from triptych.tools.connection import Connection, add_sampling, sampling_of
from triptych.tools.settings import add_flags, resolve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", help="text to complete ('-' reads stdin)")
    parser.add_argument(
        "--chat", action="store_true", help="send the prompt as a user's message through the chat template"
    )
    parser.add_argument("--system", metavar="TEXT", help="system message before it (with --chat)")
    parser.add_argument("--token-ids", metavar="IDS", help="prompt as token ids, such as 1,42,7, instead of text")
    parser.add_argument(
        "--image",
        dest="images",
        action="append",
        metavar="FILE",
        help="show this image to the model, before the prompt's text; may be given several times",
    )
    parser.add_argument(
        "--video",
        dest="videos",
        action="append",
        metavar="FILE",
        help="show frames of this video to the model, after the images; may be given several times",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object at the end instead of text as it comes"
    )
    parser.add_argument("--verbose", "-v", action="store_true", help="print usage and timings to stderr")
    add_sampling(parser)
    add_flags(parser, Connection)


def run(args: argparse.Namespace) -> int:
    connection = resolve(Connection, args)
    with Client(connection.address, connection.token, connection.tls) as client:
        if connection.wait:
            client.wait_ready(connection.wait)
        with _start(client, args) as stream:
            for chunk in stream:
                if not args.json:
                    sys.stdout.write(chunk.text)
                    sys.stdout.flush()
            result = stream.result
    if args.json:
        print(json.dumps(as_dict(result)))
    else:
        print()
    if args.verbose:
        print(describe(result), file=sys.stderr)
    return 0


def _start(client: Client, args: argparse.Namespace) -> Stream:
    if (args.prompt is None) == (args.token_ids is None):
        raise ConfigError("give either a prompt or --token-ids")
    if args.chat and args.token_ids is not None:
        raise ConfigError(
            "--chat puts text through the chat template; --token-ids are sent as they are: give one of them"
        )
    if args.system is not None and not args.chat:
        raise ConfigError("--system needs --chat: a prompt to complete has no system message")
    sampling = sampling_of(args)
    if args.token_ids is not None:
        return client.generate(token_ids=_ids(args.token_ids), images=args.images, videos=args.videos, **sampling)
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    if not args.chat:
        return client.generate(prompt, images=args.images, videos=args.videos, **sampling)
    system = [{"role": "system", "content": args.system}] if args.system else []
    content: Any = prompt
    if args.images or args.videos:
        shown = [{"type": "image", "image": path} for path in args.images or ()]
        shown += [{"type": "video", "video": path} for path in args.videos or ()]
        content = [*shown, {"type": "text", "text": prompt}]
    return client.generate(messages=[*system, {"role": "user", "content": content}], **sampling)


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise ConfigError(f"--token-ids {text!r} are not whole numbers with commas between") from error


def as_dict(result: Result) -> dict[str, object]:
    """A result as plain data for --json."""
    usage, timings = result.usage, result.timings
    return {
        "request_id": result.request_id,
        "text": result.text,
        "token_ids": result.samples[0].token_ids if result.samples else [],
        "finish_reason": result.samples[0].finish_reason if result.samples else None,
        "usage": {f.name: getattr(usage, f.name) for f in usage.DESCRIPTOR.fields} if usage else None,
        "timings": {f.name: getattr(timings, f.name) for f in timings.DESCRIPTOR.fields} if timings else None,
    }


def describe(result: Result) -> str:
    """Usage and timings in a few words."""
    parts = []
    if result.usage:
        u = result.usage
        parts.append(f"{u.prompt_tokens} prompt tokens ({u.cached_tokens} cached), {u.completion_tokens} generated")
    if result.timings:
        t = result.timings
        parts.append(f"first token {t.first_token * 1e3:.1f} ms, total {t.total * 1e3:.1f} ms")
        parts.append(f"queue {t.queue * 1e3:.1f} ms, prefill {t.prefill * 1e3:.1f} ms on {t.prefill_instance or '?'}")
        if t.media_items:
            tokens = f"{result.usage.media_tokens if result.usage else 0} tokens"
            parts.append(
                f"media {t.media * 1e3:.1f} ms, {t.media_items} pieces ({tokens}, {t.encoded_items} encoded), encode {t.encode * 1e3:.1f} ms on {t.encode_tasks} instances"
            )
        if t.attempts > 1:
            parts.append(f"went on {t.attempts - 1} times after a loss: attempt {t.attempts} finished it")
        if t.decode_instance and t.decode_instance != t.prefill_instance:
            pages = f"{t.pages_pulled} pages, {t.kv_bytes / 1e6:.2f} MB, {t.pages_skipped} pages were there"
            parts.append(f"KV to {t.decode_instance} {t.transfer * 1e3:.1f} ms ({pages})")
    return "\n".join(parts)
