"""A coordinator's folder and its certificates: what is made, and what is refused by name."""

from __future__ import annotations

import shutil
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from hushtune.common.deployment import Invitation
from hushtune.common.errors import (
    CertificateError,
    ConfigError,
    DeploymentError,
    KeyFileError,
    OutputExistsError,
)
from hushtune.server.deployment.bundle import app_files, build_bundle, write_app
from hushtune.server.deployment.certificates import (
    Certificates,
    check_certificates,
    expiry_warning,
    make_authority,
    make_certificate,
    server_context,
)
from hushtune.server.deployment.home import Home, init_home, open_home, renew

NOW = datetime.now(UTC)


def made(folder: Path, address: str = "fl.example.org:9092") -> Home:
    return init_home(folder, name="études", address=address, now=NOW)


def test_a_new_folder_has_all_that_is_needed_and_keeps_its_secrets(tmp_path: Path) -> None:
    home = made(tmp_path / "c")
    assert open_home(home.folder) == home
    for name in ("keys/signing.key", "tls/ca.key", "tls/server.key"):
        assert stat.S_IMODE((home.folder / name).stat().st_mode) == 0o600, name
    for name in ("keys", "tls", "sites", "runs", "flower"):
        assert stat.S_IMODE((home.folder / name).stat().st_mode) == 0o700, name
    invitation = Invitation.read(home.invitation)
    assert (invitation.name, invitation.address) == ("études", "fl.example.org:9092")
    assert invitation.certificate == home.certificates.authority.read_text()
    assert "PRIVATE" not in home.invitation.read_text(encoding="utf-8")
    assert home.listen == ("0.0.0.0", 9092)
    assert home.settings.local_port == 9093


def test_a_folder_that_is_not_empty_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError):
        made(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("address", "listen"),
    [
        ("localhost:9092", ("127.0.0.1", 9092)),
        ("127.0.0.1:9092", ("127.0.0.1", 9092)),
        ("10.0.0.7:65535", ("0.0.0.0", 65535)),
        ("[2001:db8::7]:9092", ("::", 9092)),
    ],
)
def test_where_it_listens_follows_from_the_address(
    tmp_path: Path, address: str, listen: tuple[str, int]
) -> None:
    home = made(tmp_path / "c", address)
    assert home.listen == listen
    assert home.settings.local_port != listen[1]


@pytest.mark.parametrize("address", ["fl.example.org", "fl.example.org:0", ":9092", "a..b:9092"])
def test_an_address_that_is_none_is_refused_and_nothing_is_made(
    tmp_path: Path, address: str
) -> None:
    with pytest.raises((ConfigError, CertificateError)):
        made(tmp_path / "c", address)
    assert not (tmp_path / "c" / "server.toml").exists()


def test_another_folder_is_no_coordinators(tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="no coordinator's"):
        open_home(tmp_path)
    (tmp_path / "server.toml").write_text('name = "x"\naddress = "a:1"\nlocal_port = 2\nprot = 1\n')
    with pytest.raises(ConfigError, match="prot"):
        open_home(tmp_path)


def test_a_certificate_names_the_host_and_this_machine(tmp_path: Path) -> None:
    home = made(tmp_path / "c")
    certificate = x509.load_pem_x509_certificate(home.certificates.server.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org", "localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert 364 <= (certificate.not_valid_after_utc - NOW).days <= 365
    until = check_certificates(home.certificates, host="localhost", now=NOW)
    assert until == certificate.not_valid_after_utc
    assert server_context(home.certificates).minimum_version.name == "TLSv1_2"


def test_a_renewed_certificate_is_of_the_same_authority(tmp_path: Path) -> None:
    home = made(tmp_path / "c")
    before = home.certificates.server.read_bytes(), home.certificates.authority.read_bytes()
    until = renew(home, now=NOW + timedelta(minutes=5))
    assert home.certificates.server.read_bytes() != before[0]
    assert home.certificates.authority.read_bytes() == before[1]
    assert until > NOW + timedelta(days=365)


def test_certificates_are_refused_with_the_reason(tmp_path: Path) -> None:
    home, other = made(tmp_path / "c"), made(tmp_path / "d")
    right, wrong = home.certificates, other.certificates

    def why(paths: Certificates, *, host: str = "fl.example.org", days: float = 0) -> str:
        with pytest.raises((CertificateError, KeyFileError)) as caught:
            check_certificates(paths, host=host, now=NOW + timedelta(days=days))
        return caught.value.message

    assert "server's certificate has expired" in why(right, days=366)
    assert "not valid yet" in why(right, days=-1)
    assert "for other hosts" in why(right, host="other.example.org")
    another_key = Certificates(right.authority, right.server, wrong.key)
    assert "key is of another certificate" in why(another_key)
    another_authority = Certificates(wrong.authority, right.server, right.key)
    assert "not signed by the authority" in why(another_authority)
    assert "cannot be read" in why(Certificates(right.authority, right.key, right.key))
    assert "cannot be read" in why(Certificates(tmp_path / "no.pem", right.server, right.key))
    right.key.chmod(0o640)
    assert "read by others" in why(right)


def test_expiry_is_warned_of_a_month_ahead() -> None:
    assert expiry_warning(NOW + timedelta(days=31), now=NOW) is None
    warning = expiry_warning(NOW + timedelta(days=29, hours=1), now=NOW)
    assert warning is not None
    assert "29 more days" in warning


def test_given_certificates_stay_where_they_are(tmp_path: Path) -> None:
    given = Certificates(tmp_path / "ca.pem", tmp_path / "s.pem", tmp_path / "s.key")
    make_authority(given, tmp_path / "ca.key", name="a clinic", now=NOW)
    make_certificate(given, tmp_path / "ca.key", hosts=["fl.example.org"], now=NOW)
    home = init_home(tmp_path / "c", name="x", address="fl.example.org:9092", now=NOW, given=given)
    assert home.certificates == given
    assert not list((home.folder / "tls").iterdir())
    with pytest.raises(KeyFileError):  # it is not ours to renew
        renew(home, now=NOW)
    with pytest.raises(CertificateError):
        init_home(tmp_path / "e", name="x", address="fl.other.org:9092", now=NOW, given=given)
    assert not (tmp_path / "e").exists()


def test_a_bundle_is_the_same_bytes_wherever_and_whenever_it_is_built(tmp_path: Path) -> None:
    write_app(tmp_path / "a")
    first = build_bundle(tmp_path / "a")
    for name in reversed(app_files()):
        (tmp_path / "b").mkdir(exist_ok=True)
        shutil.copy(tmp_path / "a" / name, tmp_path / "b" / name)
    assert build_bundle(tmp_path / "b") == first
    assert len(first) < 5000
    (tmp_path / "b" / "pyproject.toml").unlink()
    with pytest.raises(DeploymentError):
        build_bundle(tmp_path / "b")
