"""Runs on images from files to an exported model, with privacy and without it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hushtune.common.config_io import load_config
from hushtune.common.errors import BadValueError, ConfigError, MissingFileError
from hushtune.common.tasks import workspace
from hushtune.simulations import run
from hushtune.simulations.edge import export_edge
from hushtune.simulations.saved import export, load

from ..conftest import Command, made_up_rows, write_csv
from ..pictures import picture, picture_folder, vision_model

pytestmark = pytest.mark.slow

QUICK = """
task.kind = "image-classification"
[adapter]
rank = 2
[privacy]
delta = 1e-3
[train]
rounds = 3
warmup_rounds = 1
local_steps = 2
sampling_probability = 0.4
[simulation]
baselines = false
"""


@pytest.fixture(autouse=True)
def _fresh() -> None:
    workspace._workspaces.clear()  # pyright: ignore[reportPrivateUsage]


def trained(
    folder: Path, family: str, head: str, *, data: str, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    picture_folder(folder / "images", each=24)
    vision_model(folder / "model", family)
    file = folder / "run.toml"
    model = f'[model]\nname = "./model"\nhead = "{head}"\n[data]\n{data}\n'
    file.write_text(QUICK + model, encoding="utf-8")
    return run(load_config(path=file, overrides=list(overrides)), folder / "out")


def used_as_its_card_says(folder: Path, image: Path) -> str:
    """What the code in a card prints."""
    return used(folder, image)[0]


def used(folder: Path, image: Path) -> tuple[str, dict[str, Any]]:
    """The same, and all names that the code has defined."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    code = code.replace("FOLDER", str(folder)).replace("image.png", str(image))
    printed = io.StringIO()
    defined: dict[str, Any] = {}
    with redirect_stdout(printed):
        exec(compile(code, "card", "exec"), defined)
    return printed.getvalue(), defined


