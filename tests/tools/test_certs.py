"""`triptych certs`: what it writes works, and it overwrites nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.wire.tls import load_tls
from triptych.tools.certs import FILES, write_certificates
from triptych.tools.cli import main


def test_the_files_load_and_name_the_hosts(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    assert main(["certs", str(folder), "--host", "node-1", "--host", "10.0.0.7", "--days", "2"]) == 0
    assert {path.name for path in folder.iterdir()} == set(FILES)
    for name in ("server", "client"):
        load_tls(folder / "ca.pem", folder / f"{name}.pem", folder / f"{name}-key.pem")
        assert (folder / f"{name}-key.pem").stat().st_mode & 0o077 == 0, "a key that others may read"
    names = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes()).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == ["localhost", "node-1"]
    assert [str(ip) for ip in names.value.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1", "10.0.0.7"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("precious")
    with pytest.raises(ConfigError, match="holds ca.pem already"):
        write_certificates(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["ca.pem"] and (tmp_path / "ca.pem").read_text() == "precious"


def test_no_days_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--days is 0"):
        write_certificates(tmp_path, days=0)
