"""Hashes are of the bytes and of the parameters, and of nothing else."""

from __future__ import annotations

from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.runtime.media.identity import canonical, content_hash


def test_the_hash_is_what_its_documentation_says():
    text = '["image/1",{"size":[2,3]}]'
    assert canonical("image/1", {"size": (2, 3)}) == text
    expected = blake2b(
        len(text).to_bytes(8, "little") + text.encode() + b"bytes", digest_size=16, person=b"triptych-media"
    )
    assert content_hash(b"bytes", text) == expected.hexdigest()
    assert content_hash(memoryview(b"bytes"), text) == content_hash(b"bytes", text)


def test_the_order_of_parameters_does_not_matter_and_their_types_do():
    assert canonical("a", {"x": 1, "y": 2}) == canonical("a", {"y": 2, "x": 1})
    texts = {canonical("a", {"x": value}) for value in (1, 1.5, "1", None, True, (1,))} | {canonical("b", {"x": 1})}
    assert len(texts) == 7


@given(st.binary(max_size=20), st.text(max_size=20), st.binary(max_size=20), st.text(max_size=20))
def test_different_pairs_have_different_hashes(a: bytes, p: str, b: bytes, q: str):
    p, q = (text.encode(errors="ignore").decode() for text in (p, q))
    assert (content_hash(a, p) == content_hash(b, q)) == ((a, p) == (b, q))


def test_bytes_cannot_pass_for_parameters():
    assert content_hash(b"b", "a") != content_hash(b"", "ab") != content_hash(b"ab", "")


def test_what_has_no_canonical_form_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        canonical("a", {"x": float("nan")})
    with pytest.raises(TypeError):
        canonical("a", {"x": object()})  # type: ignore[dict-item]
