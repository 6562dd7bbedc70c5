"""The way from a site to its coordinator, step by step, so that what is broken is named."""

from __future__ import annotations

import base64
import email.utils
import http.client
import json
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
)

from hushtune.client.deployment.check_kinds import Check, cannot_tell, failed, ok, tried, warning
from hushtune.client.deployment.site_file import SiteFile
from hushtune.common.errors import CertificateError
from hushtune.common.signing import read_private

TIME_PATH = "/v1/fleet/hushtune/time"
"""GET: ``{"hushtune": "server", "time": seconds since 1970, or ISO 8601}``."""
_WORK_PATH = "/v1/fleet/pull-messages"
SECONDS, MOST_BYTES = 10.0, 65536
AHEAD, BEHIND = 5.0, 300.0
"""Seconds by which Flower 1.41 lets a node's clock differ from the server's."""
_CLOCK_GOOD, _DAYS_GOOD = 2.0, 30
_HOSTNAME, _EXPIRED, _NOT_YET = 62, 10, 9  # OpenSSL's codes
_FLOWERS_OWN = "Invalid SuperNode authentication"
_STEPS = ("DNS", "connection", "TLS", "certificate", "clock", "enrolment")


class _Stop(Exception):
    """A step that failed; those after it cannot be looked at."""

    def __init__(self, check: Check) -> None:
        super().__init__(check.given)
        self.check = check


def check_server(site: SiteFile) -> list[Check]:
    """DNS, connection, TLS, certificate, clock, enrolment."""
    found: list[Check] = []
    try:
        _look(site, found.append)
    except _Stop as stop:
        found.append(stop.check)
    done = {check.what for check in found}
    rest = [what for what in _STEPS if what not in done]
    last = found[-1].what
    return found + [cannot_tell(what, f"the server was not reached ({last})") for what in rest]


def _look(site: SiteFile, add: Callable[[Check], None]) -> None:
    host, _, port = site.table.server.address.rpartition(":")
    host = host.strip("[]")
    proxy = urllib.request.getproxies().get("https")
    if proxy and not urllib.request.proxy_bypass(host):
        add(
            warning(
                "proxy",
                "HTTPS_PROXY is set, and `hushtune site join` connects through it; the steps "
                "below connect without it",
                do=f"set NO_PROXY={host} if the server is reached directly",
            )
        )
    add(_resolve(host, int(port)))
    with _connect(host, int(port)) as plain:
        add(ok("connection", f"{site.table.server.address} answers"))
        context = tried_context(site)
        with _handshake(context, plain, host) as secure:
            add(ok("TLS", str(secure.version())))
            add(_expiry(secure))
    address = (host, int(port), context)
    said, ours = _time(address)
    add(said)
    add(_enrolment(address, site) if ours else _unknown_server())


def tried_context(site: SiteFile) -> ssl.SSLContext:
    """TLS that trusts the coordinator's authority and no other; stops where there is none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    path = site.table.server.certificate
    try:
        context.load_verify_locations(cafile=path)
    except (OSError, ssl.SSLError) as error:
        raise _Stop(
            failed(
                "TLS",
                f"{path}: {error.strerror or 'no certificate'}",
                expected="the certificate of the coordinator's authority, PEM",
                do="copy it from federation.toml",
            )
        ) from error
    return context


def _resolve(host: str, port: int) -> Check:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _Stop(
            failed(
                "DNS",
                f"{host}: {getattr(error, 'strerror', None) or error}",
                expected="an address of this name",
                do="check the address in site.toml, and this machine's DNS",
            )
        ) from error
    return ok("DNS", f"{host}: {', '.join(sorted({str(one[4][0]) for one in found}))}")


def _connect(host: str, port: int) -> socket.socket:
    try:
        return socket.create_connection((host, port), timeout=SECONDS)
    except OSError as error:
        late = isinstance(error, TimeoutError)
        why = f"no answer within {SECONDS:.0f} s" if late else error.strerror or str(error)
        raise _Stop(
            failed(
                "connection",
                f"{host}:{port}: {why}",
                expected="the coordinator's server, listening there",
                do="ask whether a firewall lets this machine out to that port"
                if late
                else "ask whether the coordinator's server runs, and at which port",
            )
        ) from error


def _handshake(context: ssl.SSLContext, plain: socket.socket, host: str) -> ssl.SSLSocket:
    try:
        return context.wrap_socket(plain, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        raise _Stop(_untrusted(error, host)) from error
    except OSError as error:  # ssl.SSLError, and a connection that is closed meanwhile
        raise _Stop(
            failed(
                "TLS",
                f"what answers speaks no TLS that this machine does: {_reason(error)}",
                expected="the coordinator's server",
                do="check address and port in site.toml; a proxy in between may break TLS open",
            )
        ) from error


def _reason(error: OSError) -> str:
    return (error.reason if isinstance(error, ssl.SSLError) else error.strerror) or str(error)


def _untrusted(error: ssl.SSLCertVerificationError, host: str) -> Check:
    code, why = error.verify_code, error.verify_message
    if code == _HOSTNAME:
        expected, do = f"one for {host}", "ask the coordinator for the address that it is made for"
        why = "the certificate is for another host name"
    elif code in (_EXPIRED, _NOT_YET):
        expected, do = "one that is valid now", "check this machine's clock, or have it renewed"
        why = "the certificate has expired" if code == _EXPIRED else "it is not valid yet"
    else:
        expected = "one that the authority in ca.pem has signed"
        do = "ask the coordinator for the invitation that goes with its server; something in "
        do += "between may also answer in its place"
    return failed("certificate", why, expected=expected, do=do)


def _expiry(secure: ssl.SSLSocket) -> Check:
    told = secure.getpeercert() or {}
    until = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(told.get("notAfter"))), tz=UTC)
    days = (until - datetime.now(UTC)).days
    given = f"fits ca.pem and the host name; valid until {until:%Y-%m-%d}"
    if days < _DAYS_GOOD:
        return warning(
            "certificate",
            f"{given}, {days} days from now",
            expected=f"{_DAYS_GOOD} days or more",
            do="have the coordinator renew it: hushtune server certificate DIR --renew",
        )
    return ok("certificate", given)


_Address = tuple[str, int, ssl.SSLContext]


def _ask(
    address: _Address,
    what: str,
    method: str,
    path: str,
    *,
    headers: dict[str, str],
    body: bytes | None = None,
) -> tuple[http.client.HTTPResponse, bytes]:
    host, port, context = address
    link = http.client.HTTPSConnection(host, port, context=context, timeout=SECONDS)
    try:
        link.request(method, path, body=body, headers=headers)
        answer = link.getresponse()
        return answer, answer.read(MOST_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _Stop(
            failed(
                what,
                f"the server does not answer over HTTP: {type(error).__name__}",
                expected="the coordinator's server",
                do="ask whether it runs",
            )
        ) from error
    finally:
        link.close()


def _time(address: _Address) -> tuple[Check, bool]:
    """The clocks' difference, and whether a hushtune server answers."""
    before = time.time()
    answer, body = _ask(address, "clock", "GET", TIME_PATH, headers={})
    here = (before + time.time()) / 2
    said = _said(body) if answer.status == 200 else None
    ours = said is not None
    if said is None:
        try:
            dated = email.utils.parsedate_to_datetime(answer.headers.get("date") or "")
        except ValueError:
            return warning("clock", "cannot tell: the server does not say its time"), False
        said = dated.timestamp() + 0.5  # the header has whole seconds, cut off
    return _clock(here - said), ours


