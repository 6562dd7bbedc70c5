"""Why a site's node cannot connect: asked of the server itself, as Flower's messages do not say.

One request tells whether the server is reached, whether its certificate is the one that the
invitation names, and how far the two clocks are apart: Flower 1.41 refuses a node whose clock is
more than 5 s ahead of the server's, or more than 305 s behind.
"""

from __future__ import annotations

import email.utils
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from hushtune.client.deployment.status_file import State
from hushtune.common.errors import (
    CertificateError,
    DeploymentError,
    EnrolmentError,
    UnreachableError,
)

AHEAD_SECONDS, BEHIND_SECONDS = 5.0, 300.0
_TIMEOUT = 10.0
_OF_TIME = ("expired", "not yet valid")


@dataclass(frozen=True)
class Finding:
    """What a probe found: a state and what to say of it; no error where the server answers."""

    state: State
    error: DeploymentError | None = None


def probe(address: str, certificate: Path | None) -> Finding:
    """Ask a server; ``certificate`` is the authority's, None for a server without TLS."""
    try:
        verify: ssl.SSLContext | bool = False
        if certificate is not None:
            verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            verify.load_verify_locations(cafile=certificate)
    except (OSError, ssl.SSLError) as error:
        return Finding(
            State.CERTIFICATE,
            CertificateError(
                "the certificate of the server's authority cannot be read",
                given=f"{certificate}: {error}",
                expected="the PEM file that `hushtune site init` took from the invitation",
                remedy="ask the coordinator for federation.toml, and put its certificate there",
            ),
        )
    scheme = "http" if certificate is None else "https"
    try:
        before = time.time()
        answer = httpx.get(f"{scheme}://{address}/", verify=verify, timeout=_TIMEOUT)
        return _by_clock(address, answer, (before + time.time()) / 2)
    except httpx.HTTPError as error:
        return _unanswered(address, error)


def _by_clock(address: str, answer: httpx.Response, here: float) -> Finding:
    said = email.utils.parsedate_to_datetime(answer.headers["date"]) if _dated(answer) else None
    if said is None:
        return Finding(State.CONNECTED)
    # The header has whole seconds, cut off: half a second on average.
    ahead = here - (said.timestamp() + 0.5)
    if -BEHIND_SECONDS < ahead < AHEAD_SECONDS:
        return Finding(State.CONNECTED)
    direction = "ahead of" if ahead > 0 else "behind"
    return Finding(
        State.CLOCK,
        UnreachableError(
            "the clock of this machine and that of the server differ too much",
            given=f"{abs(ahead):.0f} s {direction} {address}",
            expected=f"at most {AHEAD_SECONDS:.0f} s ahead, {BEHIND_SECONDS:.0f} s behind",
            remedy="set the clock (chrony or systemd-timesyncd keep it), here or at the server",
        ),
    )


def _dated(answer: httpx.Response) -> bool:
    try:
        email.utils.parsedate_to_datetime(answer.headers.get("date", ""))
    except ValueError:
        return False
    return True


def _unanswered(address: str, error: httpx.HTTPError) -> Finding:
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            why = cause.verify_message
            off = any(words in why for words in _OF_TIME)
            return Finding(
                State.CERTIFICATE,
                CertificateError(
                    "the server's certificate is not one that this site may trust",
                    given=f"{address}: {why}",
                    expected="a certificate of the authority in ca.pem, for that name, and valid",
                    remedy="check this machine's clock; else ask the coordinator to renew it"
                    if off
                    else "ask the coordinator for a new federation.toml, by a way that you trust",
                ),
            )
        if isinstance(cause, ssl.SSLError):
            return Finding(
                State.CERTIFICATE,
                CertificateError(
                    "what answers there does not speak TLS as it should",
                    given=f"{address}: {cause.reason or type(cause).__name__}",
                    expected="the coordinator's server",
                    remedy="check address and port in site.toml",
                ),
            )
    return Finding(
        State.UNREACHABLE,
        UnreachableError(
            "the server cannot be reached",
            given=f"{address}: {_plain(error)}",
            expected="the coordinator's server, listening there",
            remedy="it is tried again; check the address, the firewall for outgoing connections, "
            "and that the coordinator's server runs",
        ),
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _plain(error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.TimeoutException):
        return f"no answer within {_TIMEOUT:.0f} s"
    return str(error)[:200] or type(error).__name__


def not_enrolled(site: str) -> EnrolmentError:
    """What to say where the server does not take the site's key."""
    return EnrolmentError(
        "the server does not know the key of this site",
        given=site,
        expected="a site that the coordinator has enrolled",
        remedy=f"send {site}.pub to the coordinator, who runs `hushtune server enrol`; this goes "
        "on as soon as that is done",
    )


def still_held(site: str) -> EnrolmentError:
    """What to say where an earlier join of the site ended without a word."""
    return EnrolmentError(
        "the server still counts an earlier join of this site as connected",
        given=site,
        expected="that it notices, within 100 s of that join's end",
        remedy="wait: it is tried again; if it stays so, the site is joined from another machine",
    )
