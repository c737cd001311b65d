"""`triptych top` shows what a real Control and Worker service tell, and goes on without a worker that does not answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest

from triptych.proto.v1 import control_pb2, control_pb2_grpc, worker_pb2, worker_pb2_grpc
from triptych.tools import cli


class Fake(control_pb2_grpc.ControlServicer, worker_pb2_grpc.WorkerServicer):
    """A cluster of two instances, of which only decode-0's worker can be reached; every look counts 10 steps and 1,000 requests more."""

    def __init__(self) -> None:
        self.looks = 0
        self.address = ""
        self.media = False

    def GetCluster(self, request: control_pb2.GetClusterRequest, context: Any) -> control_pb2.Cluster:
        self.looks += 1
        cluster = control_pb2.Cluster(queued=2, active=5)
        cluster.counters.update(
            {"submitted": 1000 * self.looks, "completed": 7, "refused": 0, "resumed": 1, "failed_unavailable": 3}
        )
        for name, role, address in (("decode-0", "decode", self.address), ("prefill-0", "prefill", "127.0.0.1:1")):
            entry = cluster.instances.add(heartbeat_age=0.25, tasks=3, state="open")
            entry.info.ref.id, entry.info.ref.epoch, entry.info.address, entry.info.worker = (
                name,
                7,
                address,
                f"w-{name}",
            )
            entry.info.roles.append(role)
            entry.info.capacity.num_pages, entry.info.capacity.max_num_seqs = 64, 8
            if self.media and name == "decode-0":
                entry.info.capacity.media_pages, entry.info.capacity.max_patches = 40, 512
                entry.load.free_media_pages, entry.load.encoding = 20, 700
            entry.load.free_pages, entry.load.free_slots, entry.load.running, entry.load.waiting = 16, 6, 2, 1
        return cluster

    def Inspect(self, request: worker_pb2.InspectRequest, context: Any) -> worker_pb2.InspectReply:
        reply = worker_pb2.InspectReply()
        state = reply.instances.add()
        state.info.ref.id, state.info.ref.epoch = "decode-0", 7
        state.counters.update({"steps": 10 * self.looks, "kv_bytes_received": 2_000_000 * self.looks, "preemptions": 4})
        state.resources.update({"pages_free": 16, "shelf_items": 3})
        state.counters.update({"encoded_patches": 250 * self.looks})
        return reply


@pytest.fixture
def fake() -> Iterator[Fake]:
    server, fake = grpc.server(futures.ThreadPoolExecutor(4)), Fake()
    control_pb2_grpc.add_ControlServicer_to_server(fake, server)
    worker_pb2_grpc.add_WorkerServicer_to_server(fake, server)
    fake.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield fake
    server.stop(0)


def test_one_frame(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["top", "--scheduler", fake.address, "--once", "--interval", "0.2"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    lines = out.splitlines()
    assert "5 active, 2 queued" in lines[1] and "7 completed" in lines[2] and "3 failed UNAVAILABLE" in lines[2]
    decode, prefill = lines[5:]
    assert decode.split()[:9] == ["decode-0", "decode", "open", "0.2s", "2", "1", "2/8", "########..", "48/64"]
    assert prefill.startswith("prefill-0") and prefill.endswith("(its worker does not answer)")


def test_instances_that_encode_have_lines_of_their_own(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake.media = True
    assert cli.main(["top", "--scheduler", fake.address, "--once", "--interval", "0.2"]) == 0
    *_, header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["media", "to", "encode"]
    name, waiting, rate, step, bar, pages, moved_in, moved_out, pixels = row.split()
    assert (name, waiting, bar, pages, pixels) == ("decode-0", "700", "#####.....", "20/40", "3")
    assert float(rate) > 0 and float(step) == 25.0 and (moved_in, moved_out) == ("0.00", "0.00")


def test_json_has_rates_of_what_grew(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["top", "--scheduler", fake.address, "--once", "--json", "--interval", "0.2"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["requests"] == {"queued": 2, "active": 5}
    assert 0 < shown["rates"]["submitted"] <= 1000 / 0.2 and shown["rates"]["completed"] == 0
    decode, prefill = shown["instances"]
    assert decode["rates"]["kv_bytes_received"] == pytest.approx(decode["rates"]["steps"] * 200_000)
    assert (decode["answers"], prefill["answers"]) == (True, False) and "rates" not in prefill
    assert (decode["free_pages"], decode["num_pages"], decode["state"]) == (16, 64, "open")


def test_a_scheduler_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["top", "--scheduler", "127.0.0.1:1", "--once"]) == 1
    assert "UNAVAILABLE" in capsys.readouterr().err
    assert cli.main(["top", "--once"]) == 2
