"""Who gets in, how often and how much; and that nobody is kept in: a client that goes away is cancelled upstream within a token."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest

from tests.runtime.gateway.http.fake_gateway import World
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.gateway.http import app
from triptych.runtime.gateway.http.config import TlsFiles
from triptych.runtime.gateway.http.errors import HttpError
from triptych.runtime.gateway.http.fields import parse_json
from triptych.runtime.gateway.http.limits import Bodies, Keys
from triptych.runtime.wire.rate import Rate
from triptych.tools.certs import write_certificates

TEXT = {"model": "toy", "prompt": "ab"}
PATIENCE = 60.0  # seconds until a wait counts as a hang, on any machine
LONG = {"stream": True, "n": 128}  # 128 answers of four tokens, one after another


def wait_for(condition: Any, limit: float = PATIENCE) -> None:
    until = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_only_the_right_key_gets_in(world: World) -> None:
    with (
        world.http(api_keys=("s3cret", "other"), token="upstream") as url,
        httpx2.Client(base_url=url, timeout=PATIENCE) as client,
    ):
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "s3cret"},
            {"authorization": "Basic s3cret"},
        ):
            response = client.post("/v1/completions", json=TEXT, headers=headers)
            assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["code"] == "invalid_api_key"
        assert world.gateway.requests == []
        for key in ("s3cret", "other"):
            assert (
                client.post("/v1/completions", json=TEXT, headers={"authorization": f"Bearer {key}"}).status_code == 200
            )
        assert world.gateway.metadata[-1]["authorization"] == "Bearer upstream"
        assert [client.get(path).status_code for path in ("/health", "/live", "/metrics", "/version")] == [200] * 4
        assert client.get("/v1/models").status_code == 401


def test_two_authorization_headers_are_none() -> None:
    with pytest.raises(HttpError):
        Keys(["a"]).check([b"Bearer a", b"Bearer a"])


def test_one_clients_rate_is_not_anothers(world: World) -> None:
    with (
        world.http(api_keys=("a", "b"), rate=Rate(0.01, 1)) as url,
        httpx2.Client(base_url=url, timeout=PATIENCE) as client,
    ):
        statuses = [
            client.post("/v1/completions", json=TEXT, headers={"authorization": f"Bearer {key}"})
            for key in ("a", "a", "b")
        ]
        assert [s.status_code for s in statuses] == [200, 429, 200]
        assert (
            1 < int(statuses[1].headers["retry-after"]) <= 100
            and statuses[1].json()["error"]["type"] == "rate_limit_error"
        )


def test_bodies_have_a_bound(world: World) -> None:
    with world.http(max_body_bytes=1000) as url, httpx2.Client(base_url=url, timeout=PATIENCE) as client:
        assert client.post("/v1/completions", json=TEXT | {"prompt": "x" * 2000}).status_code == 413

        def endless():
            for _ in range(100):
                yield b" " * 100

        headers = {"content-type": "application/json"}
        assert client.post("/v1/completions", content=endless(), headers=headers).status_code == 413
        assert client.post("/v1/completions", json=TEXT).status_code == 200


def test_bodies_of_all_requests_together_have_a_bound(world: World) -> None:
    with world.http(max_bodies_bytes=3000) as url, httpx2.Client(base_url=url, timeout=PATIENCE) as client:
        world.gateway.delay = 0.1
        large = TEXT | {"user": "u" * 2000}
        with client.stream("POST", "/v1/completions", json=large | LONG) as running:
            assert running.status_code == 200
            refused = client.post("/v1/completions", json=large)
            assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
            assert "of at most 3000 bytes" in refused.json()["error"]["message"]

            def parts():
                for _ in range(20):
                    yield b" " * 100

            headers = {"content-type": "application/json"}
            assert client.post("/v1/completions", content=parts(), headers=headers).status_code == 429
            assert client.post("/v1/completions", json=TEXT).status_code == 200, "a small one fits"
        world.gateway.delay = 0.0
        wait_for(lambda: client.post("/v1/completions", json=large).status_code == 200)


def test_a_length_that_is_only_announced_takes_nothing() -> None:
    bodies = Bodies(100)
    with bodies.room() as one, bodies.room() as other:
        one.expect(90)
        other.take(60)
        with pytest.raises(HttpError):
            one.expect(90)
        one.take(40)
        with pytest.raises(HttpError):
            one.take(1)
        assert bodies.held == 100
    assert bodies.held == 0


def test_a_large_body_is_parsed_beside_the_loop(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []

    def watched(data: bytes) -> dict[str, Any]:
        threads.append(threading.current_thread().name)
        return parse_json(data)

    monkeypatch.setattr(app, "parse_json", watched)
    with world.http() as url, httpx2.Client(base_url=url, timeout=PATIENCE) as client:
        for size in (10, 2 * app.LARGE):
            assert client.post("/v1/completions", json=TEXT | {"user": "u" * size}).status_code == 200
        assert client.post("/v1/completions", content=b"[" * (2 * app.LARGE)).status_code == 400
    assert threads[0] == "world" and "world" not in threads[1:] and len(threads) == 3


def test_a_body_that_does_not_come_ends_in_time(world: World) -> None:
    with world.http(body_timeout=0.2) as url:
        host, port = url.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
        connection.putrequest("POST", "/v1/completions")
        connection.putheader("content-length", "100")
        connection.endheaders()
        response = connection.getresponse()
        assert response.status == 408 and json.loads(response.read())["error"]["code"] == "request_timeout"
        connection.close()


def test_requests_in_flight_have_a_bound(world: World) -> None:
    world.gateway.delay = 0.05
    with world.http(max_in_flight=1) as url, httpx2.Client(base_url=url, timeout=PATIENCE) as client:
        with client.stream("POST", "/v1/completions", json=TEXT | LONG) as stream:
            lines = stream.iter_lines()  # closes the connection once it is forgotten
            next(lines)
            refused = client.post("/v1/completions", json=TEXT)
            assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        wait_for(lambda: world.gateway.cancelled)
        wait_for(lambda: client.post("/v1/completions", json=TEXT).status_code == 200)


def test_a_request_that_takes_too_long_is_a_timeout(world: World) -> None:
    world.gateway.delay = 60.0
    with world.http(request_timeout=1.0) as url, httpx2.Client(base_url=url, timeout=PATIENCE) as client:
        response = client.post("/v1/completions", json=TEXT)
        assert response.status_code == 504 and response.json()["error"]["type"] == "timeout_error"
        assert world.gateway.requests[0].timeout == pytest.approx(1.0)
    wait_for(lambda: world.gateway.cancelled)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_is_cancelled_within_a_token(world: World, url: str, stream: bool) -> None:
    world.gateway.delay = 0.1
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps(TEXT | {"stream": stream, "prompt": "x" * 60, "max_tokens": 60, "n": 4}).encode()
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        wait_for(lambda: any(count >= 2 for count in world.gateway.sent.values()))
        world.gateway.delay = 2 * PATIENCE  # one token may be under way; the one after it comes too late to be of help
        seen = max(world.gateway.sent.values())
    wait_for(lambda: world.gateway.cancelled)
    assert max(world.gateway.cancelled.values()) <= seen + 1


def test_a_client_that_never_reads_does_not_stay(world: World) -> None:
    with world.http(request_timeout=2.0) as url:
        host, port = url.removeprefix("http://").split(":")
        world.gateway.delay = 0.5
        with socket.create_connection((host, int(port))) as connection:
            body = json.dumps(TEXT | {"stream": True, "prompt": ["x" * 100] * 8, "max_tokens": 100}).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            # All eight, unless the machine is so busy that some had not begun by then.
            wait_for(lambda: 0 < len(world.gateway.requests) == len(world.gateway.cancelled))


def test_ids_are_the_clients_or_new(world: World, url: str) -> None:
    with httpx2.Client(base_url=url, timeout=PATIENCE) as client:
        assert client.get("/live", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
        assert client.get("/live", headers=[(b"x-request-id", b"\xe9")]).headers["x-request-id"].startswith("req-")
        assert client.get("/live", headers={"x-request-id": "x" * 500}).headers["x-request-id"].startswith("req-")


def test_the_callers_trace_goes_on_to_the_gateway(http: httpx2.Client, world: World) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for given in (trace, "nonsense"):
        http.post("/v1/completions", json=TEXT, headers={"traceparent": given})
    assert [metadata.get("traceparent") for metadata in world.gateway.metadata] == [trace, None]


def test_what_runs_at_shutdown_gets_time_and_then_an_error(world: World) -> None:
    world.gateway.delay = 0.5
    with httpx2.Client(timeout=PATIENCE) as client:
        with world.http(shutdown_timeout=0.3) as url:
            answer = client.stream("POST", f"{url}/v1/completions", json=TEXT | LONG)
            stream = answer.__enter__()
            lines = stream.iter_lines()
            next(lines)
        rest = [line for line in lines if line]
        assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "service_unavailable"
        answer.__exit__(None, None, None)
    wait_for(lambda: world.gateway.cancelled)


def test_probes(world: World) -> None:
    with (
        world.http(ready_ttl=1000.0, ready_timeout=PATIENCE) as url,
        httpx2.Client(base_url=url, timeout=PATIENCE) as client,
    ):
        assert client.get("/ready").json() == {"status": "ok"}
        assert client.get("/readyz").status_code == client.get("/healthz").status_code == 200
        (probe,) = world.gateway.requests
        assert probe.sampling.max_tokens == 1, "one request answers both"
    with (
        world.http(ready_ttl=0.2, ready_timeout=PATIENCE) as url,
        httpx2.Client(base_url=url, timeout=PATIENCE) as client,
    ):
        assert client.get("/ready").status_code == 200
        world.gateway.fail_after = (0, grpc.StatusCode.UNAVAILABLE, "no instance is left", None)
        wait_for(lambda: client.get("/ready").status_code == 503)
        reasons = {client.get("/ready").json()["reason"] for _ in range(2)}
        assert reasons == {"UNAVAILABLE: no instance is left"}
        world.healthy(False)
        assert client.get("/health").status_code == 503
        assert client.get("/live").status_code == 200


def test_a_served_request_is_as_good_as_a_probe(world: World) -> None:
    with world.http(ready_ttl=1000.0) as url, httpx2.Client(base_url=url, timeout=PATIENCE) as client:
        assert client.post("/v1/completions", json=TEXT).status_code == 200
        assert client.get("/ready").status_code == 200
        assert len(world.gateway.requests) == 1


def test_a_gateway_that_is_not_there_is_unavailable() -> None:
    with (
        World() as world,
        world.http(target="127.0.0.1:1", ready_timeout=1.0) as url,
        httpx2.Client(base_url=url, timeout=PATIENCE) as client,
    ):
        for path in ("/health", "/ready"):
            assert client.get(path).status_code == 503
        for response in (client.get("/v1/models"), client.post("/v1/completions", json=TEXT)):
            assert response.status_code == 503 and response.headers["retry-after"] == "1"
        assert client.get("/live").status_code == 200


def test_https_and_client_certificates(world: World, tmp_path: Path) -> None:
    write_certificates(tmp_path)
    files = TlsFiles(tmp_path / "server.pem", tmp_path / "server-key.pem")
    trusting = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    with world.http(tls=files) as url, httpx2.Client(base_url=url, verify=trusting, timeout=PATIENCE) as client:
        assert url.startswith("https://")
        assert client.post("/v1/completions", json=TEXT).status_code == 200
    mutual = TlsFiles(files.certificate, files.key, tmp_path / "ca.pem")
    with world.http(tls=mutual) as url:
        with (
            httpx2.Client(base_url=url, verify=trusting, timeout=PATIENCE) as client,
            pytest.raises(httpx2.TransportError),
        ):
            client.get("/live")
        trusting.load_cert_chain(tmp_path / "client.pem", tmp_path / "client-key.pem")
        with httpx2.Client(base_url=url, verify=trusting, timeout=PATIENCE) as client:
            assert client.get("/live").status_code == 200


def test_wrong_files_and_taken_ports_are_told_at_the_start(world: World, url: str, tmp_path: Path) -> None:
    write_certificates(tmp_path)
    mixed = TlsFiles(tmp_path / "server.pem", tmp_path / "client-key.pem")
    with pytest.raises(ConfigError, match="does not belong"), world.http(tls=mixed):
        pass
    with pytest.raises(ConfigError, match="cannot listen"), world.http(port=int(url.rsplit(":", 1)[1])):
        pass


def test_metrics_count_routes_and_requests(world: World) -> None:
    with world.http() as url, httpx2.Client(base_url=url, timeout=PATIENCE) as client:
        client.post("/v1/completions", json=TEXT)
        client.post("/v1/completions", json=TEXT | {"max_tokens": "x"})
        client.get("/v1/models")
        client.get("/%00/random/path")
        text = client.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    answers = 'triptych_http_requests_total{method="%s",model_name="toy",route="%s",status="%s"}'
    assert lines[answers % ("POST", "/v1/completions", 200)] == "1.0"
    assert lines[answers % ("POST", "/v1/completions", 400)] == "1.0"
    assert lines[answers % ("GET", "other", 404)] == "1.0"
    for prefix in ("triptych_", "vllm:"):
        assert lines[f'{prefix}time_to_first_token_seconds_count{{model_name="toy"}}'] == "1.0"
        assert lines[f'{prefix}prompt_tokens_total{{model_name="toy"}}'] == "2.0"
        assert lines[f'{prefix}request_success_total{{finished_reason="stop",model_name="toy"}}'] == "1.0"
        assert lines[f'{prefix}request_queue_time_seconds_sum{{model_name="toy"}}'] == "0.5"
        labels = '{instance="decode-0",model_name="toy",role="decode"}'
        assert [lines[f"{prefix}{name}{labels}"] for name in ("num_requests_running", "num_requests_waiting")] == [
            "2.0",
            "3.0",
        ]
        assert lines[f"{prefix}kv_cache_usage_perc{labels}"] == "0.75"
    assert lines['triptych_requests_open{model_name="toy"}'] == "0.0"
    assert "cmpl-" not in text and "_created" not in text
