"""From settings to what processes show each other: tokens and certificates of the two planes of a deployment.

The *door* is where clients call the gateway; the *inside* is every leg behind it (control, worker and transfer services). Both may have tokens and
certificates of their own; what the inside is not given, it takes from the door. On the inside both sides always show certificates.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.wire.tls import ClientCertificates, Tls, load_tls
from triptych.tools.config import ServeConfig
from triptych.tools.settings import split_secrets

CERT_REQS = {"none": ClientCertificates.NONE, "0": ClientCertificates.NONE, "required": ClientCertificates.REQUIRED, "2": ClientCertificates.REQUIRED}  # fmt: skip


def check_security(config: ServeConfig) -> None:
    """Read every file once, before anything is started. Raises ConfigError for the first thing that cannot work."""
    client_tokens(config)
    cluster_token(config)
    door_tls(config)
    if config.transport == "device" and inside_tls(config) is not None and not config.allow_insecure_device_transport:
        raise ConfigError(
            "TLS is on, but KV transport 'device' is neither encrypted nor authenticated: use --transport grpc, or, on a network that "
            "is trusted, --allow-insecure-device-transport"
        )


def client_tokens(config: ServeConfig) -> tuple[str, ...]:
    """Every token that a client may show; empty if none is asked for."""
    return (*split_secrets(config.api_key), *_from_file(config.api_key_file, "api_key_file"))


def cluster_token(config: ServeConfig) -> str | None:
    """The token that processes of the deployment show each other: their own, or the first of the clients'."""
    own = (*split_secrets(config.cluster_token), *_from_file(config.cluster_token_file, "cluster_token_file"))
    if len(own) > 1:
        raise ConfigError(f"{len(own)} cluster tokens are given; the processes of a deployment share one")
    return next(iter((*own, *client_tokens(config))), None)


def door_tls(config: ServeConfig) -> tuple[Tls, ClientCertificates] | None:
    """What the gateway shows to clients, and whether it asks for theirs; None: plain text."""
    files = (config.ssl_ca_certs, config.ssl_certfile, config.ssl_keyfile)
    if not any(files):
        return None
    asks = CERT_REQS[config.ssl_cert_reqs]
    _check_complete(
        {
            "ssl_certfile": config.ssl_certfile,
            "ssl_keyfile": config.ssl_keyfile,
            "ssl_ca_certs (or --ssl-cert-reqs none)": config.ssl_ca_certs or asks is ClientCertificates.NONE,
        }
    )
    ca, certificate, key = map(_path, files)
    return load_tls(ca, certificate, key), asks


def inside_tls(config: ServeConfig) -> Tls | None:
    """What the processes show each other; None: plain text."""
    own = {
        "cluster_ssl_ca_certs": config.cluster_ssl_ca_certs,
        "cluster_ssl_certfile": config.cluster_ssl_certfile,
        "cluster_ssl_keyfile": config.cluster_ssl_keyfile,
    }
    door = {
        "ssl_ca_certs": config.ssl_ca_certs,
        "ssl_certfile": config.ssl_certfile,
        "ssl_keyfile": config.ssl_keyfile,
    }
    files = own if any(own.values()) else door
    if not any(files.values()):
        return None
    _check_complete(
        files, " (processes of a deployment show each other certificates: give these, or --cluster-ssl-...)"
    )
    ca, certificate, key = map(_path, files.values())
    return load_tls(ca, certificate, key, config.cluster_ssl_server_name)


def _check_complete(files: Mapping[str, object], why: str = "") -> None:
    missing = [f"--{name.replace('_', '-')}" for name, given in files.items() if not given]
    if missing:
        raise ConfigError(f"TLS is asked for, but {', '.join(missing)} is missing{why}")


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _from_file(path: str | None, setting: str) -> tuple[str, ...]:
    """One token a line; blank lines and lines that begin with # are left out."""
    if path is None:
        return ()
    try:
        lines = Path(path).expanduser().read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{setting} {path} cannot be read as ASCII text: {error}") from error
    tokens = tuple(line.strip() for line in lines if line.strip() and not line.strip().startswith("#"))
    if not tokens:
        raise ConfigError(f"{setting} {path} holds no token; expected one a line")
    if wrong := [number for number, token in enumerate(tokens, 1) if len(token.split()) != 1]:
        raise ConfigError(f"{setting} {path}: token {wrong[0]} contains white space")
    return tokens
