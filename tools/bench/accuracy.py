"""`triptych accuracy`: what formats of weights and of KV cost, on real text: perplexity, and how often the next token is the same.

The text is cut into windows that are computed by the decoder that serves, each as one prompt; a window's first token has nothing before it
and is not counted. Perplexity is exp of the mean negative log-probability of the text's tokens. The second figure compares the most
probable next token at each place with that of the first format named: what a greedy answer would begin to differ by.

Every token attends to keys and values that were written into pages in the KV's dtype and are read from there, its own included, as when served.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from triptych.models.kv import KV_CODES, KVGroup, kv_groups
from triptych.models.weight_formats import AUTO, WEIGHT_FORMATS
from triptych.runtime.core.errors import ConfigError
from triptych.tools.config import ServeConfig
from triptych.tools.reports import check_outputs

if TYPE_CHECKING:
    from triptych.models.weights.load import LoadedDecoder

DEFAULT_CACHE = ServeConfig().cache_dir
DEFAULT_TEXT = Path(__file__).parent / "data" / "hamlet_excerpt.txt"
DTYPES = ("float32", "bfloat16")
KV_FORMATS = (AUTO, *DTYPES, *KV_CODES)
PAGE = 16


@dataclass(frozen=True)
class Accuracy:
    """One pair of formats on one text. `same` is the share of places at which the most probable token is that of the reference."""

    weights: str
    dtype: str
    kv: str
    kv_bytes_per_token: int
    megabytes: float
    perplexity: float
    same: float
    tokens: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", default="smollm2", help="smollm2, a folder or .gguf file, dummy:<preset> (default smollm2)"
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        metavar="FORMAT",
        default=["float32", "bfloat16", "int8", "int8-layers", "fp8", "int4-32", "int4", "int4-layers"],
        help=f"formats to compare, the first is the reference: {', '.join((*DTYPES, *WEIGHT_FORMATS))}",
    )
    parser.add_argument(
        "--kv",
        nargs="+",
        metavar="FORMAT",
        default=[AUTO],
        help=f"formats of KV, each with all those of weights: {', '.join(KV_FORMATS)} (default auto: as activations)",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of activations, with quantised weights (default float32)"
    )
    parser.add_argument("--text", type=Path, help="file of text (default: an excerpt of Hamlet)")
    parser.add_argument("--window", type=int, default=512, help="tokens of a window (default 512)")
    parser.add_argument(
        "--windows", type=int, default=8, help="windows to compute, from the text's beginning (default 8)"
    )
    parser.add_argument(
        "--cache-dir", default=DEFAULT_CACHE, help=f"where fetched models are kept (default {DEFAULT_CACHE})"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")


def run(args: argparse.Namespace) -> int:
    if args.window < 2 or args.windows < 1:
        raise ConfigError("--window must be at least 2 and --windows at least 1")
    if unknown := [name for name in args.weights if name not in DTYPES and name not in WEIGHT_FORMATS]:
        raise ConfigError(f"--weights {unknown[0]} is unknown; known: {', '.join((*DTYPES, *WEIGHT_FORMATS))}")
    if unknown := [name for name in args.kv if name not in KV_FORMATS]:
        raise ConfigError(f"--kv {unknown[0]} is unknown; known: {', '.join(KV_FORMATS)}")
    check_outputs(args.json)
    import jax

    from triptych.models.hub.bundle import open_model
    from triptych.models.hub.errors import ModelFetchError
    from triptych.models.hub.resolve import resolve_model
    from triptych.models.weights.load import load_decoder, quantised
    from triptych.sharding.mesh import make_mesh

    try:
        bundle = open_model(resolve_model(args.model, Path(args.cache_dir).expanduser(), progress=_tell))
        text = (args.text or DEFAULT_TEXT).read_text(encoding="utf-8")
    except (ModelFetchError, OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    if bundle.tokenizer is None:
        raise ConfigError(f"{args.model} has no tokenizer to read text with")
    windows = cut(bundle.tokenizer.encode(text), args.window, args.windows)
    mesh = make_mesh(jax.devices()[:1], 1)
    print(f"{args.model}, {windows.size} tokens of {(args.text or DEFAULT_TEXT).name} in windows of {args.window}")
    print(f"{'weights':<16} {'dtype':<9} {'MB':>8} {'KV':<9} {'B/token':>8} {'perplexity':>11} {'same token':>11}")
    figures: list[Accuracy] = []
    reference: np.ndarray | None = None
    plain: LoadedDecoder | None = None
    for name in args.weights:
        began = time.perf_counter()
        dtype, weights = (name, "auto") if name in DTYPES else (args.dtype, name)
        try:
            if plain is None or str(plain.structure.dtype) != dtype:
                plain = load_decoder(bundle.config, bundle.tensor_source, mesh, dtype)
            loaded = quantised(plain, weights)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from error
        for kv in args.kv:
            group = _group(loaded, kv)
            loss, best = measure(loaded, windows, kv)
            reference = best if reference is None else reference
            same = float((best == reference).mean())
            megabytes, per_token = loaded.nbytes() / 1e6, group.bytes_per_token
            figures.append(Accuracy(name, dtype, kv, per_token, megabytes, math.exp(loss), same, best.size))
            print(
                f"{name:<16} {dtype:<9} {megabytes:>8.1f} {kv:<9} {per_token:>8} {math.exp(loss):>11.3f} {100 * same:>10.2f}%",
                flush=True,
            )
            _tell(f"{name}, KV {kv}: {time.perf_counter() - began:.0f} s")
            began = time.perf_counter()
    if args.json is not None:
        report = {"model": args.model, "device": jax.devices()[0].device_kind, "text": (args.text or DEFAULT_TEXT).name}
        args.json.write_text(json.dumps(report | {"formats": [asdict(one) for one in figures]}, indent=1) + "\n")
    return 0


def cut(tokens: list[int], window: int, most: int) -> np.ndarray:
    """[windows, window] int32, from the beginning. Raises ConfigError if the tokens do not fill one."""
    count = min(most, len(tokens) // window)
    if count < 1:
        raise ConfigError(f"the text has {len(tokens)} tokens, less than a window of {window}")
    return np.array(tokens[: count * window], np.int32).reshape(count, window)


def measure(loaded: LoadedDecoder, windows: np.ndarray, kv: str = AUTO) -> tuple[float, np.ndarray]:
    """The mean negative log-probability of the windows' tokens, and the most probable next token at each place [windows, window - 1].

    `kv` is one of KV_FORMATS.
    """
    program = _program(loaded, windows.shape[1], kv)
    losses, best = zip(*(program(window) for window in windows), strict=True)
    return float(np.mean(losses)), np.stack(best)


def _group(loaded: LoadedDecoder, kv: str) -> KVGroup:
    dtype = str(loaded.structure.dtype) if kv == AUTO else KV_CODES.get(kv, kv)
    (group,) = kv_groups(loaded.config, dtype)
    return group


def _program(loaded: LoadedDecoder, window: int, kv: str) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    import jax
    import jax.numpy as jnp

    from triptych.models.decoder import extend
    from triptych.models.ragged import Ragged

    pages = -(-window // PAGE)
    pools = loaded.structure.allocate_pools(_group(loaded, kv), 1 + pages, PAGE)
    places = jnp.arange(window)

    @jax.jit
    def run(params: tuple[jax.Array, ...], tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        batch = Ragged(
            tokens=tokens,
            positions=places,
            write_index=PAGE + places,  # page 0 is the null page
            kv_lens=jnp.array([window]),
            page_indices=1 + jnp.arange(pages)[None],
            cu_q_lens=jnp.array([0, window]),
            decode_rows=0,
            max_q_len=window,
        )
        decoder = loaded.merge(params)
        hidden, _ = extend(decoder, pools, batch)
        logits = decoder.head(hidden[:-1])
        chosen = jnp.take_along_axis(logits, tokens[1:, None], axis=1)[:, 0]
        return (jax.nn.logsumexp(logits, axis=1) - chosen).mean(), logits.argmax(axis=1)

    def call(tokens: np.ndarray) -> tuple[float, np.ndarray]:
        loss, best = run(loaded.params, jnp.asarray(tokens))
        return float(loss), np.asarray(best)

    return call


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
