"""How much a site's node takes in: of an order, of a run's bundle, and of any answer of the server.

Flower 1.41 reads whatever it is sent into memory. Here the bytes of an order are counted as they
come from the network, and what goes beyond the site's limit is cut off there.
"""

from __future__ import annotations

import importlib
import io
import zipfile
from collections.abc import Callable, Iterator
from threading import Lock
from types import ModuleType
from typing import Any

import httpx
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

from hushtune.common.errors import MessageError

CONNECTION = "flwr.supernode.fleet_http_connection"
"""The module of Flower that makes the node's client."""
MOST_OBJECTS = 10_000
"""Of a message; hushtune's have a handful."""
MOST_BUNDLE = 2**20
"""Bytes of a run's bundle, packed and unpacked; hushtune's has some kilobytes."""
_MOST_OTHER = 4 * 2**20
"""Bytes of an answer that is no part of a message, such as a bundle, or the names of the parts."""
_AROUND_PARTS = 2 * 2**20
"""Bytes that may come beside the parts of a message, in the answers that hold them."""
_PART_PATH = "/pull-object"


class ByteCount:
    """Bytes of a message so far, of ``most``; parts come from several threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = Lock()
        self.total = 0

    def add(self, data: bytes) -> bytes:
        """Count and give back; MessageError as soon as it is too much."""
        with self._lock:
            self.total += len(data)
            total = self.total
        if total > self._most:
            raise MessageError(
                "a message is larger than this site takes",
                given=f"more than {self._most} bytes",
                expected=f"at most {self._most} bytes",
                remedy="the site: raise max_message_megabytes of its site.toml",
            )
        return data


class Intake:
    """What a node takes in of one order, whose message may have ``most_bytes``.

    ``refused``: why the order that was begun last is not taken, if it is not.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self.begin()

    def begin(self) -> None:
        """Forget the order before."""
        self.refused: MessageError | None = None
        self._parts = ByteCount(self._most)
        self._raw = ByteCount(self._most + _AROUND_PARTS)

    def checked_tree(self, tree: Any) -> None:
        """Raise MessageError for a message of too many parts."""
        if sum(1 for _ in iterate_object_tree(tree)) > MOST_OBJECTS:
            raise self._no("a message has too many parts", expected=f"at most {MOST_OBJECTS}")

    def bundle(self, fab: Any) -> Any:
        """A run's bundle; MessageError for one that is too large, or would be once unpacked."""
        content: bytes = fab.content
        size = len(content)
        if size <= MOST_BUNDLE:
            try:
                with zipfile.ZipFile(io.BytesIO(content)) as files:
                    size = max(size, sum(one.file_size for one in files.infolist()))
            except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
                raise self._no("a run's bundle is none", given=type(error).__name__) from error
        if size > MOST_BUNDLE:
            raise self._no(
                "a run's bundle is larger than this site takes",
                given=f"{size} bytes",
                expected=f"at most {MOST_BUNDLE} bytes",
            )
        return fab

    def part(self, data: bytes) -> bytes:
        """A part of the message; MessageError where all of them are too large."""
        return self._counted(self._parts, data)

    def raw(self, path: str) -> Callable[[bytes], bytes]:
        """What counts the bytes of one answer of the server, as they come."""
        if path.endswith(_PART_PATH):
            counted = self._raw
            return lambda data: self._counted(counted, data)
        return ByteCount(_MOST_OTHER).add

    def _counted(self, count: ByteCount, data: bytes) -> bytes:
        try:
            return count.add(data)
        except MessageError as error:
            self.refused = error
            raise

    def _no(self, message: str, **told: str) -> MessageError:
        self.refused = MessageError(message, **told)
        return self.refused


def count_answers(intake: Intake, connection: ModuleType | None = None) -> None:
    """Have Flower's node read answers of the server no further than it takes them in."""
    connection = importlib.import_module(CONNECTION) if connection is None else connection
    plain: Any = connection.__dict__["FleetHttpClient"]

    def counted(response: httpx.Response) -> None:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise MessageError("an answer of the server is packed, which it was not asked to be")
        stream = response.stream
        if isinstance(stream, httpx.SyncByteStream):
            response.stream = _Counted(stream, intake.raw(response.request.url.path))

    class BoundedClient(plain):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            client: httpx.Client = self._client
            client.headers["accept-encoding"] = "identity"
            client.event_hooks = {"request": [], "response": [counted]}

    connection.__dict__["FleetHttpClient"] = BoundedClient


class _Counted(httpx.SyncByteStream):
    """A body whose bytes are counted as they come."""

    def __init__(self, stream: httpx.SyncByteStream, count: Callable[[bytes], bytes]) -> None:
        self._stream, self._count = stream, count

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            yield self._count(chunk)

    def close(self) -> None:
        self._stream.close()