@pytest.mark.pictures
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_private_run_from_a_folder_to_an_exported_model(
    tmp_path: Path, hushtune: Command
) -> None:
    summary = trained(tmp_path, "vit", "mean", data='folder = "images"')
    assert summary["task"] == "image-classification"
    assert summary["value"] >= 0.9
    assert 0 < summary["sites"]["north"]["epsilon"] <= 3
    out = tmp_path / "out"
    dark, light = (tmp_path / "images" / "south" / name / "003.png" for name in ("dark", "light"))
    model = load(out)
    first, second = model.predict([str(dark), str(light)])
    assert (first["label"], second["label"]) == ("dark", "light")
    answer = hushtune("predict", out, dark, "--json")
    assert answer.status == 0
    assert json.loads(answer.out)[0]["label"] == "dark"
    assert "preprocessor_config.json" in {path.name for path in (out / "adapter").iterdir()}
    card = (out / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: image-classification" in card
    assert "images of 2 sites" in card
    assert str(tmp_path / "images") not in card
    assert "'dark'" in used_as_its_card_says(out / "adapter", dark)
    expected = model.logits([str(light)])
    export(out, tmp_path / "merged", merged=True)
    assert "['light']" in used_as_its_card_says(tmp_path / "merged", light)
    export_edge(out, tmp_path / "device", int8=False)
    for name, image in (("dark", dark), ("light", light)):
        assert used_as_its_card_says(tmp_path / "device", image) == f"{name}\n"
    pixels = torch.from_numpy(used(tmp_path / "device", light)[1]["rows"]["pixel_values"])
    as_trained = model.inputs([str(light)]).inputs(np.arange(1))["pixel_values"]
    torch.testing.assert_close(pixels, as_trained, rtol=0, atol=1e-5)
    export(out, tmp_path / "adapter", merged=False)
    torch.testing.assert_close(load(tmp_path / "adapter").logits([str(light)]), expected)
    (tmp_path / "bad.png").write_bytes(b"?")
    with pytest.raises(BadValueError, match="no image"):
        model.predict([str(tmp_path / "bad.png")])
    with pytest.raises(MissingFileError):
        model.predict([str(tmp_path / "none.png")])


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(("family", "head"), [("resnet", "own"), ("dinov2", "own")])
def test_a_run_without_privacy_on_changed_images_of_a_table(
    family: str, head: str, tmp_path: Path
) -> None:
    picture_folder(tmp_path / "images", each=24)
    rows = [
        (path.parent.parent.name, path.relative_to(tmp_path), path.parent.name)
        for path in sorted((tmp_path / "images").rglob("*.png"))
    ]
    write_csv(tmp_path / "rows.csv", rows, header=("place", "path", "class"))
    summary = trained(
        tmp_path,
        family,
        head,
        data='file = "rows.csv"\nsite = "place"\ntext = "path"\nlabel = "class"',
        overrides=[
            'privacy.trust="off"',
            "augment.views=2",
            "augment.flip=true",
            "augment.rotation=10",
            "augment.crop=0.2",
            "augment.noise=0.02",
            "train.rounds=6",
            "train.local_steps=4",
            "train.learning_rate=0.02",
            "train.warmup_learning_rate=0.02",
        ],
    )
    assert summary["trust"] == "off"
    assert summary["value"] >= 0.8
    out, light = tmp_path / "out", tmp_path / "images" / "north" / "light" / "001.png"
    expected = load(out).logits([str(light)])
    label = f"['{load(out).labels[int(expected.argmax())]}']"
    assert label in used_as_its_card_says(out / "adapter", light)
    export(out, tmp_path / "merged", merged=True)
    assert label in used_as_its_card_says(tmp_path / "merged", light)


def test_changed_texts_are_trained_on_with_privacy(tiny_bert: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", made_up_rows({"north": 60, "south": 60}))
    file = tmp_path / "run.toml"
    settings = QUICK.replace('task.kind = "image-classification"', "")
    data = f'[model]\nname = "{tiny_bert}"\n[data]\nfile = "rows.csv"\nsite = "site"\n'
    changed = "[augment]\nviews = 2\nword_dropout = 0.2\nword_swap = 0.2\n"
    file.write_text(settings + data + changed, encoding="utf-8")
    summary = run(load_config(path=file), tmp_path / "out")
    assert summary["sites"]["north"]["epsilon"] <= 3


def test_a_preview_of_images_tells_size_and_class(tmp_path: Path, hushtune: Command) -> None:
    picture_folder(tmp_path, each=2)
    answer = hushtune("data", "preview", tmp_path / "north", "--json")
    row = json.loads(answer.out)["rows"][0]
    assert (answer.status, row["label"], row["size"]) == (0, "dark", [20, 18])
    answer = hushtune("data", "preview", tmp_path, "--site", "site")
    assert "20 x 18 pixels" in answer.out
    assert "site north" in answer.out


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ('task.kind = "text-classification"\n[data]\nfolder = "images"', "data.folder"),
        ('task.kind = "image-classification"\n[data]\ndataset = "some/set"\nsite = "s"', "folder"),
        ('[data]\nsource = "demo"\n[augment]\nflip = true', "augment.flip"),
        ('[data]\nsource = "demo"\n[augment]\nviews = 4', "augment.views"),
        ('[data]\nsource = "demo"\n[model]\nimage_size = 64', "model.image_size"),
        (
            'task.kind = "image-classification"\n[data]\nfolder = "x"\n[augment]\nword_swap = 0.1',
            "augment.word_swap",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    settings: str, what: str, tmp_path: Path
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(settings, encoding="utf-8")
    with pytest.raises(ConfigError, match=what.replace(".", r"\.")):
        load_config(path=file)


def test_a_folder_of_images_that_was_changed_is_read_again(tmp_path: Path) -> None:
    config_of = {"folder": str(picture_folder(tmp_path / "images", each=4))}
    file = tmp_path / "run.toml"
    file.write_text(f'{QUICK}[data]\nfolder = "{config_of["folder"]}"\n', encoding="utf-8")
    before = workspace.resolve(load_config(path=file)).data.public_sizes
    for seed in range(100, 110):
        picture(tmp_path / "images" / "north" / "dark" / f"{seed}.png", seed, light=False)
    assert workspace.resolve(load_config(path=file)).data.public_sizes != before


def test_a_model_of_images_for_devices_is_judged_on_the_run_s_test_rows(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    summary = trained(
        tmp_path, "dinov2", "mean", data='folder = "images"', overrides=["model.image_size=32"]
    )
    told = export_edge(tmp_path / "out", tmp_path / "edge", int8=False)
    assert told["figure"] == "accuracy"
    assert told["test_rows"] == sum(row["test_rows"] for row in summary["sites"].values()) > 0
    assert [form["value"] for form in told["forms"]] == [pytest.approx(summary["value"])] * 2
