"""`make demo`: the whole system in one command.

Serves a real model with prefill on two emulated devices and decode on one, each in a process of its own, asks it questions through the gRPC
client, and shows for each request where the time went and what moved. Ends with status 1 if the model does not say what it is known to say.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from triptych.runtime.client import Client, Result
from triptych.tools.supervisor import Supervisor

START_LIMIT = 1200.0  # seconds; a first run fetches 93 MB and compiles on however few cores there are
EMULATED = 8
SETTINGS = (
    "--topology=1P1D",
    "--prefill-tp=2",
    "--decode-tp=1",
    f"--emulate-devices={EMULATED}",
    "--device=cpu",
    "--port=0",
    # Few and small programs, so that the demo is over soon.
    "--max-model-len=512",
    "--max-num-seqs=4",
    "--max-num-batched-tokens=64",
    "--num-pages=160",
    "--log-level=error",
)

CAPITAL = {"role": "user", "content": "What is the capital of France?"}


@dataclass(frozen=True)
class Question:
    """One request: its name in the table, the conversation, and a word that the answer must contain (None: any answer)."""

    name: str
    messages: tuple[dict[str, str], ...]
    expected: str | None = None


def main() -> int:
    with Supervisor() as supervisor:
        argv = [sys.executable, "-m", "triptych.tools.cli", "serve", *SETTINGS, f"--startup-timeout={START_LIMIT:g}"]
        supervisor.start("serve", argv, dict(os.environ))
        ready = supervisor.wait_ready(START_LIMIT)["serve"]
        with Client(ready["address"]) as client:
            client.wait_ready(30.0)
            return converse(client)


def converse(client: Client) -> int:
    """Ask everything, print the table; 0 if every answer contains its word."""
    rows: list[tuple[str, Result]] = []
    wrong: list[str] = []

    def put(question: Question) -> Result:
        print(f"\n> {question.messages[-1]['content']}", flush=True)
        result = ask(client, question)
        rows.append((question.name, result))
        if question.expected is not None and question.expected not in result.text:
            wrong.append(f"{question.name}: the answer does not mention {question.expected}")
        return result

    first = put(Question("question", (CAPITAL,), "Paris"))
    turn = (
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "Why is it famous? Answer in one sentence."},
    )
    put(Question("same conversation", (CAPITAL, *turn)))
    put(Question("same question", (CAPITAL,), "Paris"))
    put(Question("another question", ({"role": "user", "content": "Write one sentence about the sea."},)))

    print(f"\n{table(rows)}\n")
    print(
        "Prefill ran on 2 emulated devices, decode on 1, in processes of their own; the first token of each answer came from prefill."
    )
    for line in wrong:
        print(f"demo: {line}", file=sys.stderr)
    return 1 if wrong else 0


def ask(client: Client, question: Question) -> Result:
    """Stream one greedy answer to stdout."""
    with client.generate(messages=list(question.messages), temperature=0.0, max_tokens=48) as stream:
        for chunk in stream:
            print(chunk.text, end="", flush=True)
        print(flush=True)
        return stream.result


COLUMNS = (
    "request", "prompt", "output", "queue ms", "prefill ms", "transfer ms", "TTFT ms", "TPOT ms", "KV bytes", "pulled", "skipped",
)  # fmt: skip


def table(rows: list[tuple[str, Result]]) -> str:
    """One line a request: tokens, milliseconds by stage, and what moved (pages pulled, and pages that decode had in its prefix cache)."""
    lines = [[*COLUMNS]]
    for name, result in rows:
        usage, timings = result.usage, result.timings
        assert usage is not None and timings is not None, "a finished stream has both"
        per_token = (timings.total - timings.first_token) / max(1, usage.completion_tokens - 1)
        seconds = (timings.queue, timings.prefill, timings.transfer, timings.first_token, per_token)
        lines.append(
            [
                name,
                str(usage.prompt_tokens),
                str(usage.completion_tokens),
                *(f"{value * 1e3:.1f}" for value in seconds),
                f"{timings.kv_bytes:,}",
                str(timings.pages_pulled),
                str(timings.pages_skipped),
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


if __name__ == "__main__":
    sys.exit(main())
