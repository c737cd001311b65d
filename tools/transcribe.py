"""`triptych transcribe`: the text of a sound file.

For now it runs Whisper in this process, by the reference loop (`models/speech/transcribe.py`): no server is asked, and
each call loads the model and compiles its programs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.models.speech.config import SAMPLE_RATE
from triptych.runtime.core.errors import ConfigError
from triptych.tools.config import ServeConfig

if TYPE_CHECKING:
    import numpy as np

    from triptych.models.speech.transcribe import Transcriber

DEFAULT_CACHE = ServeConfig().cache_dir
DEFAULT_MODEL = "whisper-tiny.en"

# An hour of float32 samples is 230 MB and takes minutes: longer files are better cut by whoever has them.
MAX_SECONDS = 3600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        f"{parser.description} It runs in this process for now, on the first device that jax finds, and not on a "
        "running server. Audio longer than a window of 30 s is cut in a pause near its end; there are no timestamps."
    )
    parser.add_argument("file", type=Path, help="WAV, FLAC, OGG or MP3, of any sampling rate and number of channels")
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help=f"a Hugging Face or CTranslate2 folder of Whisper, org/name, or a short name (default {DEFAULT_MODEL})",
    )
    parser.add_argument("--language", metavar="CODE", help="what is spoken, such as en (multilingual models need it)")
    parser.add_argument("--translate", action="store_true", help="into English, by multilingual models")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default float32")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the text")
    parser.add_argument("--verbose", "-v", action="store_true", help="print timings to stderr")
    parser.add_argument(
        "--cache-dir", default=DEFAULT_CACHE, help=f"where fetched models are kept (default {DEFAULT_CACHE})"
    )


def run(args: argparse.Namespace) -> int:
    from triptych.models.hub.errors import ModelFetchError
    from triptych.sharding.heads import IncompatibleTpError

    samples = read_audio(args.file)
    seconds = samples.size / SAMPLE_RATE
    begun = time.monotonic()
    try:
        transcriber = _load(args.model, Path(args.cache_dir).expanduser(), args.dtype)
        loaded = time.monotonic()
        text = transcriber.text(samples, args.language, "translate" if args.translate else "transcribe")
    except (ModelFetchError, IncompatibleTpError, OSError, ValueError) as error:  # bad names, broken files, languages
        raise ConfigError(str(error)) from error
    done = time.monotonic()
    print(json.dumps({"text": text, "seconds": round(seconds, 3), "model": args.model}) if args.json else text)
    if args.verbose:
        print(
            f"{seconds:.1f} s of audio; model loaded in {loaded - begun:.1f} s, transcribed (compilation included) "
            f"in {done - loaded:.1f} s",
            file=sys.stderr,
        )
    return 0


def read_audio(path: Path) -> np.ndarray:
    """A sound file as float32 samples [samples] of 16 kHz, channels averaged.

    Raises ConfigError if it is missing, no sound, empty or longer than an hour, or if a package for it is not installed.
    """
    try:
        import soundfile
        import soxr
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed; pip install 'triptych[media]'") from error
    if not path.is_file():
        raise ConfigError(f"{path} is no file")
    try:
        with soundfile.SoundFile(path) as file:
            rate, frames = file.samplerate, file.frames
            if frames > MAX_SECONDS * rate:
                raise ConfigError(f"{path} is {frames / rate:.0f} s long; at most {MAX_SECONDS:.0f} s are transcribed")
            samples = file.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise ConfigError(f"{path} is no sound file that can be read: {error}") from error
    if samples.shape[0] == 0:
        raise ConfigError(f"{path} holds no sound")
    mono = samples.mean(axis=1)
    return mono if rate == SAMPLE_RATE else soxr.resample(mono, rate, SAMPLE_RATE)


def _load(model: str, cache_dir: Path, dtype: str) -> Transcriber:
    import jax

    from triptych.models.hub.resolve import resolve_model
    from triptych.models.speech.bundle import open_speech
    from triptych.models.speech.load import load_decoder, load_encoder
    from triptych.models.speech.transcribe import Transcriber
    from triptych.sharding.mesh import make_mesh

    bundle = open_speech(resolve_model(model, cache_dir))
    mesh = make_mesh(jax.devices()[:1], 1)
    encoder = load_encoder(bundle.config, bundle.tensor_source, mesh, dtype)
    decoder = load_decoder(bundle.config, bundle.tensor_source, mesh, dtype)
    return Transcriber(encoder, decoder, bundle.tokens, bundle.tokenizer)
