"""The roll call as Flower records: which site a node is."""

from __future__ import annotations

from flwr.app import RecordDict

from hushtune.common.errors import MessageError
from hushtune.common.messages import pack, unpack_body
from hushtune.common.wire_values import read_text


def encode_hello() -> RecordDict:
    """The question with which a server learns which site a node is."""
    return pack({"ask": "site"}, None)


def decode_hello(content: RecordDict) -> None:
    """Check that a question is the one of ``encode_hello``."""
    if unpack_body(content).get("ask") != "site":
        raise MessageError("a site was asked something that it does not answer")


def encode_site(site: str) -> RecordDict:
    """A site's answer to ``encode_hello``."""
    return pack({"site": site}, None)


def decode_site(content: RecordDict) -> str:
    """Inverse of ``encode_site``."""
    body = unpack_body(content)
    if "site" not in body:
        raise MessageError("a node did not say which site it is")
    return read_text(body, "site")
