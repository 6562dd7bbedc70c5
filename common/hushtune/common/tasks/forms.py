"""Instructions and their answers in the forms that data sets have them, told by their columns.

Alpaca (Taori and others): instruction, input, output. ShareGPT: conversations of from and value.
Messages: role and content, as chat templates take them. Besides: prompt and completion, question
and answer, any two columns, and plain text.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from hushtune.common.errors import BadValueError, MissingColumnError, UnsupportedDataError
from hushtune.common.kinds import Inputs
from hushtune.common.tasks.cells import cell_text, unescaped
from hushtune.common.tasks.conversations import (
    Exchange,
    Message,
    exchange,
    is_conversation,
    message,
    messages_of,
)
from hushtune.common.tasks.records import Records
from hushtune.common.tasks.rows import Columns, RawRow, check_columns, json_of, owned_row

Cells = Mapping[str, object]
_TEXT, _LABEL = "text", "label"
"""The defaults of data.text and data.label: a run that has others means these columns."""
_SYSTEM: Final = ("system", "system_prompt")
_FORMS: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = MappingProxyType(
    {
        "messages": (("messages",),),
        "sharegpt": (("conversations", "conversation"),),
        "alpaca": (("instruction",), ("output", "response")),
        "prompt": (("prompt",), ("completion", "response")),
        "question": (("question",), ("answer",)),
    }
)
"""What each form has to have, by the names that its columns may have."""
_MORE: Final = ("input", "context")
"""What may stand beside an instruction."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A form as a file has it: ``columns`` that are read, and what is made of their cells."""

    form: str
    columns: tuple[str, ...]
    make: Callable[[Cells], Exchange]


def telling(columns: Columns) -> tuple[str, ...]:
    """Names by which the forms are told."""
    named = (name for parts in _FORMS.values() for part in parts for name in part)
    return tuple(dict.fromkeys((*columns.names, *named)))


def answer_rows(records: Records, columns: Columns) -> Iterator[RawRow]:
    """Rows of instructions and answers. Raises DataErrors that name the file, and the row."""
    layout = layout_of(records, columns)
    chat = columns.of.inputs is Inputs.MESSAGES
    wanted = (*layout.columns, *columns.owners)
    for row, given in records.read(wanted):
        cells = given
        if columns.unescape_html:
            cells = {name: unescaped(given.get(name)) for name in wanted}
        try:
            found = layout.make(cells)
        except ValueError as error:
            column = layout.columns[0] if len(layout.columns) == 1 else None
            raise BadValueError(
                str(error),
                file=records.file,
                row=row,
                column=column,
                remedy="mend the row: docs/data-forms.md shows each form",
            ) from None
        messages = found.messages
        text = None if messages is None else json_of(messages) if chat else _source(messages)
        yield owned_row(
            cells,
            columns,
            text=text,
            label=found.answer,
            file=records.file,
            row=row,
            remarks=found.remarks,
        )


def layout_of(records: Records, columns: Columns) -> Layout:
    """Which form a file has. MissingColumnError where none fits, UnsupportedDataError for several;
    both say what was found."""
    names, file = records.names, records.file
    for owner in columns.owners:
        if owner not in names:
            check_columns([*names, *set(columns.inputs), columns.label], columns, file=file)
    if columns.form != "auto":
        return _asked(columns.form, names, columns, file=file)
    if columns.text != _TEXT or columns.label != _LABEL:
        if columns.text in names and columns.label == _LABEL and _LABEL not in names:
            return _single(columns)
        return _asked("columns", names, columns, file=file)
    fitting = [form for form in _FORMS if _named(form, names) is not None]
    fitting += ["columns"] if _TEXT in names and _LABEL in names else []
    if len(fitting) > 1:
        raise UnsupportedDataError(
            "the columns fit several forms of instructions and answers",
            file=file,
            given=f"{', '.join(names)}: {' and '.join(fitting)}",
            expected="one of them",
            remedy=f'say which is meant: data.form = "{fitting[0]}", for instance',
        )
    if fitting:
        return _asked(fitting[0], names, columns, file=file)
    if _TEXT in names and columns.of.inputs is Inputs.MESSAGES:
        return _asked("text", names, columns, file=file)
    raise _unknown(names, file)


