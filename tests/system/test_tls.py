"""A deployment with TLS and tokens on every leg: it serves who shows the right things, and refuses everybody else at every door."""

from __future__ import annotations

import asyncio
import http.client
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest

from triptych.proto.v1 import common_pb2, control_pb2, inference_pb2, transfer_pb2, worker_pb2
from triptych.runtime.wire.auth import bearer_metadata
from triptych.runtime.wire.tls import Tls, load_tls, open_channel
from triptych.tools.authority import Authority
from triptych.tools.certs import write_certificates
from triptych.tools.cli import main
from triptych.tools.trials.deployment import Access, Deployment, deployed

CLIENT, INSIDE = "token-of-a-client", "token-of-the-inside"
OK, REFUSED, UNAUTHENTICATED = (
    grpc.StatusCode.OK,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNAUTHENTICATED,
)


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    write_certificates(tmp_path / "certs")
    return tmp_path / "certs"


def read(certs: Path, name: str) -> Tls:
    return load_tls(certs / "ca.pem", certs / f"{name}.pem", certs / f"{name}-key.pem")


def serve_flags(certs: Path) -> list[str]:
    return [
        f"--ssl-ca-certs={certs / 'ca.pem'}",
        f"--ssl-certfile={certs / 'server.pem'}",
        f"--ssl-keyfile={certs / 'server-key.pem'}",
        f"--token={CLIENT}",
        f"--cluster-token={INSIDE}",
        "--http-port=0",
    ]


async def ends(address: str, tls: Tls | None, token: str | None, path: str, request: Any) -> grpc.StatusCode:
    """How one unary or server-streaming call ends, over a connection of its own."""
    async with open_channel(address, tls, (("grpc.use_local_subchannel_pool", 1),)) as channel:
        call = channel.unary_stream(path)(request.SerializeToString(), metadata=bearer_metadata(token), timeout=60)
        try:
            async for _ in call:
                pass
        except grpc.aio.AioRpcError as error:
            return error.code()
        return OK


def https_status(address: str, certs: Path, token: str | None, shown: str | None = "client") -> int:
    """Status of a completion over HTTPS, with a certificate of `certs` or without one. Raises what a refused connection does."""
    trust = ssl.create_default_context(cafile=str(certs / "ca.pem"))
    if shown is not None:
        trust.load_cert_chain(certs / f"{shown}.pem", certs / f"{shown}-key.pem")
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPSConnection(host, int(port), context=trust, timeout=60)
    headers = {"content-type": "application/json", **{key: value for key, value in bearer_metadata(token)}}
    try:
        connection.request("POST", "/v1/completions", b'{"prompt": [1, 2], "max_tokens": 2}', headers)
        return connection.getresponse().status
    finally:
        connection.close()


async def legs(deployment: Deployment) -> dict[str, tuple[str, str, Any, grpc.StatusCode]]:
    """A call of every service: where, what, and how it ends for somebody who is let in."""
    info = (await deployment.cluster()).instances[0].info
    nothing_staged = transfer_pb2.ReleaseRequest(
        owner=common_pb2.InstanceRef(id=info.ref.id, epoch=info.ref.epoch), key=1
    )
    service = "/triptych.v1."
    return {
        "client": (deployment.address, f"{service}Inference/GetModelInfo", inference_pb2.GetModelInfoRequest(), OK),
        "control": (deployment.scheduler, f"{service}Control/GetCluster", control_pb2.GetClusterRequest(), OK),
        "worker": (info.address, f"{service}Worker/Inspect", worker_pb2.InspectRequest(), OK),
        "transfer": (info.address, f"{service}Transfer/Release", nothing_staged, grpc.StatusCode.NOT_FOUND),
    }


@pytest.mark.limit(400)
def test_every_leg_serves_its_own_and_refuses_everybody_else(certs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server, client, stranger = read(certs, "server"), read(certs, "client"), Authority.create("a stranger")
    assert server.root is not None
    asked: Mapping[str, Tls | None] = {
        "plain text": None,
        "no certificate": Tls(server.root),
        "a stranger's certificate": Tls(server.root, *stranger.issue("client")),
        "a stranger's authority": Tls(stranger.certificate, client.certificate, client.key),
    }

    async def scenario(lines: list[str]) -> None:
        access = Access(CLIENT, INSIDE, client)
        async with deployed(serve_flags(certs), access, lines.append) as deployment:
            async with deployment.client() as good:
                result = await good.complete(token_ids=[1, 2, 3], max_tokens=20, ignore_eos=True, timeout=60)
                assert len(result.samples[0].tokens) == 20
                assert result.timings is not None and result.timings.kv_bytes > 0, "KV moved, encrypted"
            for leg, (address, path, request, expected) in (await legs(deployment)).items():
                own, other = (CLIENT, INSIDE) if leg == "client" else (INSIDE, CLIENT)
                assert await ends(address, client, own, path, request) is expected, leg
                for who, tls in asked.items():
                    assert await ends(address, tls, own, path, request) is REFUSED, f"{leg}: {who}"
                for token in (None, "wrong", other):
                    assert await ends(address, client, token, path, request) is UNAUTHENTICATED, f"{leg}: {token}"
            web = deployment.http
            assert web is not None
            assert await asyncio.to_thread(https_status, web, certs, CLIENT) == 200
            assert await asyncio.to_thread(https_status, web, certs, INSIDE) == 401
            with pytest.raises(OSError):  # TLS 1.3 tells a client only when it reads
                await asyncio.to_thread(https_status, web, certs, CLIENT, None)
            command = ["generate", "hello", "--max-tokens=3", f"--server={deployment.address}", f"--api-key={CLIENT}"]
            shown = [f"--tls-ca={certs / 'ca.pem'}", f"--tls-cert={certs / 'client.pem'}"]
            shown.append(f"--tls-key={certs / 'client-key.pem'}")
            assert await asyncio.to_thread(main, [*command, *shown]) == 0
            assert await asyncio.to_thread(main, command) == 1
            look = ["top", "--once", "--interval=0.1", f"--scheduler={deployment.scheduler}"]
            assert await asyncio.to_thread(main, [*look, f"--cluster-token={INSIDE}", *shown]) == 0
            assert await asyncio.to_thread(main, [*look, f"--cluster-token={CLIENT}", *shown]) == 1
            assert await deployment.wait_idle() == {}

    lines: list[str] = []
    asyncio.run(scenario(lines))
    said = "\n".join(lines) + "".join(capsys.readouterr())
    assert CLIENT not in said and INSIDE not in said, "a token was written to a log"


def test_the_device_transport_is_refused_with_tls(certs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--transport=device", "--model=dummy:toy", "--device=cpu", "--port=0", *serve_flags(certs)]
    assert main(["serve", *flags]) == 2
    assert "'device' is neither encrypted nor authenticated" in capsys.readouterr().err
