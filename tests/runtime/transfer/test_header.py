"""The header crosses the wire unchanged, and its digest means the header."""

from __future__ import annotations

from dataclasses import replace

import pytest

from triptych.models.config import PRESETS
from triptych.models.kv import kv_groups
from triptych.proto.v1 import transfer_pb2
from triptych.runtime.core.errors import IncompatibleError
from triptych.runtime.transfer.header import KvHeader, check, difference, group_headers, part_bytes
from triptych.runtime.wire.convert import decode, encode

DTYPES = ("bfloat16", "int8", "float8_e4m3fn")


def make_header(dtype: str) -> KvHeader:
    return KvHeader("toy", "abc", group_headers(kv_groups(PRESETS["toy"], dtype)), dtype, 16, 8, ((0, 1), (1, 2)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_header_survives_the_wire(dtype: str):
    header = make_header(dtype)
    wire = encode(header, transfer_pb2.KvHeader, 0.0).SerializeToString()
    again = decode(transfer_pb2.KvHeader.FromString(wire), KvHeader, 0.0)
    assert again == header
    assert again.digest() == header.digest()
    assert len(header.digest()) == 64


@pytest.mark.parametrize("dtype", DTYPES)
def test_part_bytes_counts_a_granule_of_a_layer_group(dtype: str):
    group = kv_groups(PRESETS["toy"], dtype)[0]
    halves, whole = make_header(dtype), replace(make_header(dtype), layer_groups=((0, 2),))
    assert part_bytes(whole, 0) == group.bytes_per_token * 16 * 8
    assert part_bytes(halves, 0) == part_bytes(halves, 1) == part_bytes(whole, 0) // 2


def test_who_keeps_codes_is_told_from_who_keeps_numbers():
    int8, wide = make_header("int8"), make_header("bfloat16")
    assert (int8.chunk_dtype, wide.chunk_dtype) == ("uint32", "bfloat16")
    with pytest.raises(IncompatibleError, match="dtype: mine 'int8', theirs 'bfloat16'") as refusal:
        check(int8, wide)
    assert "scales='float32'" in refusal.value.message and "scales=''" in refusal.value.message
    assert "dtype: mine 'int8', theirs 'float8_e4m3fn'" in difference(int8, make_header("float8_e4m3fn"))
    assert len({header.digest() for header in (int8, wide, make_header("float8_e4m3fn"))}) == 3
