"""The header crosses the wire unchanged, and its digest means the header."""

from __future__ import annotations

from dataclasses import replace

from triptych.models.config import PRESETS
from triptych.models.kv import kv_groups
from triptych.proto.v1 import transfer_pb2
from triptych.runtime.transfer.header import KvHeader, group_headers, part_bytes
from triptych.runtime.wire.convert import decode, encode


def make_header() -> KvHeader:
    return KvHeader(
        "toy", "abc", group_headers(kv_groups(PRESETS["toy"], "bfloat16")), "bfloat16", 16, 8, ((0, 1), (1, 2))
    )


def test_header_survives_the_wire():
    header = make_header()
    wire = encode(header, transfer_pb2.KvHeader, 0.0).SerializeToString()
    again = decode(transfer_pb2.KvHeader.FromString(wire), KvHeader, 0.0)
    assert again == header
    assert again.digest() == header.digest()
    assert len(header.digest()) == 64


def test_part_bytes_counts_a_granule_of_a_layer_group():
    group = kv_groups(PRESETS["toy"], "bfloat16")[0]
    halves, whole = make_header(), replace(make_header(), layer_groups=((0, 2),))
    assert part_bytes(whole, 0) == group.bytes_per_token * 16 * 8
    assert part_bytes(halves, 0) == part_bytes(halves, 1) == part_bytes(whole, 0) // 2
