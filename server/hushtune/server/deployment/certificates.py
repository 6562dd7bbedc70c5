"""TLS certificates of a coordinator's server: made here, or given and checked before they are used.

Sites trust one authority, whose certificate the invitation carries; it is not among those that an
operating system trusts, and nothing else is signed by it.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hushtune.common.errors import CertificateError, KeyFileError
from hushtune.common.files import write_bytes
from hushtune.common.signing import read_private

AUTHORITY_DAYS, SERVER_DAYS, WARNING_DAYS = 3650, 365, 30
_SKEW = timedelta(minutes=10)
"""How much earlier a certificate begins: a site's clock may be behind."""

_RENEW = "hushtune server certificate DIR --renew"


@dataclass(frozen=True)
class Certificates:
    """Where the authority's certificate, the server's (with its chain) and the server's key are."""

    authority: Path
    server: Path
    key: Path


def make_authority(paths: Certificates, authority_key: Path, *, name: str, now: datetime) -> None:
    """Write a new authority's certificate and its key (0600)."""
    key = ec.generate_private_key(ec.SECP384R1())
    subject = _subject(f"hushtune authority of {name}")
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _begun(subject, subject, key, now=now, days=AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
        .sign(key, hashes.SHA384())
    )
    _write_key(authority_key, key)
    write_bytes(paths.authority, certificate.public_bytes(Encoding.PEM))


def make_certificate(
    paths: Certificates, authority_key: Path, *, hosts: Sequence[str], now: datetime
) -> None:
    """Write a server's certificate for these hosts, and a new key (0600), signed by the authority.

    Raises KeyFileError where the authority's key is not here, as with certificates that were given.
    """
    signer = _load_key(authority_key)
    authority = _load(paths.authority, what="the authority's certificate")[0]
    _check_dates(authority, "the authority's certificate", now=now)
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _begun(_subject(hosts[0]), authority.subject, key, now=now, days=SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .add_extension(
            x509.SubjectAlternativeName([_host(name) for name in dict.fromkeys(hosts)]),
            critical=False,
        )
        .sign(signer, hashes.SHA384())
    )
    _write_key(paths.key, key)
    write_bytes(paths.server, certificate.public_bytes(Encoding.PEM))


def hosts_of(host: str) -> tuple[str, ...]:
    """What a server's certificate is for: the address's host, and this machine itself."""
    return tuple(dict.fromkeys((host.strip("[]"), "localhost", "127.0.0.1")))


def check_certificates(paths: Certificates, *, host: str, now: datetime) -> datetime:
    """The moment until which all is valid; CertificateError, or KeyFileError, where it is not.

    Tells apart: a file that is none, a key that others may read or that is of another certificate,
    dates, the host name, and the authority. The last is tried by a handshake as a site makes it.
    """
    authority = _load(paths.authority, what="the authority's certificate")
    server = _load(paths.server, what="the server's certificate")[0]
    for certificate, what in (
        (authority[0], "the authority's certificate"),
        (server, "the server's certificate"),
    ):
        _check_dates(certificate, what, now=now)
    key = _load_key(paths.key)
    if key.public_key() != server.public_key():
        raise CertificateError(
            "the server's key is of another certificate",
            given=str(paths.key),
            expected=f"the key that {paths.server} was made for",
            remedy=f"name the right key, or make both anew: {_RENEW}",
        )
    named = _named(server)
    if not _is_for(server, host.strip("[]")):
        raise CertificateError(
            "the server's certificate is for other hosts",
            given=", ".join(named) or "no host name at all",
            expected=host,
            remedy=f"use one of these as the address, or a certificate for it: {_RENEW}",
        )
    _check_handshake(paths, host=host.strip("[]"))
    return min(server.not_valid_after_utc, authority[0].not_valid_after_utc)


def days_left(until: datetime, *, now: datetime) -> int:
    """Whole days."""
    return (until - now) // timedelta(days=1)


def expiry_warning(until: datetime, *, now: datetime) -> str | None:
    """What to say within the last days of a certificate."""
    left = days_left(until, now=now)
    if left >= WARNING_DAYS:
        return None
    return f"the certificate is valid until {until:%Y-%m-%d}, {left} more days; renew it: {_RENEW}"


def server_context(paths: Certificates) -> ssl.SSLContext:
    """The server's TLS settings: 1.2 or later, forward secrecy and authenticated encryption."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.load_cert_chain(paths.server, paths.key, password=lambda: "")
    return context


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _begun(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    *,
    now: datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name.encode("idna").decode("ascii"))
    except ValueError as error:
        raise CertificateError(
            "this is no host name", given=name, expected="such as fl.example.org"
        ) from error


def _named(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = names.get_values_for_type(x509.IPAddress)
    return [*names.get_values_for_type(x509.DNSName), *map(str, addresses)]


def _is_for(certificate: x509.Certificate, host: str) -> bool:
    named = [name.lower() for name in _named(certificate)]
    host = host.lower()
    wildcard = f"*.{host.partition('.')[2]}"
    return host in named or ("." in host and wildcard in named)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_bytes(path, pem, private=True)


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A private key; of given certificates it may be of another kind, and is then passed through.

    Raises KeyFileError.
    """
    data = read_private(path)
    try:
        return load_pem_private_key(data, password=None)  # pyright: ignore[reportReturnType]
    except (ValueError, TypeError) as error:
        raise KeyFileError(
            "a key file holds no key that can be used",
            given=f"{path}: {str(error)[:100]}",
            expected="a PEM key without a password",
            remedy="name the right file",
        ) from error


def _load(path: Path, *, what: str) -> list[x509.Certificate]:
    def refusal(why: str) -> CertificateError:
        return CertificateError(
            f"{what} cannot be read",
            given=f"{path}: {why}",
            expected="PEM certificates, the server's own first",
            remedy="name the right file",
        )

    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise refusal(error.strerror or str(error)) from error
    except ValueError as error:
        raise refusal(str(error)[:100]) from error


def _check_dates(certificate: x509.Certificate, what: str, *, now: datetime) -> None:
    if now > certificate.not_valid_after_utc:
        raise CertificateError(
            f"{what} has expired",
            given=f"it was valid until {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
            expected=f"a later date than now, {now.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
            remedy=_RENEW,
        )
    if now < certificate.not_valid_before_utc:
        raise CertificateError(
            f"{what} is not valid yet",
            given=f"it begins at {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC",
            expected=f"an earlier date than now, {now.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
            remedy="see whether this machine's clock is right",
        )


def _check_handshake(paths: Certificates, *, host: str) -> None:
    """A site's handshake with the server, in memory."""
    try:
        server_side = server_context(paths)
        client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client_side.load_verify_locations(paths.authority)
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = client_side.wrap_bio(to_client, to_server, server_hostname=host)
        server = server_side.wrap_bio(to_server, to_client, server_side=True)
        for _ in range(4):
            _step(client.do_handshake)
            _step(server.do_handshake)
    except ssl.SSLCertVerificationError as error:
        raise CertificateError(
            "the server's certificate is not signed by the authority that sites are told of",
            given=f"{paths.server}: {error.verify_message}",
            expected=f"one that {paths.authority} signs, directly or by a chain in the same file",
            remedy="name the certificate of the authority that has signed it",
        ) from error
    except ssl.SSLError as error:
        raise CertificateError(
            "the server's certificate and key cannot be used for TLS",
            given=str(error)[:200],
            expected="a certificate for servers, with an elliptic-curve or RSA key",
            remedy=f"make one: {_RENEW}",
        ) from error


def _step(handshake: Callable[[], None]) -> None:
    try:
        handshake()
    except ssl.SSLWantReadError:
        return
