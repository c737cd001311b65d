"""TLS for every gRPC leg. One `Tls` value is what a process shows and whom it believes, as a server and as a client.

Inside a deployment (control, worker and transfer services) both sides always show certificates of the same authority; the client-facing
door may leave that to the bearer token. Files are read once, at start, and everything that would only show as a refused handshake
later is refused here by name: a file that is missing, a key that does not belong to the certificate, a certificate that has expired.

A peer's certificate must name the address by which it is called. Where addresses change (pods, tests), `server_name` is the one name that is
expected in every peer's certificate instead.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import grpc

from triptych.runtime.core.errors import ConfigError

Options = Sequence[tuple[str, Any]]

WRONG_PURPOSE = 26  # X509_V_ERR_INVALID_PURPOSE of OpenSSL


class TlsError(ConfigError):
    """A certificate or key cannot be used; the message names the file and what is wrong with it."""


class ClientCertificates(StrEnum):
    """Whether a server asks its clients for certificates. gRPC verifies what it asks for, so there is nothing in between."""

    NONE = "none"
    REQUIRED = "required"


@dataclass(frozen=True)
class Tls:
    """Certificates in PEM. `load_tls` reads and checks them.

    Attributes:
        root: authorities whose certificates are believed; None: the system's (as a client).
        certificate, key: what this process shows; None: nothing (as a client).
        server_name: name that peers' certificates must carry; None: the address that is called.
    """

    root: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise TlsError("a certificate and its key go together; one of them is missing")

    def credentials(self) -> grpc.ChannelCredentials:
        """For channels to peers."""
        return grpc.ssl_channel_credentials(self.root, self.key, self.certificate)

    def channel_options(self) -> tuple[tuple[str, str], ...]:
        """What a channel needs beside the credentials."""
        return () if self.server_name is None else (("grpc.ssl_target_name_override", self.server_name),)

    def server_credentials(self, clients: ClientCertificates = ClientCertificates.REQUIRED) -> grpc.ServerCredentials:
        """For a listening port. Raises TlsError without a certificate of its own, or without authorities for the clients' ones."""
        if self.certificate is None or self.key is None:
            raise TlsError("a server needs a certificate and a key")
        if clients is ClientCertificates.NONE:
            return grpc.ssl_server_credentials([(self.key, self.certificate)])
        if self.root is None:
            raise TlsError("clients must show certificates, but no authority for them is given")
        return grpc.ssl_server_credentials([(self.key, self.certificate)], self.root, require_client_auth=True)


def load_tls(
    ca: Path | None = None, certificate: Path | None = None, key: Path | None = None, server_name: str | None = None
) -> Tls:
    """Read and check PEM files. Raises TlsError for the first one that cannot work."""
    tls = Tls(
        None if ca is None else _read(ca, "CA file"),
        None if certificate is None else _read(certificate, "certificate"),
        None if key is None else _read(key, "key"),
        server_name,
    )
    if ca is not None and tls.root is not None:
        _check_authorities(ca, tls.root)
    if certificate is not None and key is not None and tls.certificate is not None:
        _check_identity(certificate, key, tls.certificate)
    return tls


def open_channel(
    address: str, tls: Tls | None, options: Options = (), interceptors: Sequence[Any] = ()
) -> grpc.aio.Channel:
    """An asyncio channel to `address`, in plain text without `tls`."""
    if tls is None:
        return grpc.aio.insecure_channel(address, options=tuple(options), interceptors=list(interceptors))
    return grpc.aio.secure_channel(
        address, tls.credentials(), options=(*options, *tls.channel_options()), interceptors=list(interceptors)
    )


# ---- checks -------------------------------------------------------------------------------------------------------------------------


def _read(path: Path, what: str) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except OSError as error:
        raise TlsError(f"{what} {path} cannot be read: {error.strerror or error}") from error


def _check_authorities(path: Path, pem: bytes) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=pem.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise TlsError(f"CA file {path} holds no certificate in PEM form") from error
    ends = [str(found["notAfter"]) for found in context.get_ca_certs()]
    if not ends:
        raise TlsError(f"CA file {path} holds no certificate of an authority")
    if max(map(ssl.cert_time_to_seconds, ends)) < time.time():
        raise TlsError(f"CA file {path}: every authority in it has expired, the last on {ends[-1]}")


def _check_identity(certificate: Path, key: Path, pem: bytes) -> None:
    def context(protocol: int) -> ssl.SSLContext:
        made = ssl.SSLContext(protocol)
        made.load_cert_chain(certificate.expanduser(), key.expanduser(), password=_no_password)
        return made

    try:
        contexts = context(ssl.PROTOCOL_TLS_SERVER), context(ssl.PROTOCOL_TLS_CLIENT)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsError(f"key {key} does not belong to certificate {certificate}") from error
        what = f"key {key}" if _is_certificate(pem) else f"certificate {certificate}"
        raise TlsError(f"{what} is not in PEM form") from error
    problem = _refusal(*contexts, pem)
    if problem is not None:
        raise TlsError(f"certificate {certificate}: {problem}")


def _no_password() -> bytes:
    raise TlsError("the key is encrypted; a process needs one that it can read without a pass phrase")


def _is_certificate(pem: bytes) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode("ascii"))
    except (ssl.SSLError, ValueError):
        return False
    return True


def _refusal(server: ssl.SSLContext, client: ssl.SSLContext, pem: bytes) -> str | None:
    """Why a peer that trusts exactly this certificate would refuse it (its dates, say); None if it would not.

    Server and client meet in memory, because that is how the standard library checks dates. A certificate may be for servers only or for clients only, so
    the one who asks is first the client, then the server.
    """
    client.check_hostname = False
    problem = None
    for asks, other in ((client, server), (server, client)):
        other.verify_mode = ssl.CERT_NONE
        asks.verify_mode = ssl.CERT_REQUIRED
        asks.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN  # the certificate is trusted, whoever signed it
        asks.load_verify_locations(cadata=pem.decode("ascii"))
        try:
            _shake_hands(server, client)
        except ssl.SSLCertVerificationError as error:
            problem = error.verify_message
            if error.verify_code != WRONG_PURPOSE:
                return problem
        else:
            return None
    return problem


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    upward, downward = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = (client.wrap_bio(downward, upward), server.wrap_bio(upward, downward, server_side=True))
    for _ in range(3):  # flights; TLS 1.3 needs two
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
