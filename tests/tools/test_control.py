"""`triptych drain` and `triptych switch-role` against a scheduler's Control service that notes what it is asked."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest

from triptych.proto.v1 import control_pb2, control_pb2_grpc
from triptych.tools.cli import main


class TinyControl(control_pb2_grpc.ControlServicer):
    """Knows decode-0 and nothing else."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def Drain(self, request: Any, context: Any) -> control_pb2.Drained:
        self.asked.append(request)
        if request.instance != "decode-0":
            context.abort(grpc.StatusCode.NOT_FOUND, f"no instance {request.instance!r}; there is decode-0")
        return control_pb2.Drained(seconds=1.25)

    def SwitchRole(self, request: Any, context: Any) -> control_pb2.Drained:
        self.asked.append(request)
        if not request.force:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "decode-0 is the last one that can decode")
        return control_pb2.Drained(seconds=0.5)


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> Iterator[TinyControl]:
    service = TinyControl()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    control_pb2_grpc.add_ControlServicer_to_server(service, server)
    monkeypatch.setenv("TRIPTYCH_SCHEDULER", f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    server.start()
    yield service
    server.stop(0).wait()


def test_drain_says_how_long_it_took_and_a_refusal_is_an_error(control: TinyControl, capsys):
    assert main(["drain", "decode-0"]) == 0
    assert capsys.readouterr().out == "decode-0 left after 1.25 s\n"
    assert main(["drain", "decode-7", "--force"]) == 1
    assert "NOT_FOUND: no instance 'decode-7'" in capsys.readouterr().err
    assert [(r.instance, r.force) for r in control.asked] == [("decode-0", False), ("decode-7", True)]


def test_switch_role_names_all_roles_that_follow(control: TinyControl, capsys):
    assert main(["switch-role", "decode-0", "prefill,decode"]) == 1
    assert "FAILED_PRECONDITION: decode-0 is the last one" in capsys.readouterr().err
    assert main(["switch-role", "decode-0", "prefill,decode", "--force"]) == 0
    assert capsys.readouterr().out == "decode-0 does decode, prefill after 0.50 s\n"
    assert list(control.asked[-1].roles) == ["decode", "prefill"]


def test_what_is_wrong_with_the_call_is_said_before_anything_is_asked(control: TinyControl, capsys):
    assert main(["switch-role", "decode-0", "sampling"]) == 2
    assert "no role 'sampling'; expected decode" in capsys.readouterr().err
    assert main(["drain", "decode-0", "--scheduler", "here"]) == 2
    assert "expected host:port" in capsys.readouterr().err
    assert not control.asked


@pytest.mark.parametrize("command", [("drain", "decode-0"), ("switch-role", "decode-0", "prefill"), ("top", "--once")])
def test_a_door_that_is_no_schedulers_is_named(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    server = grpc.server(futures.ThreadPoolExecutor(1))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        assert main([*command, "--scheduler", address]) == 1
    finally:
        server.stop(None).wait()
    assert f"{address} does not answer as a scheduler" in capsys.readouterr().err
