"""`make demo`: the whole system in one command.

Serves a real language model with prefill on two emulated devices and decode on one, then one that sees and one that hears with encode on a device of
its own, too, each stage in a process of its own; asks the first two questions and has the third write down recordings, all through the gRPC client,
and shows for each request where the time went and what moved. Ends with status 1 if a model does not say what it is known to say.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.runtime.client import Client, Result
from triptych.runtime.client.requests import speech_request
from triptych.tools.demo_vlm.scenes import HELD_OUT, Scene, shapes_scene
from triptych.tools.supervisor import Supervisor

START_LIMIT = 1200.0  # seconds; a first run fetches 93 MB and compiles on however few cores there are
EMULATED = 8
SETTINGS = (
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

TEXT = ("--topology=1P1D",)
SIGHT = ("--model=demo-vlm", "--topology=1E1P1D", "--encode-tp=1")

CAPITAL = {"role": "user", "content": "What is the capital of France?"}
SCENE = HELD_OUT + 100_012  # an image that no training saw: five shapes
HEARING = ("--model=whisper-tiny.en", "--topology=1E1P1D", "--encode-tp=1", "--prefill-tp=1")
RECORDINGS = Path("tests/data/librivox")
SAID = (("0870.wav", "had then leisure to consider"), ("0880.wav", ""))


@dataclass(frozen=True)
class Question:
    """One request: its name in the table, the conversation, and a word that the answer must contain (None: any answer)."""

    name: str
    messages: tuple[dict[str, Any], ...]
    expected: str | None = None


class Interview:
    """Questions to one server, what came back, and what of it was wrong."""

    def __init__(self, client: Client):
        self._client = client
        self.rows: list[tuple[str, Result]] = []
        self.wrong: list[str] = []

    def put(self, question: Question) -> Result:
        content = question.messages[-1]["content"]
        print(f"\n> {content if isinstance(content, str) else content[-1]['text']}", flush=True)
        result = ask(self._client, question)
        self.rows.append((question.name, result))
        if question.expected is not None and question.expected not in result.text:
            self.wrong.append(f"{question.name}: the answer does not mention {question.expected}")
        return result

    def hear(self, name: str, recording: bytes, expected: str) -> Result:
        """Have a recording written down."""
        print(f"\n> {name}, a recording", flush=True)
        with self._client.stream(speech_request(recording, None, False, {})) as stream:
            for chunk in stream:
                print(chunk.text, end="", flush=True)
            print(flush=True)
        self.rows.append((name, stream.result))
        if expected not in stream.result.text.lower():
            self.wrong.append(f"{name}: {expected!r} was not heard")
        return stream.result


def main() -> int:
    wrong = [
        *served(TEXT, talk, "Prefill ran on 2 emulated devices, decode on 1, in processes of their own; the first token of each answer came from prefill."),
        *served(SIGHT, look, "Encode ran on a device of its own, too; what was known of the image was not encoded again."),
        *(served(HEARING, listen, "Encode ran the mel spectrogram and the encoder; what moved on is what the decoder's cross-attention reads, to prefill and to decode.") if RECORDINGS.is_dir() else ()),
    ]  # fmt: skip
    for line in wrong:
        print(f"demo: {line}", file=sys.stderr)
    return 1 if wrong else 0


def served(settings: Sequence[str], questions: Callable[[Interview], None], remark: str) -> list[str]:
    """Start a server, ask, print the table; returns what was wrong."""
    with Supervisor() as supervisor:
        argv = [
            sys.executable,
            "-m",
            "triptych.tools.cli",
            "serve",
            *SETTINGS,
            *settings,
            f"--startup-timeout={START_LIMIT:g}",
        ]
        supervisor.start("serve", argv, dict(os.environ))
        ready = supervisor.wait_ready(START_LIMIT)["serve"]
        with Client(ready["address"]) as client:
            client.wait_ready(30.0)
            interview = Interview(client)
            questions(interview)
    print(f"\n{table(interview.rows)}\n\n{remark}\n", flush=True)
    return interview.wrong


def talk(to: Interview) -> None:
    """About France and the sea."""
    first = to.put(Question("question", (CAPITAL,), "Paris"))
    turn = (
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "Why is it famous? Answer in one sentence."},
    )
    to.put(Question("same conversation", (CAPITAL, *turn)))
    to.put(Question("same question", (CAPITAL,), "Paris"))
    to.put(Question("another question", ({"role": "user", "content": "Write one sentence about the sea."},)))


def look(to: Interview) -> None:
    """About an image made here."""
    scene = shapes_scene(SCENE)
    image = {"type": "image", "image": png(scene)}
    print("\nAn image with " + ", ".join(f"a {thing.colour} {thing.shape}" for thing in scene.things) + ":")
    for name, text, answer in (
        ("image", "How many objects are there?", "5"),
        ("same image", "What colour is the cross?", "black"),
        ("same again", "What colour is the cross?", "black"),
    ):
        to.put(Question(name, ({"role": "user", "content": [image, {"type": "text", "text": text}]},), answer))


def listen(to: Interview) -> None:
    """To recordings that lie here."""
    for name, words in SAID:
        to.hear(name, (RECORDINGS / name).read_bytes(), words)
    to.hear("same recording", (RECORDINGS / SAID[0][0]).read_bytes(), SAID[0][1])


def png(scene: Scene) -> bytes:
    """The image as a file."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(scene.pixels).save(out, "PNG")
    return out.getvalue()


def ask(client: Client, question: Question) -> Result:
    """Stream one greedy answer to stdout."""
    with client.generate(messages=list(question.messages), temperature=0.0, max_tokens=48) as stream:
        for chunk in stream:
            print(chunk.text, end="", flush=True)
        print(flush=True)
        return stream.result


COLUMNS = (
    "request", "prompt", "output", "queue ms", "encode ms", "E>P bytes", "prefill ms", "P>D ms", "P>D bytes", "pulled", "skipped", "TTFT ms", "TPOT ms",
)  # fmt: skip


def table(rows: list[tuple[str, Result]]) -> str:
    """One line a request: tokens, milliseconds by stage, and what moved (pages pulled, and pages that decode had in its prefix cache)."""
    lines = [[*COLUMNS]]
    for name, result in rows:
        usage, timings = result.usage, result.timings
        assert usage is not None and timings is not None, "a finished stream has both"
        per_token = (timings.total - timings.first_token) / max(1, usage.completion_tokens - 1)
        lines.append(
            [
                name,
                str(usage.prompt_tokens),
                str(usage.completion_tokens),
                _ms(timings.queue),
                _ms(timings.encode),
                f"{timings.embedding_bytes:,}",
                _ms(timings.prefill),
                _ms(timings.transfer),
                f"{timings.kv_bytes:,}",
                str(timings.pages_pulled),
                str(timings.pages_skipped),
                _ms(timings.first_token),
                _ms(per_token),
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}"


if __name__ == "__main__":
    sys.exit(main())
