"""What a command of this machine shows the server: that its user can read the coordinator's folder.

Loopback is open to every user of a machine, and whoever starts a run there has code run as the
coordinator, beside its keys. The token is made anew at each start of the server.
"""

from __future__ import annotations

import hmac
import secrets
from typing import TYPE_CHECKING

from hushtune.common.errors import DeploymentError
from hushtune.common.files import write_bytes
from hushtune.server.deployment.home import Home

if TYPE_CHECKING:
    import httpx
    from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

HEADER = "hushtune-token"
"""Of a request to the server's local side."""


def make_token(home: Home) -> str:
    """A new token, in a file that its owner alone may read."""
    token = secrets.token_urlsafe(32)
    write_bytes(home.local_token, token.encode("ascii"), private=True)
    return token


def read_token(home: Home) -> str | None:
    """The token of the server that was started last; None before the first.

    Raises DeploymentError where this user may not read it.
    """
    try:
        return home.local_token.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DeploymentError(
            "the server's token cannot be read",
            given=f"{home.local_token}: {getattr(error, 'strerror', None) or error}",
            expected="the user who has started the server",
            remedy="give the command as that user",
        ) from error


def fits(given: str | None, token: str) -> bool:
    """Whether a request shows the token, in a time that tells nothing of it.

    >>> fits("a", "a"), fits("b", "a"), fits("é", "a"), fits(None, "a")
    (True, False, False, False)
    """
    return hmac.compare_digest((given or "").encode("utf-8"), token.encode("utf-8"))


class TokenHeader:
    """Adds the token to what Flower's client of the Control API sends."""

    def __init__(self, token: str) -> None:
        self._token = token

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """See Flower's ``ProtobufClientInterceptor``."""
        context.request.headers[HEADER] = self._token
        return call_next(context)
