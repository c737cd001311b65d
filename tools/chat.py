"""`triptych chat`: a conversation with a running server, in the terminal.

/quit ends it, /reset forgets the conversation, /system TEXT sets the system message (and forgets). Ctrl-C stops an answer, not the chat.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from triptych.runtime.client import Client
from triptych.runtime.core.errors import TriptychError
from triptych.tools.connection import Connection, add_sampling, sampling_of
from triptych.tools.settings import add_flags, resolve

if TYPE_CHECKING:
    from triptych.runtime.client.requests import Sampling

HELP = "/quit ends, /reset forgets the conversation, /system TEXT sets the system message"


@dataclass
class Conversation:
    """Messages so far. A turn is added only when its answer came completely, so that a failed one can be asked again."""

    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    def messages(self, question: str) -> list[dict[str, str]]:
        head = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, *self.turns, {"role": "user", "content": question}]

    def add(self, question: str, answer: str) -> None:
        self.turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def reset(self) -> None:
        self.turns.clear()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--system", metavar="TEXT", help="system message")
    add_sampling(parser)
    add_flags(parser, Connection)


def run(args: argparse.Namespace) -> int:
    connection = resolve(Connection, args)
    with Client(connection.address, connection.token, connection.tls) as client:
        client.wait_ready(connection.wait or 5.0)
        print(f"talking to {client.model_info().model} on {connection.address}; {HELP}", file=sys.stderr)
        converse(client, Conversation(args.system), sampling_of(args), _read)
    return 0


def converse(client: Client, conversation: Conversation, sampling: Sampling, read: Callable[[], str | None]) -> None:
    """Read lines until /quit or the end of input; print answers as they come."""
    while (line := read()) is not None:
        text = line.strip()
        if not text:
            continue
        if not text.startswith("/"):
            answer(client, conversation, text, sampling)
            continue
        command, _, rest = text.partition(" ")
        if command == "/quit":
            return
        if command == "/reset":
            conversation.reset()
        elif command == "/system":
            conversation.system = rest.strip() or None
            conversation.reset()
        else:
            print(f"no command {command}; {HELP}", file=sys.stderr)


def answer(client: Client, conversation: Conversation, question: str, sampling: Sampling) -> None:
    """Stream one answer. Errors are shown and leave the conversation as it was; Ctrl-C keeps what came so far."""
    parts: list[str] = []
    try:
        with client.generate(messages=conversation.messages(question), **sampling) as stream:
            for chunk in stream:
                parts.append(chunk.text)
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
    except KeyboardInterrupt:
        print(" [stopped]", file=sys.stderr)
    except TriptychError as error:
        print(f"\n{error.status.name}: {error.message}", file=sys.stderr)
        return
    print()
    conversation.add(question, "".join(parts))


def _read() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None