def _said(body: bytes) -> float | None:
    try:
        said = json.loads(body)["time"]
        if isinstance(said, str):
            moment = datetime.fromisoformat(said)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        return float(said)
    except (ValueError, KeyError, TypeError):
        return None


def _clock(ahead: float) -> Check:
    given = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the server's"
    do = "keep the clock by a time server (chrony, systemd-timesyncd)"
    expected = f"at most {AHEAD:.0f} s ahead, {BEHIND:.0f} s behind"
    if not -BEHIND < ahead < AHEAD:
        return failed("clock", given, expected=expected, do=do)
    if abs(ahead) > _CLOCK_GOOD:
        return warning("clock", given, expected=expected, do=do)
    return ok("clock", given)


def _unknown_server() -> Check:
    return cannot_tell("enrolment", "what answers there is not a server of this version")


def _enrolment(address: _Address, site: SiteFile) -> Check:
    """Asks for work in the name of no node: a server refuses that to whom it knows, too.

    Flower's own refusal comes after the check of the key, and nothing is changed by either.
    """
    looked = tried("enrolment", lambda: [_by_answer(_ask_for_work(address, site), site)])
    return looked[0]


def _ask_for_work(address: _Address, site: SiteFile) -> tuple[int, str]:
    try:
        key = load_ssh_private_key(read_private(site.node_key), None)
    except ValueError as error:
        raise CertificateError("the node's key is none", given=str(site.node_key)) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError("the node's key is none", given=str(site.node_key))
    stamp = datetime.now(UTC).isoformat()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signature = key.sign(stamp.encode("ascii"), ec.ECDSA(hashes.SHA256()))
    headers = signed_headers(public, stamp, signature)
    answer, body = _ask(address, "enrolment", "POST", _WORK_PATH, headers=headers, body=b"")
    try:
        detail = str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        detail = ""
    return answer.status, detail


def signed_headers(public: bytes, stamp: str, signature: bytes) -> dict[str, str]:
    """The headers by which Flower's server knows a node."""
    from flwr.common.constant import TIMESTAMP_HEADER
    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
    from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

    return {
        "content-type": PROTOBUF_MEDIA_TYPE,
        "accept": PROTOBUF_MEDIA_TYPE,
        FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(public).decode("ascii"),
        TIMESTAMP_HEADER: stamp,
        FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(signature).decode("ascii"),
    }


def _by_answer(answer: tuple[int, str], site: SiteFile) -> Check:
    status, detail = answer
    if status == 401 and detail != _FLOWERS_OWN:
        return failed(
            "enrolment",
            detail[:200] or "the server does not know this site",
            expected="a site that the coordinator has enrolled",
            do=f"give {site.name}.pub to the coordinator, for `hushtune server enrol`",
        )
    if status in (200, 401):
        return ok("enrolment", "the server knows this site's key")
    return cannot_tell("enrolment", f"the server answers {status} {detail[:100]}".strip())
