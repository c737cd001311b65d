"""Pictures through encode, prefill and decode: nothing known is encoded again, and all encode instances share the work.

That the tokens are the same wherever the stages are is in test_media_matrix.py.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.runtime.media import files
from tests.system.toy import shape_of
from tests.system.toy_media import cluster_of, encoded, picture
from triptych.runtime.client import Client, Result

pytestmark = pytest.mark.limit(600)


def test_a_picture_asked_about_by_many_is_encoded_once() -> None:
    """50 requests at once; then a second turn about it, which encodes nothing and pulls only what is new."""
    with cluster_of("2E1P1D", "grpc") as cluster, Client(cluster.address) as client:
        image = picture(7)

        def ask(number: int) -> Result:
            return client.complete(
                f"<|pad|>question {number}", images=[image], max_tokens=3, temperature=0, timeout=120
            )

        with ThreadPoolExecutor(50) as threads:
            list(threads.map(ask, range(50)))
        assert sum(encoded(cluster).values()) == 1
        first = client.complete("<|pad|>question 1 and more", images=[image], max_tokens=3, temperature=0)
        second = client.complete("<|pad|>question 1 and more", images=[image], max_tokens=3, temperature=0)
        assert sum(encoded(cluster).values()) == 1
        assert first.usage is not None and second.usage is not None and second.timings is not None
        assert second.usage.cached_tokens >= 16
        # Times of an answer's last stage may come after the answer itself; each of these skips what the one before left.
        later = [
            client.complete("<|pad|>question 1 and more", images=[image], max_tokens=3, temperature=0) for _ in range(5)
        ]
        assert max(result.timings.pages_skipped for result in (second, *later) if result.timings is not None) >= 1
        assert second.timings.embedding_bytes == second.timings.encode_tasks == 0


@pytest.mark.slow
def test_pictures_and_frames_are_encoded_by_all_encode_instances() -> None:
    """Items of one request fan out, and their embeddings come together in the order of the prompt."""
    request: dict[str, Any] = {
        "prompt": " ".join(f"{n}:<|pad|>" for n in range(4)),
        "images": [picture(20 + n) for n in range(3)],
        "videos": [files.video_file(files.video_frames(30, 32, 24))],  # three seconds, so three frames
        "max_tokens": 8,
        "temperature": 0,
    }
    with cluster_of("EPD") as cluster, Client(cluster.address) as client:
        wanted = client.complete(**request)
    with cluster_of("3E1P1D", "grpc") as cluster, Client(cluster.address) as client:
        assert shape_of(client.complete(**request)) == shape_of(wanted)
        assert sorted(encoded(cluster).values()) == [2, 2, 2]
