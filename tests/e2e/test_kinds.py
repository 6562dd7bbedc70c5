"""Each kind of supervision from its file to a finished run, private and not, on a tiny model."""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from hushtune.common.errors import BadValueError, MissingColumnError
from hushtune.common.kinds import KINDS, Targets, higher_is_better
from hushtune.common.tasks import partition
from hushtune.simulations import plots, run
from hushtune.simulations.answers import canonical_inputs
from hushtune.simulations.edge import export_edge
from hushtune.simulations.outputs import SUMMARY_KEYS
from hushtune.simulations.saved import export, load

from ..conftest import GOOD, SITES, Settings, made_up_rows, write_csv

Row = tuple[Any, ...]


def score(text: str) -> int:
    """How many words of a made-up text are good ones, less the others: -1, 0 or 1."""
    return 1 if any(word in GOOD for word in text.split()) else -1


def of_text(target: Callable[[str], str]) -> tuple[list[Row], tuple[str, ...]]:
    rows = made_up_rows(dict.fromkeys(SITES, 60), seed=5)
    return [(site, text, target(text)) for site, text, _ in rows], ("site", "text", "label")


def of_pairs(target: Callable[[str, str], str]) -> tuple[list[Row], tuple[str, ...]]:
    """Two texts of one site, both good ones or neither."""
    rows = made_up_rows(dict.fromkeys(SITES, 120), seed=6)
    pairs = [(a, b) for a, b in zip(rows, rows[2:], strict=False) if a[0] == b[0]]
    header = ("site", "text", "other", "label")
    return [(a[0], a[1], b[1], target(a[1], b[1])) for a, b in pairs[::2] + pairs[1::4]], header


def of_columns(target: Callable[[str], str]) -> tuple[list[Row], tuple[str, ...]]:
    rows = made_up_rows(dict.fromkeys(SITES, 60), seed=7)
    made = [(site, text.split()[0], text, target(text)) for site, text, _ in rows]
    return made, ("site", "first", "rest", "label")


def words_of(text: str) -> str:
    return "good" if score(text) > 0 else "bad"


NUMBER = {"task__range": [-3.0, 3.0]}
CASES: dict[str, tuple[tuple[list[Row], tuple[str, ...]], dict[str, Any]]] = {
    "text-classification": (of_text(words_of), {}),
    "multi-label": (of_text(lambda t: "|".join({words_of(t), "the"} & {*t.split(), "good"})), {}),
    "text-regression": (of_text(lambda t: str(2 * score(t))), NUMBER),
    "text-pair-classification": (
        of_pairs(lambda a, b: "good" if score(a) + score(b) > 0 else "bad"),
        {"data__second": "other"},
    ),
    "text-pair-regression": (
        of_pairs(lambda a, b: str(score(a) + score(b))),
        {"data__second": "other", **NUMBER},
    ),
    "token-classification": (
        of_text(lambda t: " ".join("GOOD" if word in GOOD else "REST" for word in t.split())),
        {},
    ),
    "tabular-classification": (of_columns(words_of), {"data__columns": ["first", "rest"]}),
    "tabular-regression": (
        of_columns(lambda t: str(score(t))),
        {"data__columns": ["first", "rest"], **NUMBER},
    ),
    "recommendation": (
        of_columns(lambda t: str(score(t))),
        {"data__columns": ["first", "rest"], **NUMBER},
    ),
}


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are drawn in two tests below, in one of every kind."""
    if request.node.get_closest_marker("pictures"):
        return
    monkeypatch.setattr(plots, "plot_run", lambda *_: None)
    monkeypatch.setattr(partition, "plot", lambda *_: None)


def config_of(settings: Settings, folder: Path, kind: str, **changes: Any) -> Any:
    (rows, header), needed = CASES[kind]
    path = write_csv(folder / "rows.csv", rows, header)
    return settings.config(**{"task__kind": kind, "data__file": str(path), **needed, **changes})


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_it_learns_what_no_constant_answer_knows(
    settings: Settings, tmp_path: Path, kind: str
) -> None:
    """With the first blocks of the default model's real weights."""
    out = tmp_path / "run"
    numbers = "task__range" in CASES[kind][1]
    recipe = {
        "model__name": "minilm",
        "model__layer": 2,
        "train__rounds": 30 if numbers else 10,
        "train__warmup_rounds": 28 if numbers else 8,
        "train__schedule": "cosine",
        "train__local_steps": 4,
        "train__sampling_probability": 0.5,
        "train__learning_rate": 0.004 if numbers else 0.01,
        "train__warmup_learning_rate": 0.02 if numbers else 0.03,
    }
    summary = run(config_of(settings, tmp_path, kind, **recipe), out)
    metric, sign = summary["metric"], 1 if summary["higher_is_better"] else -1
    assert metric == KINDS[kind].metrics[0]
    assert summary["higher_is_better"] == higher_is_better(metric)
    assert sign * summary["value"] > sign * summary["baselines"]["majority"], summary["table"]


