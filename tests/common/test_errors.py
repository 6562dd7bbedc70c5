"""The tree of errors: stable codes, complete texts, a documented section each, picklable."""

from __future__ import annotations

import ast
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from hushtune.common import errors
from hushtune.common.config_io import loads_config
from hushtune.common.errors import ConfigError, DataError, HushtuneError, UpdateRejectedError

ROOT = Path(__file__).resolve().parents[2]


def _tree(root: type[HushtuneError]) -> list[type[HushtuneError]]:
    return [root, *(below for child in root.__subclasses__() for below in _tree(child))]


ALL = [error for error in _tree(HushtuneError) if getattr(errors, error.__name__, None) is error]

# Codes are a contract: scripts and documents refer to them. A new class adds a line here.
CODES = {
    "HushtuneError": "HT000",
    "ConfigError": "HT100",
    "UnknownKeyError": "HT101",
    "PresetError": "HT102",
    "DataError": "HT200",
    "MissingFileError": "HT201",
    "EmptyDataError": "HT202",
    "MissingColumnError": "HT203",
    "EncodingError": "HT204",
    "LabelError": "HT205",
    "TooFewRowsError": "HT206",
    "BadValueError": "HT207",
    "UnsupportedDataError": "HT208",
    "ModelError": "HT300",
    "MissingWeightsError": "HT301",
    "TargetModuleError": "HT302",
    "UnsupportedModelError": "HT303",
    "PrivacyError": "HT400",
    "BudgetExceededError": "HT401",
    "LedgerError": "HT402",
    "PlanError": "HT403",
    "PolicyError": "HT404",
    "FederationError": "HT500",
    "QuorumError": "HT501",
    "UpdateRejectedError": "HT502",
    "MessageError": "HT503",
    "SiteError": "HT504",
    "SecureSumError": "HT505",
    "RunError": "HT600",
    "OutputExistsError": "HT601",
    "CheckpointError": "HT602",
    "DiskFullError": "HT603",
    "InterruptedRunError": "HT604",
    "AssetError": "HT700",
    "AssetMismatchError": "HT701",
    "DeploymentError": "HT800",
    "KeyFileError": "HT801",
    "SignatureError": "HT802",
    "CertificateError": "HT803",
    "EnrolmentError": "HT804",
    "UnreachableError": "HT805",
    "BusyError": "HT806",
}


def test_codes_are_the_published_ones() -> None:
    assert {error.__name__: error.code for error in ALL} == CODES


def test_a_family_shares_its_hundred() -> None:
    for error in ALL:
        parent = error.__mro__[1]
        if parent not in (HushtuneError, Exception):
            assert issubclass(parent, HushtuneError)
            assert error.code[:3] == parent.code[:3], error


def test_every_error_has_a_section_and_every_section_an_error() -> None:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (HT\d{3}) (\w+)$", text, flags=re.MULTILINE)
    assert len(sections) == len(set(sections))
    assert {name: code for code, name in sections} == CODES
    for body in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        assert "**What to do.**" in body, body.splitlines()[0]


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = re.findall(r"(\w+Error) +(HT\d{3})", errors.__doc__ or "")
    assert dict(drawn) == CODES


def test_text_has_message_given_expected_and_remedy_in_order() -> None:
    error = ConfigError("rounds is wrong", given=0, expected="1 or more", remedy="set 12")
    assert str(error) == "rounds is wrong\n  given: 0\n  expected: 1 or more\n  do: set 12"


def test_text_leaves_out_what_is_not_known_but_shows_falsy_values() -> None:
    assert str(HushtuneError("x")) == "x"
    assert str(HushtuneError("x", given=0)) == "x\n  given: 0"
    assert str(HushtuneError("x", given=False)) == "x\n  given: False"


def test_data_errors_say_where() -> None:
    error = DataError("no number", file=Path("a.csv"), row=17, column="rating", given="nan")
    assert str(error) == ("no number\n  where: file a.csv, row 17, column 'rating'\n  given: nan")
    assert str(DataError("no rows", file="a.csv")) == "no rows\n  where: file a.csv"
    assert str(DataError("no rows")) == "no rows"


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_errors_survive_pickling(kind: type[HushtuneError]) -> None:
    error = kind("what", given={"a": 1}, expected="b", remedy="c")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert str(back) == str(error)
    assert (back.message, back.given, back.expected, back.remedy) == ("what", "{'a': 1}", "b", "c")


def test_pickling_keeps_what_subclasses_add() -> None:
    data = pickle.loads(pickle.dumps(DataError("x", file="f", row=3, column="c")))
    assert (data.file, data.row, data.column) == ("f", 3, "c")
    rejected = pickle.loads(pickle.dumps(UpdateRejectedError("x", reason="norm")))
    assert rejected.reason == "norm"


RAISED = {"refuse"} | {e.__name__ for e in ALL if issubclass(e, (ConfigError, DataError))}
SPEAKS_OF_DATA = (
    *(f"common/hushtune/common/config_{name}.py" for name in ("task", "kind", "data", "columns")),
    "common/hushtune/common/config_column_lists.py",
    "common/hushtune/common/tasks",
    "simulations/hushtune/simulations/data_options.py",
    "simulations/hushtune/simulations/datacheck",
)


def without_remedy(source: str) -> list[int]:
    """Lines of errors that are made without saying what to do."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    made = (c for c in calls if isinstance(c.func, ast.Name) and c.func.id in RAISED)
    return [c.lineno for c in made if not {"remedy", None} & {word.arg for word in c.keywords}]


def test_every_error_about_data_and_targets_says_what_to_do() -> None:
    """But for files of named data, which are pinned: none but a damaged disk changes them."""
    assert without_remedy('raise LabelError("a", given="b")') == [1]
    found: dict[str, list[int]] = {}
    for place in SPEAKS_OF_DATA:
        path = ROOT / place
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            if "packaged" not in file.parts and (lines := without_remedy(file.read_text("utf-8"))):
                found[str(file.relative_to(ROOT))] = lines
    assert found == {}


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ({"metric": "acuracy"}, "do: did you mean 'accuracy'? Or leave task.metric out"),
        ({"metric": "rmse"}, "do: leave task.metric out for accuracy"),
        ({"range": [0.0, 1.0]}, "do: leave task.range out"),
        ({"kind": "text-regression", "range": [5.0, 1.0]}, "do: set task.range = [1, 5]"),
        ({"kind": "text-regression"}, "do: set task.range"),
    ],
)
def test_settings_of_a_task_are_refused_with_what_to_do(task: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loads_config(tomli_w.dumps({"task": task, "data": {"source": "demo"}}))
    assert told in str(caught.value)
