"""KV really moves, damaged KV is noticed, and decode computes no prompt behind anybody's back."""

from __future__ import annotations

import time

import pytest

from tests.system.toy import ToySetup
from triptych.runtime.client import Client
from triptych.runtime.core.errors import ChecksumError, Status, TriptychError
from triptych.runtime.transfer.transports import open_transports
from triptych.runtime.transfer.transports.faulty import Fault, FaultSchedule, FaultyTransport

PROMPT = list(range(100, 170))  # 70 tokens, five pages


@pytest.mark.limit(300)
def test_pages_move_once_and_decode_computes_no_prompt() -> None:
    with ToySetup("1P1D", tp=(2, 1), max_num_seqs=4).cluster() as cluster, Client(cluster.address) as client:
        # Times travel on another way than tokens do: with many tokens to come they are there before the last one.
        cold = client.complete(token_ids=PROMPT, max_tokens=40, temperature=0).timings
        warm = client.complete(token_ids=PROMPT, max_tokens=40, temperature=0).timings
        assert cold is not None and warm is not None
        assert (cold.pages_pulled, cold.pages_skipped) == (5, 0)
        assert (warm.pages_pulled, warm.pages_skipped) == (1, 4)
        until = time.monotonic() + 60
        while any(snapshot.resources["staging_bytes"] for snapshot in cluster.snapshots()):
            assert time.monotonic() < until
            time.sleep(0.05)
        decode, prefill = cluster.snapshots()
        assert decode.info.ref.id == "decode-0"
        assert (
            decode.counters["kv_bytes_received"]
            == prefill.counters["kv_bytes_offered"]
            == cold.kv_bytes + warm.kv_bytes
            > 0
        )
        assert decode.counters["prefill_tokens"] == 0
        assert prefill.counters["prefill_tokens"] == len(PROMPT) + len(PROMPT) - 64
        assert decode.counters["kv_pull_us"] > 0 == prefill.counters["kv_pull_us"]
        assert 0 <= decode.counters["kv_pull_exposed_us"] <= decode.counters["kv_pull_us"]


@pytest.mark.limit(300)
@pytest.mark.parametrize("transport", ["local", pytest.param("device", marks=pytest.mark.slow)])
def test_damaged_kv_fails_the_request_and_is_never_decoded(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = FaultSchedule.always(Fault.CORRUPT)

    def damaging(*args, **kwargs):  # type: ignore[no-untyped-def]
        return {kind: FaultyTransport(inner, schedule) for kind, inner in open_transports(*args, **kwargs).items()}

    monkeypatch.setattr("triptych.runtime.worker.process.open_transports", damaging)
    groups = 1 if transport == "device" else None
    setup = ToySetup("1P1D", transport=transport, max_num_seqs=4, kv_layer_groups=groups)
    with setup.cluster() as cluster, Client(cluster.address) as client:
        tokens = 0
        with pytest.raises(TriptychError) as caught:
            for chunk in client.generate(token_ids=PROMPT, max_tokens=8, temperature=0, timeout=120):
                tokens += len(chunk.tokens)
        assert caught.value.status is Status.DATA_LOSS, caught.value.message
        assert isinstance(caught.value, ChecksumError)
        assert tokens <= 1, "only prefill's own first token may have come"
        assert all(
            snapshot.counters["prefill_tokens"] == 0
            for snapshot in cluster.snapshots()
            if "decode" in snapshot.info.ref.id
        )


@pytest.mark.limit(300)
def test_a_transfer_that_never_arrives_ends_with_the_requests_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = FaultSchedule.always(Fault.DROP)

    def dropping(*args, **kwargs):  # type: ignore[no-untyped-def]
        return {kind: FaultyTransport(inner, schedule) for kind, inner in open_transports(*args, **kwargs).items()}

    monkeypatch.setattr("triptych.runtime.worker.process.open_transports", dropping)
    with ToySetup("1P1D", max_num_seqs=4).cluster() as cluster, Client(cluster.address) as client:
        with pytest.raises(TriptychError) as caught:
            client.complete(token_ids=PROMPT, max_tokens=8, temperature=0, timeout=2)
        assert caught.value.status is Status.DEADLINE_EXCEEDED
