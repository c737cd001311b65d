"""`make demo`: the whole system in one command. Fetches a small model, serves it with prefill and decode in processes of their own, asks it two
questions and shows where the time went. Ends with status 1 if the answer is not what this model is known to say.
"""

from __future__ import annotations

import os
import sys

from triptych.runtime.client import Client, Result
from triptych.tools.generate import describe
from triptych.tools.supervisor import Supervisor

SYSTEM = {"role": "system", "content": "You are a helpful assistant. Answer briefly."}
QUESTIONS = (("What is the capital of France? Answer in one sentence.", "Paris"), ("And of Italy?", "Rome"))
START_LIMIT = 1200.0  # seconds; a first run downloads 93 MB and compiles on however few cores there are
SMALL = (
    "--topology=1P1D",
    "--port=0",
    "--max-model-len=512",
    "--max-num-seqs=2",
    "--max-num-batched-tokens=64",
    "--num-pages=128",
    "--device=cpu",
)  # fmt: skip  (few and small programs: the demo is to be over soon)


def main() -> int:
    with Supervisor() as supervisor:
        argv = [sys.executable, "-m", "triptych.tools.cli", "serve", *SMALL, f"--startup-timeout={START_LIMIT:g}"]
        supervisor.start("serve", argv, dict(os.environ))
        address = supervisor.wait_ready(START_LIMIT)["serve"]["address"]
        with Client(address) as client:
            client.wait_ready(30.0)
            status = converse(client)
        supervisor.stop(grace=30.0)  # serve ends its own children in order; that takes longer than the default
    return status


def converse(client: Client) -> int:
    """Ask the questions in one conversation; 0 if every answer contains its word."""
    messages = [SYSTEM]
    wrong = 0
    for question, expected in QUESTIONS:
        messages.append({"role": "user", "content": question})
        print(f"\n> {question}", flush=True)
        result = ask(client, messages)
        print(f"\n{describe(result)}", flush=True)
        messages.append({"role": "assistant", "content": result.text})
        if expected not in result.text:
            print(f"the answer does not mention {expected}", file=sys.stderr)
            wrong += 1
    return 1 if wrong else 0


def ask(client: Client, messages: list[dict[str, str]]) -> Result:
    """Stream one greedy answer to stdout."""
    with client.generate(messages=messages, temperature=0.0, max_tokens=64) as stream:
        for chunk in stream:
            print(chunk.text, end="", flush=True)
        return stream.result


if __name__ == "__main__":
    sys.exit(main())
