"""Certificates are checked when they are read; between two peers both sides must show what the other believes."""

from __future__ import annotations

import asyncio
import datetime
from pathlib import Path

import grpc
import pytest

from triptych.runtime.wire.listening import listen
from triptych.runtime.wire.tls import ClientCertificates, Tls, TlsError, load_tls, open_channel
from triptych.tools.authority import Authority

TODAY = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create()


def stored(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def stored_pair(folder: Path, pair: tuple[bytes, bytes], name: str = "own") -> tuple[Path, Path]:
    return stored(folder, f"{name}.pem", pair[0]), stored(folder, f"{name}-key.pem", pair[1])


def test_good_files_are_read_and_the_key_is_never_shown(authority: Authority, tmp_path: Path) -> None:
    ca = stored(tmp_path, "ca.pem", authority.certificate)
    for hosts in (("localhost",), ()):  # for servers, for clients
        pair = authority.issue("somebody", hosts=hosts)
        tls = load_tls(ca, *stored_pair(tmp_path, pair))
        assert tls == Tls(authority.certificate, *pair)
        assert "PRIVATE" not in repr(tls)


def test_a_missing_or_unreadable_file_is_named(authority: Authority, tmp_path: Path) -> None:
    certificate, key = stored_pair(tmp_path, authority.issue("x", hosts=("localhost",)))
    with pytest.raises(TlsError, match=r"CA file .*none.pem cannot be read: No such file"):
        load_tls(tmp_path / "none.pem", certificate, key)
    with pytest.raises(TlsError, match=r"key .* cannot be read: Is a directory"):
        load_tls(None, certificate, tmp_path)


def test_files_that_hold_something_else_are_named(authority: Authority, tmp_path: Path) -> None:
    certificate, key = stored_pair(tmp_path, authority.issue("x", hosts=("localhost",)))
    rubbish = stored(tmp_path, "rubbish.pem", b"\xff not a certificate")
    with pytest.raises(TlsError, match=r"CA file .*rubbish.pem holds no certificate in PEM form"):
        load_tls(rubbish)
    with pytest.raises(TlsError, match=r"CA file .*own.pem holds no certificate of an authority"):
        load_tls(certificate)
    with pytest.raises(TlsError, match=r"certificate .*rubbish.pem is not in PEM form"):
        load_tls(None, rubbish, key)
    with pytest.raises(TlsError, match=r"key .*rubbish.pem is not in PEM form"):
        load_tls(None, certificate, rubbish)
    with pytest.raises(TlsError, match="one of them is missing"):
        load_tls(None, certificate)


def test_a_key_of_another_certificate_is_refused(authority: Authority, tmp_path: Path) -> None:
    certificate, _ = stored_pair(tmp_path, authority.issue("a", hosts=("localhost",)), "a")
    _, key = stored_pair(tmp_path, authority.issue("b", hosts=("localhost",)), "b")
    with pytest.raises(TlsError, match=r"key .*b-key.pem does not belong to certificate .*a.pem"):
        load_tls(None, certificate, key)


@pytest.mark.parametrize("hosts", [("localhost",), ()], ids=["server", "client"])
def test_dates_are_checked(authority: Authority, tmp_path: Path, hosts: tuple[str, ...]) -> None:
    old = authority.issue("old", hosts=hosts, days=1, starts=TODAY - 3 * DAY)
    with pytest.raises(TlsError, match=r"old.pem: certificate has expired"):
        load_tls(None, *stored_pair(tmp_path, old, "old"))
    early = authority.issue("early", hosts=hosts, starts=TODAY + DAY)
    with pytest.raises(TlsError, match=r"early.pem: certificate is not yet valid"):
        load_tls(None, *stored_pair(tmp_path, early, "early"))


def test_an_authority_that_has_expired_is_refused(tmp_path: Path) -> None:
    gone = Authority.create(days=1, starts=TODAY - 3 * DAY)
    with pytest.raises(TlsError, match="every authority in it has expired"):
        load_tls(stored(tmp_path, "ca.pem", gone.certificate))


def test_a_server_needs_a_certificate_and_authorities_for_those_of_its_clients(authority: Authority) -> None:
    pair = authority.issue("x", hosts=("localhost",))
    with pytest.raises(TlsError, match="needs a certificate and a key"):
        Tls(authority.certificate).server_credentials()
    with pytest.raises(TlsError, match="no authority for them"):
        Tls(None, *pair).server_credentials()
    assert Tls(None, *pair).server_credentials(ClientCertificates.NONE) is not None


async def _echo(request: bytes, context: object) -> bytes:
    return request


HANDLERS = grpc.method_handlers_generic_handler("toy.Echo", {"Unary": grpc.unary_unary_rpc_method_handler(_echo)})


async def _answers(server: Tls | None, client: Tls | None, asks: ClientCertificates, name: str = "127.0.0.1") -> bool:
    """Whether `client` gets through to a server with `server`'s certificates."""
    listening = grpc.aio.server()
    listening.add_generic_rpc_handlers((HANDLERS,))
    port = listen(listening, "127.0.0.1", 0, None if server is None else server.server_credentials(asks))
    await listening.start()
    options = (("grpc.use_local_subchannel_pool", 1),)
    try:
        async with open_channel(f"{name}:{port}", client, options) as channel:
            return await channel.unary_unary("/toy.Echo/Unary")(b"a", timeout=30) == b"a"
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        return False
    finally:
        await listening.stop(None)


def test_only_peers_with_the_same_authority_understand_each_other(authority: Authority) -> None:
    root, pair = authority.certificate, authority.issue("server", hosts=("localhost", "127.0.0.1"))
    elsewhere = Authority.create("somebody else's authority")
    server, required = Tls(root, *pair), ClientCertificates.REQUIRED
    good = Tls(root, *authority.issue("client"))

    async def scenario() -> None:
        assert await _answers(server, good, required)
        assert await _answers(server, server, required)
        assert not await _answers(server, None, required), "plain text"
        assert not await _answers(None, good, required), "a server in plain text"
        assert not await _answers(server, Tls(root), required), "no certificate"
        assert not await _answers(server, Tls(root, *elsewhere.issue("client")), required), "another authority's"
        assert not await _answers(server, Tls(elsewhere.certificate, good.certificate, good.key), required)
        assert not await _answers(good, good, required), "a client's certificate in a server"

    asyncio.run(scenario())


def test_a_door_may_be_open_to_clients_without_certificates(authority: Authority) -> None:
    server = Tls(authority.certificate, *authority.issue("server", hosts=("localhost", "127.0.0.1")))
    assert asyncio.run(_answers(server, Tls(authority.certificate), ClientCertificates.NONE))
    assert not asyncio.run(_answers(server, None, ClientCertificates.NONE))


def test_a_certificate_must_carry_the_name_that_is_called_unless_another_is_expected(authority: Authority) -> None:
    root, pair = authority.certificate, authority.issue("server", hosts=("triptych.internal",))
    by_name = Tls(root, *pair, server_name="triptych.internal")
    assert not asyncio.run(_answers(by_name, Tls(root, *pair), ClientCertificates.REQUIRED))
    assert asyncio.run(_answers(by_name, by_name, ClientCertificates.REQUIRED))
