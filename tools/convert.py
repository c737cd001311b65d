"""`triptych convert`: read a model in any known form and write it as an Orbax checkpoint that `triptych serve` starts from."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from triptych.runtime.core.errors import ConfigError
from triptych.tools.config import ServeConfig

DEFAULT_CACHE = ServeConfig().cache_dir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", help="what to read: smollm2, a Hugging Face or Orbax folder, a .gguf file, dummy:<preset>, org/name"
    )
    parser.add_argument("output", type=Path, help="folder to write; must not exist")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="convert weights (default: as they are)")
    parser.add_argument(
        "--cache-dir", default=DEFAULT_CACHE, help=f"where fetched models are kept (default {DEFAULT_CACHE})"
    )


def run(args: argparse.Namespace) -> int:
    from triptych.models.hub.bundle import open_model
    from triptych.models.hub.errors import ModelFetchError
    from triptych.models.hub.media import open_multimodal
    from triptych.models.hub.resolve import resolve_model
    from triptych.models.weights.orbax import save_orbax

    try:
        resolved = resolve_model(args.model, Path(args.cache_dir).expanduser(), progress=_tell)
        if open_multimodal(resolved) is not None:
            raise ConfigError(
                f"{resolved.name} has a vision encoder, and checkpoints of `triptych convert` hold language models only; "
                "serve the folder as it is"
            )
        bundle = open_model(resolved)
        _tell(f"writing {resolved.name} to {args.output}")
        save_orbax(
            args.output,
            bundle.config,
            bundle.tensor_source,
            dtype=args.dtype,
            tokenizer=bundle.tokenizer,
            chat_template=bundle.chat_template.source if bundle.chat_template else None,
        )
    except (
        ModelFetchError,
        OSError,
        ValueError,
    ) as error:  # bad names, missing files, broken checkpoints: the user's to mend
        raise ConfigError(str(error)) from error
    size = sum(f.stat().st_size for f in args.output.rglob("*") if f.is_file())
    _tell(f"wrote {size / 1e6:.1f} MB; serve it with: triptych serve {args.output}")
    return 0


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
