"""`triptych http` on the command line: what is wrong is told before anything listens, keys are never opened by silence."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from triptych.runtime.core.errors import ConfigError
from triptych.tools import http
from triptych.tools.certs import write_certificates
from triptych.tools.config import ServeConfig
from triptych.tools.http import HttpSettings
from triptych.tools.settings import add_arguments, resolve


def settings(*flags: str, **environ: str) -> HttpSettings:
    parser = argparse.ArgumentParser()
    add_arguments(parser, HttpSettings)
    return resolve(HttpSettings, parser.parse_args(flags), {f"TRIPTYCH_{k}": v for k, v in environ.items()})


@pytest.mark.parametrize(
    ("given", "token", "keys"),
    [
        ({}, None, ()),
        ({"API_KEY": "a"}, "a", ("a",)),
        ({"API_KEY": "a, b"}, "a", ("a", "b")),
        ({"TOKEN": "t"}, "t", ("t",)),
        ({"TOKEN": "t", "API_KEY": "a,b"}, "t", ("a", "b")),
    ],
)
def test_a_secured_gateway_is_not_opened_by_silence(
    given: dict[str, str], token: str | None, keys: tuple[str, ...]
) -> None:
    server = settings(**given).server()
    assert (server.token, server.api_keys) == (token, keys)


def test_everything_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        settings("--target", "nowhere", "--port", "99999", "--ssl-certfile", "c.pem", "--target-ca-certs", "x")
    for word in ("target is 'nowhere'", "port is 99999", "ssl_certfile is set alone", "without target_tls"):
        assert word in caught.value.message
    with pytest.raises(ConfigError, match="rate"):
        settings("--rate-limit", "0").server()


def test_tls_files_are_read_at_the_start(tmp_path: Path) -> None:
    write_certificates(tmp_path)
    flags = ["--target-tls", "--target-ca-certs", str(tmp_path / "ca.pem")]
    server = settings(*flags, "--ssl-certfile", "a.pem", "--ssl-keyfile", "b.pem").server()
    assert server.target_tls is not None and server.target_tls.root is not None and server.tls is not None
    with pytest.raises(ConfigError, match="cannot be read"):
        settings("--target-tls", "--target-ca-certs", str(tmp_path / "none.pem")).server()


def test_serve_starts_it_before_its_gateway_with_the_key_in_the_environment() -> None:
    config = ServeConfig(model="dummy:toy", api_key="s3cret", request_timeout=5.0)
    spec = http.http_process(config, "127.0.0.1:9", 8000, {"PATH": "/bin", "TRIPTYCH_PORT": "1"})
    assert spec.name == "http" and "s3cret" not in " ".join(spec.argv)
    assert spec.env["TRIPTYCH_API_KEY"] == "s3cret" and "TRIPTYCH_PORT" not in spec.env
    parser = argparse.ArgumentParser()
    http.add_arguments(parser)
    parsed = parser.parse_args(spec.argv[spec.argv.index("http") + 1 :])
    chosen = resolve(HttpSettings, parsed, spec.env).server()
    assert (chosen.target, chosen.host, chosen.port, chosen.request_timeout) == ("127.0.0.1:9", config.host, 8000, 5.0)
    assert chosen.api_keys == ("s3cret",) and parsed.supervised
