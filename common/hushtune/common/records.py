"""The records of a Flower message by their kind.

Flower's own ``array_records`` and the like refer to themselves and to the message: whoever reads
them keeps its arrays, tens of megabytes, until Python next looks for garbage.
"""

from __future__ import annotations

from flwr.app import ArrayRecord, ConfigRecord, RecordDict


def arrays_of(content: RecordDict) -> dict[str, ArrayRecord]:
    """The records that hold arrays, by name."""
    return {name: record for name, record in content.items() if isinstance(record, ArrayRecord)}


def texts_of(content: RecordDict) -> dict[str, ConfigRecord]:
    """The records that hold texts and other single values, by name."""
    return {name: record for name, record in content.items() if isinstance(record, ConfigRecord)}