@pytest.mark.pictures
@pytest.mark.parametrize("kind", CASES)
def test_a_private_run_has_the_same_keys_a_statement_pictures_and_answers(
    settings: Settings, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "run"
    config = config_of(
        settings, tmp_path, kind, privacy__trust="site", train__rounds=2, train__warmup_rounds=1
    )
    summary = run(config, out)
    assert summary.keys() >= SUMMARY_KEYS
    assert json.loads((out / "summary.json").read_text()) == summary
    assert all(0 < row["epsilon"] <= 3.0 for row in summary["sites"].values())
    assert set(summary["metrics"]) >= {"loss", summary["metric"]}
    privacy = json.loads((out / "privacy.json").read_text())
    assert privacy["guarantee"] is True
    card = (out / "adapter" / "README.md").read_text()
    assert kind.replace("-", " ") in card
    assert (out / "curve.png").stat().st_size > 10_000
    (rows, header), needed = CASES[kind]
    text = rows[0][1]
    if "data__second" in needed:
        text = json.dumps([rows[0][1], rows[0][2]])
    elif "data__columns" in needed:
        text = json.dumps({name: rows[0][header.index(name)] for name in ("first", "rest")})
    trained = load(out)
    (answer,) = trained.predict([text])
    assert trained.columns == tuple(needed.get("data__columns", ()))
    told = answer.get("label", answer.get("answer"))
    if "range" in str(needed):
        assert -3.0 <= told <= 3.0
    elif kind == "token-classification":
        assert [word for word, _ in told] == text.split()
    elif kind == "multi-label":
        assert set(told) <= {"good", "the"}
    else:
        assert told in load(out).labels


EXAMPLES = {
    "text-pair-classification": json.dumps(["a sentence", "another"]),
    "text-pair-regression": json.dumps(["a sentence", "another"]),
    "token-classification": "words of a sentence",
}
"""What the code in a card asks, where it is not "a sentence"."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in CASES if kind[:3] not in ("tab", "rec")])
def test_a_merged_model_answers_alike_by_the_code_in_its_card(
    settings: Settings, tmp_path: Path, kind: str
) -> None:
    pytest.importorskip("sentence_transformers")
    out = tmp_path / "run"
    recipe = {"train__rounds": 3, "train__warmup_rounds": 2, "train__learning_rate": 0.2}
    run(config_of(settings, tmp_path, kind, **recipe), out)
    merged = export(out, tmp_path / "merged", merged=True)
    (code,) = re.findall(r"```python\n(.*?)```", (merged / "README.md").read_text(), re.DOTALL)
    assert "hushtune" not in code
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(code.replace("FOLDER", str(merged)), "card", "exec"), {})
    found = ast.literal_eval(printed.getvalue())
    (answer,) = load(out).predict([EXAMPLES.get(kind, "a sentence")])
    told = answer.get("label", answer.get("answer"))
    if kind == "token-classification":  # the card shows special tokens as well, and parts of words
        assert {tag for _, tag in told} <= {tag for _, tag in found}
        assert found[0][0] == "[CLS]"
    elif KINDS[kind].targets is Targets.NUMBER:
        assert found == [pytest.approx(told, abs=1e-4)]
    else:
        assert found == [told]


@pytest.mark.parametrize(
    ("kind", "asked", "found"),
    [
        ("text-pair-regression", '["a", "b"]', '["a", "b"]'),
        ("tabular-regression", "age: 41; home: ", '{"age": "41", "home": null}'),
        ("tabular-regression", '{"age": 41}', '{"age": 41}'),
        ("token-classification", '["The", "nurse"]', "The nurse"),
        ("token-classification", "The nurse", "The nurse"),
        ("text-classification", '["kept", "as it is"]', '["kept", "as it is"]'),
    ],
)
def test_what_is_asked_is_read_as_its_kind(kind: str, asked: str, found: str) -> None:
    assert canonical_inputs(KINDS[kind], [asked]) == [found]


@pytest.mark.parametrize("asked", ["ages: 41; home: rent", '{"home": "rent", "AGE": 41}'])
def test_a_column_that_the_model_does_not_know_is_told_with_the_nearest(asked: str) -> None:
    kind, known = KINDS["tabular-regression"], {"columns": ("age", "home")}
    with pytest.raises(MissingColumnError, match="did you mean 'age'") as caught:
        canonical_inputs(kind, ["age: 3", asked], **known)
    assert str(caught.value).startswith("input 2 ")
    assert "expected: age, home" in str(caught.value)
    # In the order in which the model has read them.
    assert canonical_inputs(kind, ["home: rent; age: 3"], **known) == [
        '{"age": "3", "home": "rent"}'
    ]


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        *(("text-pair-classification", one) for one in ("a text", '["one"]', '{"a": "b"}', "5")),
        *(
            ("text-pair-classification", one)
            for one in ('["a", "b", "c"]', '["a", 5]', '["", "b"]')
        ),
        *(("tabular-regression", one) for one in ("no cells", '["a", "b"]', "{}", "5")),
        *(("token-classification", one) for one in ('{"a": 1}', '["a", 1]', "[]")),
    ],
)
def test_what_is_asked_amiss_is_told_and_by_its_number(kind: str, asked: str) -> None:
    good = {"text-pair-classification": '["a", "b"]', "tabular-regression": "a: b"}
    with pytest.raises(BadValueError, match="input 2 is no") as caught:
        canonical_inputs(KINDS[kind], [good.get(kind, "a text"), asked])
    assert "expected" in str(caught.value)


def check_edge_card(folder: Path, kind: str) -> None:
    """The code in the card of a model for devices answers as the run does."""
    example = EXAMPLES.get(kind, "a sentence").replace("words of a", "a")
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "edge" / "README.md").read_text(), re.S)
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(code.replace("FOLDER", str(folder / "edge")), "card", "exec"), {})
    (answer,) = load(folder / "run").predict([example])
    told, found = answer.get("label", answer.get("answer")), printed.getvalue().strip()
    if kind == "token-classification":
        assert {tag for _, tag in told} <= {tag for _, tag in ast.literal_eval(found)}
    elif KINDS[kind].targets is Targets.NUMBER:
        assert ast.literal_eval(found) == [pytest.approx(told, abs=1e-4)]
    elif KINDS[kind].targets is Targets.CLASSES:
        assert ast.literal_eval(found) == [told]
    else:
        assert found == told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "figure"),
    [
        ("text-regression", "mae"),
        ("multi-label", "micro_f1"),
        ("text-pair-classification", "roc_auc"),
        ("token-classification", "token_accuracy"),
    ],
)
def test_a_model_for_devices_is_judged_by_the_figure_of_its_run(
    settings: Settings, tmp_path: Path, kind: str, figure: str
) -> None:
    pytest.importorskip("onnxruntime")
    recipe = {"train__rounds": 3, "train__warmup_rounds": 2, "train__learning_rate": 0.05}
    summary = run(
        config_of(settings, tmp_path, kind, task__metric=figure, **recipe), tmp_path / "run"
    )
    told = export_edge(tmp_path / "run", tmp_path / "edge", int8=False)
    assert told["largest_difference"] < 1e-3
    assert (told["figure"], told["higher_is_better"]) == (figure, summary["higher_is_better"])
    assert told["test_rows"] == sum(row["test_rows"] for row in summary["sites"].values()) > 0
    for form in told["forms"]:
        assert form["value"] == pytest.approx(summary["value"], abs=1e-3)
        assert form["agreement"] == 1.0
    card = (tmp_path / "edge" / "README.md").read_text(encoding="utf-8")
    assert f"{summary['value']:.3f}" in card.partition("| PyTorch float32 |")[2]
    check_edge_card(tmp_path, kind)


@pytest.mark.parametrize("kind", ["text-regression", "token-classification"])
@pytest.mark.parametrize("trust", ["server", "distributed"])
def test_under_every_trust_model(settings: Settings, tmp_path: Path, kind: str, trust: str) -> None:
    changes: dict[str, Any] = {"privacy__trust": trust, "train__rounds": 2}
    if trust == "server":
        changes |= {"privacy__unit": "client", "privacy__epsilon": 50.0, "privacy__delta": 1e-2}
    config = config_of(settings, tmp_path, kind, train__warmup_rounds=1, **changes)
    assert run(config, tmp_path / "run")["rounds"] == 2


def test_sites_tell_the_score_of_their_kind(settings: Settings, tmp_path: Path) -> None:
    config = config_of(
        settings,
        tmp_path,
        "text-regression",
        metrics__release="public",
        train__rounds=2,
        train__warmup_rounds=1,
    )
    run(config, tmp_path / "run")
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    told = row["released"]
    assert set(told["sites"]["east"]) == {"closeness", "loss"}
    assert 0 <= told["closeness"] <= 1


@pytest.mark.pictures
def test_a_figure_that_is_better_the_lower_it_is(
    settings: Settings, tmp_path: Path, hushtune: Any
) -> None:
    """The worst site is the one with the largest error, and pictures and tables say which way."""
    config = config_of(
        settings, tmp_path, "text-regression", train__rounds=2, train__warmup_rounds=1
    )
    summary = run(config, tmp_path / "run")
    values = {site: row["value"] for site, row in summary["sites"].items()}
    assert summary["worst_site"]["site"] == max(values, key=values.__getitem__)
    assert summary["spread"] == pytest.approx(max(values.values()) - min(values.values()))
    assert (tmp_path / "run" / "curve.png").stat().st_size > 10_000
    again = hushtune("simulate", "--out", tmp_path / "run", "--resume")
    assert "lower is better" in again.out
    assert "RMSE" in again.out
