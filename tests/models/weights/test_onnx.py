"""Weights out of ONNX files: the wire format, and the names that an exported DINOv2 gets back."""

from pathlib import Path

import numpy as np
import pytest

from tests.models.weights.tiny_onnx import field, node, varint, write_onnx
from triptych.models.errors import WeightsError
from triptych.models.weights.onnx import OnnxNode, OnnxSource
from triptych.models.weights.onnx_dinov2 import POSITIONS, open_onnx_dinov2

ALL = slice(None)


def test_tensors_and_nodes_are_read_as_they_were_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "a": rng.standard_normal((3, 200)).astype(np.float32),
        "b": rng.standard_normal(4).astype(np.float16),
        "scalar": np.asarray(7, np.int64),
    }
    path = write_onnx(tmp_path / "x.onnx", tensors, [node("/x/MatMul", "MatMul", ["in", "a"])])
    source = OnnxSource(path)
    assert set(source.names()) == set(tensors)
    for name, array in tensors.items():
        assert source.shape(name) == array.shape
        read = source.read(name, (ALL,) * array.ndim)
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)
    np.testing.assert_array_equal(source.read("a", (slice(1, 3), slice(5, 9))), tensors["a"][1:3, 5:9])
    assert source.nodes == (OnnxNode("/x/MatMul", "MatMul", ("in", "a")),)


def test_packed_dimensions_and_floats_are_read_too(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32)
    packed = field(1, varint(2) + varint(3)) + field(2, 1) + field(4, values.tobytes()) + field(8, b"p")
    path = tmp_path / "x.onnx"
    path.write_bytes(field(7, field(5, packed)))
    np.testing.assert_array_equal(OnnxSource(path).read("p", (ALL, ALL)), values.reshape(2, 3))


def test_files_that_are_cut_off_anywhere_are_refused_by_name(tmp_path: Path) -> None:
    whole = write_onnx(tmp_path / "x.onnx", {"a": np.ones((4, 5), np.float32)}).read_bytes()
    path = tmp_path / "cut.onnx"
    for length in range(len(whole) - 4):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"cut\.onnx"):
            OnnxSource(path)


def test_unsupported_storage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(field(7, field(5, field(1, 2) + field(2, 3) + field(8, b"bytes") + field(9, b"ab"))))
    with pytest.raises(WeightsError, match="ONNX type 3"):
        OnnxSource(path).read("bytes", (ALL,))
    path.write_bytes(field(7, field(5, field(1, 2) + field(2, 1) + field(8, b"short") + field(9, b"ab"))))
    with pytest.raises(WeightsError, match="has 2 bytes"):
        OnnxSource(path).read("short", (ALL,))
    path.write_bytes(field(7, field(5, field(8, b"far") + field(13, b"x"))))
    with pytest.raises(WeightsError, match="another file"):
        OnnxSource(path)


def test_an_exported_dinov2_has_the_names_of_its_checkpoint_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    prefix, block = "backbone.", "backbone.encoder.layer.0."
    fc1 = rng.standard_normal((64, 128)).astype(np.float32)  # [in, out], as the exporter leaves it
    table = rng.standard_normal((1, 9, 64)).astype(np.float32)
    tensors = {
        prefix + "embeddings.patch_embeddings.projection.weight": np.ones((64, 3, 2, 2), np.float32),
        prefix + "layernorm.weight": np.ones(64, np.float32),
        block + "mlp.fc1.bias": np.zeros(128, np.float32),
        "onnx::MatMul_7": fc1,
        "onnx::Concat_1": np.full((1, 1, 64), 5, np.float32),
        "onnx::Reshape_2": table,
        "decoder.weight": np.ones(3, np.float32),
    }
    nodes = [node("/backbone/encoder/layer.0/mlp/fc1/MatMul", "MatMul", ["x", "onnx::MatMul_7"])]
    config, source = open_onnx_dinov2(write_onnx(tmp_path / "d.onnx", tensors, nodes))
    assert (config.hidden_size, config.num_heads, config.intermediate_size) == (64, 1, 128)
    assert (config.patch_size, config.position_grid, config.num_layers) == (2, 3, 1)
    name = "encoder.layer.0.mlp.fc1.weight"
    assert source.shape(name) == (128, 64)
    np.testing.assert_array_equal(source.read(name, (slice(3, 9), slice(0, 5))), fc1.T[3:9, :5])
    positions = source.read(POSITIONS, (ALL, ALL, ALL))
    assert (positions[0, 0] == 5).all()
    np.testing.assert_array_equal(positions[:, 1:], table)
    assert "decoder.weight" not in source.names()


def test_another_model_is_no_dinov2(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds no DINOv2"):
        open_onnx_dinov2(write_onnx(tmp_path / "d.onnx", {"a": np.ones(3, np.float32)}))