def _asked(form: str, names: Sequence[str], columns: Columns, *, file: str) -> Layout:
    if form == "columns":
        check_columns(list(names), columns, file=file)
        read = (columns.text, columns.label, *_system(names))
        return Layout(form, read, lambda cells: _two(cells, columns.text, columns.label, names))
    if form == "text":
        if columns.of.inputs is not Inputs.MESSAGES:
            raise UnsupportedDataError(
                f"plain texts have no answers, which {columns.kind} learns",
                file=file,
                given=", ".join(names),
                remedy='set data.text and data.label to two columns, or task.kind = "causal-lm"',
            )
        if columns.text not in names:
            raise _missing((columns.text,), names, file, form)
        return Layout(form, (columns.text,), lambda cells: _plain(cells.get(columns.text)))
    if form in ("messages", "sharegpt") and columns.text != _TEXT:
        if columns.text not in names:
            raise _missing((columns.text,), names, file, form)
        return _conversation(form, columns.text, names)
    found = _named(form, names)
    if found is None:
        lacking = next(part for part in _FORMS[form] if not set(part) & set(names))
        raise _missing(lacking, names, file, form)
    if form in ("messages", "sharegpt"):
        return _conversation(form, found[0], names)
    first, last = found
    more = tuple(name for name in _MORE if form == "alpaca" and name in names)[:1]
    read = (first, last, *more, *_system(names))
    return Layout(form, read, lambda cells: _two(cells, first, last, names, *more))


def _named(form: str, names: Sequence[str]) -> tuple[str, ...] | None:
    """The columns of a form that a file has; None if it lacks one."""
    found = [next((n for n in part if n in names), None) for part in _FORMS[form]]
    return None if None in found else tuple(name for name in found if name is not None)


def _system(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in _SYSTEM if name in names)[:1]


def _beginning(cells: Cells, names: Sequence[str]) -> list[Message]:
    """The system's message, where a column has one."""
    texts = [_text_in(cells, name) for name in _system(names)]
    return [message("system", text) for text in texts if text is not None]


def _conversation(form: str, column: str, names: Sequence[str]) -> Layout:
    def make(cells: Cells) -> Exchange:
        if cells.get(column) is None:
            return Exchange(None, None)
        turns = messages_of(cells[column])
        begun = any(turn["role"] == "system" for turn in turns)
        return exchange([*([] if begun or not turns else _beginning(cells, names)), *turns])

    return Layout(form, (column, *_system(names)), make)


def _two(cells: Cells, first: str, last: str, names: Sequence[str], *more: str) -> Exchange:
    """What is asked in one column (or begun in a conversation there) and answered in another."""
    answer = _text_in(cells, last)
    if is_conversation(cells.get(first)):
        return Exchange(messages_of(cells[first]), answer)
    texts = [_text_in(cells, name) for name in (first, *more)]
    asked = "\n\n".join(text for text in texts if text is not None)
    if not asked:
        return Exchange(None, answer)
    return Exchange((*_beginning(cells, names), message("user", asked)), answer)


def _text_in(cells: Cells, name: str) -> str | None:
    try:
        return cell_text(cells.get(name))
    except ValueError as error:
        raise ValueError(f"in column {name!r}, {error}") from None


def _single(columns: Columns) -> Layout:
    """One column of conversations, or of plain texts."""

    def make(cells: Cells) -> Exchange:
        value = cells.get(columns.text)
        if isinstance(value, str) and not is_conversation(value):
            if columns.of.inputs is not Inputs.MESSAGES:
                raise ValueError(f"a text alone has no answer, which {columns.kind} learns")
            return _plain(value)
        return Exchange(None, None) if value is None else exchange(messages_of(value))

    return Layout("text", (columns.text,), make)


def _plain(value: object) -> Exchange:
    """A text every word of which is learnt; an empty one is left out as one without an answer."""
    return Exchange((), cell_text(value))


def _source(messages: Sequence[Message]) -> str | None:
    """What is asked as one text: alone as it stands, several turns with who speaks."""
    if len(messages) == 1:
        return messages[0]["content"] or None
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in messages) or None


def _missing(
    wanted: Sequence[str], names: Sequence[str], file: str, form: str
) -> MissingColumnError:
    near = _nearest(wanted, names)
    return MissingColumnError(
        f"there is no column {wanted[0]!r}, which data of the form {form!r} have"
        + ("" if near is None else f"; did you mean {near[0]!r}?"),
        file=file,
        column=wanted[0],
        given=", ".join(names) or "no columns",
        remedy='rename the column, or name two in data.text and data.label with data.form = "auto"',
    )


def _unknown(names: Sequence[str], file: str) -> MissingColumnError:
    near = _nearest([name for parts in _FORMS.values() for part in parts for name in part], names)
    forms = [" and ".join("|".join(part) for part in parts) for parts in _FORMS.values()]
    return MissingColumnError(
        "no columns of instructions and answers are known here"
        + ("" if near is None else f"; is {near[0]!r} meant as {near[1]!r}?"),
        file=file,
        given=", ".join(names) or "no columns",
        expected="; or ".join([*forms, "text"]),
        remedy="set data.text and data.label to the columns of what is asked and answered",
    )


def _nearest(wanted: Sequence[str], names: Sequence[str]) -> tuple[str, str] | None:
    """Of the columns that are there the one most like a wanted one, and that one."""
    ratios = {
        (name, other): difflib.SequenceMatcher(None, name.casefold(), other).ratio()
        for name in names
        for other in wanted
        if name != other
    }
    best = max(ratios, key=ratios.__getitem__, default=None)
    return best if best is not None and ratios[best] > 0.7 else None
