"""Tokens and certificates of the two planes: where they come from, what the inside takes from the door, and that no secret is ever shown."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import TransportKind
from triptych.runtime.scheduler.server import ControlServerConfig
from triptych.runtime.wire.tls import ClientCertificates, Tls
from triptych.tools.certs import write_certificates
from triptych.tools.config import ServeConfig
from triptych.tools.connection import Connection
from triptych.tools.control import ControlConnection
from triptych.tools.credentials import client_tokens, cluster_token, door_tls, inside_tls
from triptych.tools.http import http_process
from triptych.tools.settings import add_arguments, child_environment, dump, resolve
from triptych.tools.worker import transports, worker_config


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    write_certificates(folder)
    return folder


def files(certs: Path, name: str = "server", prefix: str = "ssl") -> dict[str, Any]:
    return {
        f"{prefix}_ca_certs": str(certs / "ca.pem"),
        f"{prefix}_certfile": str(certs / f"{name}.pem"),
        f"{prefix}_keyfile": str(certs / f"{name}-key.pem"),
    }


# ---- tokens


def test_without_tokens_nothing_is_asked_for() -> None:
    assert client_tokens(ServeConfig()) == () and cluster_token(ServeConfig()) is None


def test_clients_may_have_several_tokens_from_the_setting_and_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("# team a\nthree\n\nfour\n")
    config = ServeConfig(api_key="one, two", api_key_file=str(file))
    assert client_tokens(config) == ("one", "two", "three", "four")
    assert cluster_token(config) == "one", "the inside takes the first of the clients'"


def test_the_inside_may_have_a_token_of_its_own(tmp_path: Path) -> None:
    assert cluster_token(ServeConfig(api_key="outside", cluster_token="inside")) == "inside"
    file = tmp_path / "token"
    file.write_text("from-file\n")
    config = ServeConfig(cluster_token_file=str(file))
    assert cluster_token(config) == "from-file" and client_tokens(config) == ()
    with pytest.raises(ConfigError, match="2 cluster tokens"):
        cluster_token(ServeConfig(cluster_token="a", cluster_token_file=str(file)))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"# nothing\n", "holds no token"),
        (b"two words\n", "contains white space"),
        ("schlüssel".encode(), "as ASCII text"),
    ],
)
def test_a_token_file_that_cannot_work_is_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    file = tmp_path / "tokens"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=f"api_key_file .*tokens.*{complaint}"):
        client_tokens(ServeConfig(api_key_file=str(file)))
    with pytest.raises(ConfigError, match="cluster_token_file .*none.*No such file"):
        cluster_token(ServeConfig(cluster_token_file=str(tmp_path / "none")))


def test_no_secret_is_ever_shown() -> None:
    config = ServeConfig(api_key="S3CRET-OUT", cluster_token="S3CRET-IN")
    worker = worker_config(config, config.plan.instances()[:1], "w", "127.0.0.1:1", "127.0.0.1", "cpu")
    assert worker.token == "S3CRET-IN"
    control = ControlServerConfig(token="S3CRET-IN")
    connections = Connection(api_key="S3CRET-OUT"), ControlConnection(scheduler="a:1", cluster_token="S3CRET-IN")
    for value in (config, worker, control, *connections):
        assert "S3CRET" not in repr(value) and "S3CRET" not in str(vars(value).keys())
    assert "S3CRET" not in dump(config)
    environment = child_environment(config, {})
    assert environment["TRIPTYCH_API_KEY"] == "S3CRET-OUT" and environment["TRIPTYCH_CLUSTER_TOKEN"] == "S3CRET-IN"


def test_the_printed_configuration_has_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    from triptych.tools.cli import main

    assert main(["serve", "--token", "S3CRET", "--cluster-token", "S3CRET", "--dump-config", "-"]) == 0
    assert "S3CRET" not in capsys.readouterr().out


# ---- certificates


def test_without_files_everything_is_plain_text() -> None:
    assert door_tls(ServeConfig()) is None and inside_tls(ServeConfig()) is None


def test_the_inside_takes_the_doors_certificates_unless_it_has_its_own(certs: Path) -> None:
    config = ServeConfig(**files(certs))
    door = door_tls(config)
    assert door is not None and door[1] is ClientCertificates.REQUIRED and inside_tls(config) == door[0]
    own = ServeConfig(
        **files(certs, "client"), **files(certs, prefix="cluster_ssl"), cluster_ssl_server_name="triptych.internal"
    )
    inside, door = inside_tls(own), door_tls(own)
    assert inside is not None and door is not None and inside.certificate != door[0].certificate
    assert inside.server_name == "triptych.internal" and door[0].server_name is None


def test_the_door_may_ask_clients_for_no_certificate(certs: Path) -> None:
    for word in ("none", "0"):
        config = ServeConfig(
            **{**files(certs), "ssl_ca_certs": None}, **files(certs, prefix="cluster_ssl"), ssl_cert_reqs=word
        )
        door = door_tls(config)
        assert door is not None and door[1] is ClientCertificates.NONE and inside_tls(config) is not None


def test_what_is_missing_for_tls_is_named(certs: Path) -> None:
    given = files(certs)
    with pytest.raises(ConfigError, match=r"--ssl-keyfile is missing"):
        door_tls(ServeConfig(**{**given, "ssl_keyfile": None}))
    with pytest.raises(ConfigError, match=r"--ssl-ca-certs \(or --ssl-cert-reqs none\) is missing"):
        door_tls(ServeConfig(**{**given, "ssl_ca_certs": None}))
    with pytest.raises(ConfigError, match=r"--ssl-ca-certs is missing \(processes of a deployment"):
        inside_tls(ServeConfig(**{**given, "ssl_ca_certs": None}, ssl_cert_reqs="none"))


def test_the_device_transport_is_left_out_unless_it_is_named_where_anything_is_protected(certs: Path) -> None:
    assert TransportKind.DEVICE in transports(ServeConfig())
    for config in (ServeConfig(api_key="k"), ServeConfig(cluster_token="k"), ServeConfig(**files(certs))):
        assert transports(config) == (TransportKind.LOCAL, TransportKind.GRPC)
    assert transports(ServeConfig(**files(certs), transport="device")) == (TransportKind.DEVICE,)


# ---- commands


def connection(*argv: str) -> Connection:
    parser = argparse.ArgumentParser()
    add_arguments(parser, Connection)
    return resolve(Connection, parser.parse_args(argv), {})


def test_commands_take_certificates(certs: Path) -> None:
    ca, own, key = (str(certs / name) for name in ("ca.pem", "client.pem", "client-key.pem"))
    tls = connection("--tls-ca", ca, "--tls-cert", own, "--tls-key", key, "--tls-server-name", "toy").tls
    assert tls is not None and tls.root is not None and tls.key is not None and tls.server_name == "toy"
    assert connection("--tls-ca", "system").tls == Tls()
    assert connection().tls is None
    with pytest.raises(ConfigError, match="which --tls-ca FILE"):
        _ = connection("--tls-cert", own).tls


def test_commands_send_the_first_of_several_tokens() -> None:
    assert connection("--api-key", "one,two").token == "one" and connection().token is None
    assert ControlConnection(scheduler="a:1", api_key="one,two").token == "one"
    assert ControlConnection(scheduler="a:1", api_key="one", cluster_token="inside").token == "inside"


def test_the_http_server_of_serve_gets_the_doors_certificates_and_tokens_and_not_the_clusters(
    certs: Path, tmp_path: Path
) -> None:
    file = tmp_path / "tokens"
    file.write_text("filed\n")
    config = ServeConfig(**files(certs), api_key="OUT", api_key_file=str(file), cluster_token="IN", http_port=0)
    spec = http_process(config, "127.0.0.1:1", 8000, {})
    flags = dict(part.split("=", 1) for part in spec.argv if part.startswith("--") and "=" in part)
    assert "--target-tls" in spec.argv and "OUT" not in " ".join(spec.argv)
    assert flags["--ssl-certfile"] == flags["--target-certfile"] == str(certs / "server.pem")
    assert flags["--ssl-ca-certs"] == flags["--target-ca-certs"] == str(certs / "ca.pem")
    assert spec.env["TRIPTYCH_API_KEY"] == "OUT,filed" and "TRIPTYCH_CLUSTER_TOKEN" not in spec.env
    open_door = http_process(ServeConfig(**files(certs), ssl_cert_reqs="none"), "127.0.0.1:1", 8000, {})
    assert not any(part.startswith("--ssl-ca-certs") for part in open_door.argv)
