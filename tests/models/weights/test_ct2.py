"""The CTranslate2 container: what is read, and every way in which a file can be broken."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.models.speech.tiny_ct2 import container
from triptych.models.errors import WeightsError
from triptych.models.weights.ct2 import open_ct2

TENSORS = {
    "a/weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(4, dtype=np.float16),
    "c": np.arange(3, dtype=ml_dtypes.bfloat16),
    "d/heads": np.array(-6, np.int16),
    "e": np.array([[1], [2]], np.int8),
}


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_tensors_settings_and_aliases_are_read(tmp_path: Path) -> None:
    file = open_ct2(write(tmp_path / "model.bin", container(TENSORS, {"alias": "b"}, specification="AnySpec")))
    assert file.specification == "AnySpec" and set(file.tensors) == {*TENSORS, "alias"}
    for name, value in TENSORS.items():
        np.testing.assert_array_equal(file.array(name), value)
        assert file.array(name).dtype == value.dtype
    np.testing.assert_array_equal(file.array("alias"), TENSORS["b"])
    assert file.scalar("d/heads") == -6 and file.scalar("absent", default=3) == 3


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    file = open_ct2(write(tmp_path / "model.bin", container(TENSORS, {})))
    with pytest.raises(WeightsError, match="no tensor 'absent'"):
        file.array("absent")
    with pytest.raises(WeightsError, match="no tensor 'absent'"):
        file.scalar("absent")
    with pytest.raises(WeightsError, match="'b' has shape"):
        file.scalar("b")


def test_a_file_cut_off_anywhere_is_an_error(tmp_path: Path) -> None:
    whole = container(TENSORS, {"alias": "b"})
    for keep in range(len(whole)):
        with pytest.raises(WeightsError, match=r"model\.bin"):
            open_ct2(write(tmp_path / "model.bin", whole[:keep]))


def test_bytes_flipped_anywhere_are_read_or_refused_but_nothing_else(tmp_path: Path) -> None:
    whole = container(TENSORS, {"alias": "b"})
    for at in range(len(whole)):
        broken = bytearray(whole)
        broken[at] ^= 0xA5
        try:
            file = open_ct2(write(tmp_path / "model.bin", bytes(broken)))
            for name in file.tensors:
                file.array(name)
        except WeightsError:
            pass


@pytest.mark.parametrize("version", [0, 3, 7])
def test_other_versions_are_refused(tmp_path: Path, version: int) -> None:
    with pytest.raises(WeightsError, match=f"version {version}; supported: 4 to 6"):
        open_ct2(write(tmp_path / "model.bin", container(TENSORS, {}, version)))


def test_dangling_aliases_rests_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="'x' stands for 'y', which is not in the file"):
        open_ct2(write(tmp_path / "model.bin", container(TENSORS, {"x": "y"})))
    with pytest.raises(WeightsError, match="5 bytes after its last entry"):
        open_ct2(write(tmp_path / "model.bin", container(TENSORS, {}) + b"12345"))
    with pytest.raises(WeightsError, match="missing"):
        open_ct2(tmp_path / "absent.bin")
