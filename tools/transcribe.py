"""`triptych transcribe`: the text of a sound file.

With --server a running server that serves a speech model is asked, and the text comes as it is written down. Without, Whisper
runs in this process, by the reference loop (`models/speech/transcribe.py`): each call loads the model and compiles its programs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.models.speech.config import SAMPLE_RATE
from triptych.runtime.client import Client
from triptych.runtime.client.requests import speech_request
from triptych.runtime.core.errors import ConfigError
from triptych.tools.config import ServeConfig
from triptych.tools.connection import TlsSettings
from triptych.tools.generate import describe
from triptych.tools.settings import add_flags, resolve, setting, split_secrets

if TYPE_CHECKING:
    import numpy as np

    from triptych.models.speech.transcribe import Transcriber

DEFAULT_CACHE = ServeConfig().cache_dir
DEFAULT_MODEL = "whisper-tiny.en"

# An hour of float32 samples is 230 MB and takes minutes: longer files are better cut by whoever has them.
MAX_SECONDS = 3600.0


@dataclass(frozen=True)
class SpeechServer(TlsSettings):
    """The server that is asked, if one is, and how it is reached."""

    address: str | None = setting(
        None, "running server to ask, host:port (auto: this process)", flags=("-a", "--server"), group="connection"
    )
    api_key: str | None = setting(None, "bearer token (better in the environment)", secret=True, group="connection")
    wait: float = setting(0.0, "seconds to wait for the server to be ready", group="connection")

    @property
    def token(self) -> str | None:
        """The first of several."""
        return next(iter(split_secrets(self.api_key)), None)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        f"{parser.description} With --server a running server does it; without, this process, on the first device that jax "
        "finds. Audio longer than a window of 30 s is cut in a pause near its end; there are no timestamps."
    )
    parser.add_argument("file", type=Path, help="WAV, FLAC, OGG or MP3, of any sampling rate and number of channels")
    parser.add_argument(
        "--model",
        help=f"a Hugging Face or CTranslate2 folder of Whisper, org/name, or a short name (default {DEFAULT_MODEL}; with --server "
        "what it serves)",
    )
    parser.add_argument("--language", metavar="CODE", help="what is spoken, such as en (multilingual models need it)")
    parser.add_argument("--translate", action="store_true", help="into English, by multilingual models")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="default float32 (without --server)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the text")
    parser.add_argument("--verbose", "-v", action="store_true", help="print timings to stderr")
    parser.add_argument(
        "--cache-dir", default=DEFAULT_CACHE, help=f"where fetched models are kept (default {DEFAULT_CACHE})"
    )
    add_flags(parser, SpeechServer)


def run(args: argparse.Namespace) -> int:
    server = resolve(SpeechServer, args)
    return _here(args) if server.address is None else _there(args, server, server.address)


def _there(args: argparse.Namespace, server: SpeechServer, address: str) -> int:
    """On a running server."""
    with Client(address, server.token, server.tls) as client:
        if server.wait:
            client.wait_ready(server.wait)
        request = speech_request(args.file, args.language, args.translate, {}, model=args.model or "")
        with client.stream(request) as stream:
            for chunk in stream:
                if not args.json:
                    print(chunk.text, end="", flush=True)
            result = stream.result
        seconds = result.usage.audio_seconds if result.usage else 0.0
        if args.json:
            model = args.model or client.model_info().model
            print(json.dumps({"text": result.text, "seconds": round(seconds, 3), "model": model}))
        else:
            print()
    if args.verbose:
        print(f"{seconds:.1f} s of audio; {describe(result)}", file=sys.stderr)
    return 0


def _here(args: argparse.Namespace) -> int:
    """In this process."""
    from triptych.models.hub.errors import ModelFetchError
    from triptych.sharding.heads import IncompatibleTpError

    samples = read_audio(args.file)
    seconds = samples.size / SAMPLE_RATE
    begun = time.monotonic()
    try:
        transcriber = _load(args.model or DEFAULT_MODEL, Path(args.cache_dir).expanduser(), args.dtype)
        loaded = time.monotonic()
        text = transcriber.text(samples, args.language, "translate" if args.translate else "transcribe")
    except (ModelFetchError, IncompatibleTpError, OSError, ValueError) as error:  # bad names, broken files, languages
        raise ConfigError(str(error)) from error
    done = time.monotonic()
    print(
        json.dumps({"text": text, "seconds": round(seconds, 3), "model": args.model or DEFAULT_MODEL})
        if args.json
        else text
    )
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
