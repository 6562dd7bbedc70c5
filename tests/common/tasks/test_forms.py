"""Instructions and answers are known by their columns, whatever form they come in."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune.common.config import DataConfig, TaskConfig
from hushtune.common.config_io import load_config
from hushtune.common.errors import (
    BadValueError,
    ConfigError,
    DataError,
    MissingColumnError,
    UnsupportedDataError,
)
from hushtune.common.tasks.conversations import LATER, exchange, message
from hushtune.common.tasks.data import load_data
from hushtune.common.tasks.readers import read_file
from hushtune.common.tasks.rows import Columns

Record = Mapping[str, Any]


def written(folder: Path, records: Sequence[Record], name: str = "data.jsonl") -> Path:
    path = folder / name
    if name.endswith(".csv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            lists = [
                {k: json.dumps(v) if isinstance(v, list) else v for k, v in record.items()}
                for record in records
            ]
            writer.writerows(lists)
    else:
        lines = map(json.dumps, records)
        path.write_text("\n".join(lines) if name.endswith("l") else json.dumps(records))
    return path


def rows(path: Path, kind: str = "causal-lm", **columns: Any) -> list[tuple[Any, str | None]]:
    text, label = columns.pop("text", "text"), columns.pop("label", "label")
    wanted = Columns(text, label, kind=kind, **columns)
    found = [(row.text, row.label) for row in read_file(path, wanted)]
    return [(json.loads(t) if kind == "causal-lm" and t else t, label) for t, label in found]


def refused(
    path: Path, kind: type[DataError], task: str = "causal-lm", **columns: Any
) -> DataError:
    with pytest.raises(kind) as caught:
        rows(path, task, **columns)
    assert str(path) in str(caught.value)
    return caught.value


ASKED = [{"role": "user", "content": "what?"}]
SAID = [*ASKED, {"role": "assistant", "content": "this."}]
SHARED = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "this."}]
FORMS: Mapping[str, Record] = {
    "alpaca": {"instruction": "what?", "input": "", "output": "this."},
    "dolly": {"instruction": "what?", "context": None, "response": "this.", "category": "qa"},
    "sharegpt": {"conversations": SHARED},
    "messages": {"messages": SAID},
    "prompt": {"prompt": "what?", "completion": " this."},
    "question": {"id": "3", "question": "what?", "answer": "this."},
    "columns": {"text": "what?", "label": "this."},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.csv"])
def test_each_form_is_known_by_itself(tmp_path: Path, form: str, name: str) -> None:
    path = written(tmp_path, [FORMS[form], FORMS[form]], name)
    assert rows(path) == [(ASKED, "this.")] * 2
    assert rows(path, "seq2seq") == [("what?", "this.")] * 2


@pytest.mark.parametrize("form", [form for form in FORMS if form != "dolly"])
def test_a_form_can_be_asked_for(tmp_path: Path, form: str) -> None:
    both = {**FORMS[form], "prompt": "what?", "completion": "this.", "question": "?", "answer": "!"}
    both |= FORMS[form]
    assert rows(written(tmp_path, [both]), form=form) == [(ASKED, "this.")]


def test_an_input_follows_its_instruction(tmp_path: Path) -> None:
    record = {"instruction": "translate", "input": "chien", "output": "dog"}
    path = written(tmp_path, [record, {"input": "alone", "output": "x"}])
    (first, answer), (second, _) = rows(path)
    assert (first, answer) == ([{"role": "user", "content": "translate\n\nchien"}], "dog")
    assert second == [{"role": "user", "content": "alone"}]
    assert rows(path, "seq2seq")[0] == ("translate\n\nchien", "dog")


def test_what_the_system_says_is_kept(tmp_path: Path) -> None:
    system = {"role": "system", "content": "be brief"}
    for record in (
        {"messages": [system, *SAID]},
        {"system": "be brief", "conversations": SHARED},
        {"system": "never mind", "messages": [system, *SAID]},
        {"system_prompt": "be brief", "question": "what?", "answer": "this."},
    ):
        assert rows(written(tmp_path, [record])) == [([system, *ASKED], "this.")]
    assert rows(written(tmp_path, [{"messages": [system, *SAID]}]), "seq2seq") == [
        ("system: be brief\nuser: what?", "this.")
    ]


def test_plain_texts(tmp_path: Path) -> None:
    path = written(tmp_path, [{"text": "all of it"}, {"text": ""}])
    assert rows(path) == [([], "all of it"), ([], None)]
    refused(path, MissingColumnError, "seq2seq")
    # Beside instructions it is mostly the same once more.
    path = written(tmp_path, [{"text": "all of it", **FORMS["alpaca"]}])
    assert rows(path) == [(ASKED, "this.")]
    assert rows(path, form="text") == [([], "all of it")]


def test_columns_of_other_names(tmp_path: Path) -> None:
    path = written(tmp_path, [{"q": "what?", "a": "this.", "chat": SAID, "note": "a text"}])
    assert rows(path, text="q", label="a") == [(ASKED, "this.")]
    assert rows(path, text="chat") == [(ASKED, "this.")]
    assert rows(path, text="chat", form="messages") == [(ASKED, "this.")]
    assert rows(path, text="note") == [([], "a text")]
    assert "data.label" in str(refused(path, MissingColumnError, text="q", label="b"))
    refused(path, BadValueError, "seq2seq", text="note")


def test_canonical_strings_stay_as_they_are(tmp_path: Path) -> None:
    """What another tool made, or a run wrote: messages as a text, and an answer beside them."""
    path = written(tmp_path, [{"text": json.dumps(ASKED), "label": "this."}])
    assert rows(path) == [(ASKED, "this.")]
    path = written(tmp_path, [{"text": "[1] see there", "label": "this."}])
    assert rows(path)[0][0] == [{"role": "user", "content": "[1] see there"}]


def test_several_forms_at_once_are_refused_by_name(tmp_path: Path) -> None:
    path = written(tmp_path, [{**FORMS["messages"], **FORMS["question"]}])
    error = refused(path, UnsupportedDataError)
    assert "messages and question" in str(error.given)
    assert "data.form" in str(error.remedy)


def test_no_form_at_all_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    error = refused(written(tmp_path, [{"Instuction": "a", "outptu": "b"}]), MissingColumnError)
    assert error.given == "Instuction, outptu"
    assert "'outptu'" in str(error) or "'Instuction'" in str(error)
    error = refused(written(tmp_path, [{"a": 1}]), MissingColumnError, form="alpaca")
    assert error.column == "instruction"
    nearly = written(tmp_path, [{"instruction": "a", "outputs": "b"}])
    assert "did you mean 'outputs'" in str(refused(nearly, MissingColumnError, form="alpaca"))


def test_turns_after_the_last_answer_are_left_out_and_counted(tmp_path: Path) -> None:
    records = [{"messages": [*SAID, {"role": "user", "content": f"thanks {i}"}]} for i in range(3)]
    records += [{"messages": [{"role": "user", "content": f"number {i}"}, *SAID]} for i in range(9)]
    records += [{"messages": ASKED}, {"messages": []}, {"messages": None}]
    records += [{"messages": [*ASKED, {"role": "assistant", "content": " "}]}]
    data = load_data(
        DataConfig(files={"north": written(tmp_path, records)}),
        TaskConfig(kind="causal-lm"),
        seed=0,
    )
    assert len(data.texts) == 10  # the three are one
    assert data.report.remarked[LATER] == 3
    assert data.report.dropped == {"repeated": 2, "no answer": 2, "no text": 2}
    assert any(line.startswith(f"3 rows: {LATER}") for line in data.report.lines())


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([{"role": "asistant", "content": "x"}], "did you mean 'assistant'"),
        ([{"role": "user", "content": "x"}, {"who": "y"}], "turn 2"),
        ([{"role": "user", "content": [{"type": "image"}]}], "more than text"),
        (["hello"], "turn 1"),
        ("hello", "not a list of messages"),
        (3, "not a list of messages"),
    ],
)
def test_conversations_that_are_none(tmp_path: Path, turns: Any, said: str) -> None:
    records = [{"messages": SAID}, {"messages": turns}]
    error = refused(written(tmp_path, records), BadValueError)
    assert (error.row, error.column) == (2, "messages")
    assert said in str(error)


def test_parts_of_a_message_and_tables_of_lists() -> None:
    from hushtune.common.tasks.conversations import messages_of

    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert messages_of([{"role": "User", "content": parts}]) == (message("user", "a\nb"),)
    table = {"from": ["human", "gpt"], "value": ["q", "a"]}
    assert messages_of(table) == (message("user", "q"), message("assistant", "a"))
    assert messages_of([{"role": "assistant", "content": None}]) == (message("assistant", ""),)


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), st.text(max_size=3))))
def test_the_last_answer_is_the_label_and_nothing_follows_it(turns: list[tuple[str, str]]) -> None:
    found = exchange([message(*turn) for turn in turns])
    places = [place for place, (role, _) in enumerate(turns) if role == "assistant"]
    before = turns[: places[-1]] if places else turns
    assert [(m["role"], m["content"]) for m in found.messages or ()] == before
    assert found.answer == ((turns[places[-1]][1] or None) if places else None)
    assert bool(found.remarks) == bool(places and places[-1] + 1 < len(turns))


def test_answers_are_neither_numbers_nor_names_of_what_is_missing(tmp_path: Path) -> None:
    records = [{"question": f"q{i}", "answer": a} for i, a in enumerate(["1.0", "None", "nan", 3])]
    config = DataConfig(files={"north": written(tmp_path, records)})
    data = load_data(config, TaskConfig(kind="causal-lm"), seed=0)
    assert sorted(data.answers) == ["1.0", "3", "None", "nan"]


def test_forms_are_for_answers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.form"):
        load_config(overrides=["data.source=demo", "data.form=alpaca"])
