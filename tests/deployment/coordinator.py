"""A coordinator for tests of a site's end alone: an authority, an invitation, a TLS server."""

from __future__ import annotations

import base64
import datetime
import http.server
import json
import ssl
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER

from hushtune.client.deployment.setup import Answers, make_site
from hushtune.common.deployment import Invitation
from hushtune.common.signing import public_text

from ..conftest import made_up_rows, write_csv


@dataclass
class Authority:
    """Signs certificates of servers."""

    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    @property
    def certificate(self) -> x509.Certificate:
        return self._made("authority", self.key, days=3650, host=None)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode("ascii")

    def server(self, folder: Path, *, host: str = "localhost", days: float = 365) -> Path:
        """A file with a server's certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        path = folder / "server.pem"
        path.write_bytes(
            self._made(host, key, days=days, host=host).public_bytes(Encoding.PEM)
            + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        return path

    def _made(
        self, name: str, key: ec.EllipticCurvePrivateKey, *, days: float, host: str | None
    ) -> x509.Certificate:
        def called(text: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(called(name))
            .issuer_name(called("authority"))
            .public_key(key.public_key())
            .serial_number(1 if host is None else 2)
            .not_valid_before(now - datetime.timedelta(days=400))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=host is None, path_length=None), critical=True)
        )
        if host is not None:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False
            )
        return builder.sign(self.key, hashes.SHA256())


@dataclass
class Behaviour:
    """How the server answers: seconds its clock is ahead, keys that it knows, whether it is one
    of hushtune's."""

    ahead: float = 0.0
    known: set[bytes] = field(default_factory=set[bytes])
    ours: bool = True
    as_text: bool = False
    asked: list[str] = field(default_factory=list[str])


@contextmanager
def serving(certificate: Path, behaviour: Behaviour) -> Generator[int]:
    """A TLS server on this machine while the block runs; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            behaviour.asked.append(self.path)
            now: Any = time.time() + behaviour.ahead
            if behaviour.as_text:
                now = datetime.datetime.fromtimestamp(now, datetime.UTC).isoformat()
            if behaviour.ours and self.path == "/v1/fleet/hushtune/time":
                self._say(200, {"hushtune": "server", "time": now})
            else:
                self._say(404, {"detail": "Not Found"})

        def do_POST(self) -> None:
            behaviour.asked.append(self.path)
            key = base64.b64decode(self.headers[FLEET_HTTP_PUBLIC_KEY_HEADER])
            known = key in behaviour.known
            unknown = "this node's key is not enrolled here"
            self._say(401, {"detail": "Invalid SuperNode authentication" if known else unknown})

        def _say(self, status: int, value: object) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(int(time.time() + behaviour.ahead))

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # handshakes that tests break

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def invitation(authority: Authority, *, port: int = 9092) -> Invitation:
    """What the coordinator gives to sites."""
    return Invitation(
        name="three hospitals",
        address=f"localhost:{port}",
        sign_key=public_text(Ed25519PrivateKey.generate()),
        certificate=authority.pem,
    )


def rows_of(folder: Path, *, rows: int = 120) -> Path:
    """A table with the columns Remark, verdict and Patient, four rows a patient."""
    made = made_up_rows({"north": rows})
    table = [(text, label, f"p{i // 4}") for i, (_, text, label) in enumerate(made)]
    return write_csv(folder / "notes.csv", table, header=("Remark", "verdict", "Patient"))


def made_site(
    folder: Path, *, authority: Authority, port: int = 9092, model: Path | None = None, **terms: Any
) -> Path:
    """A site's folder as ``site init`` makes it, over rows of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    answers = Answers(
        name="north",
        invitation=invitation(authority, port=port),
        data=rows_of(folder),
        text="Remark",
        label="verdict",
        model=model,
        terms={"max_epsilon": 3.0, "max_delta": 1e-3, **terms},
    )
    return make_site(folder / "north", answers).folder
