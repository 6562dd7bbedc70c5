"""A trained adapter's folder: peft's files, head, tokenizer and what is needed to use them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hushtune.common.adapter import AdapterState
from hushtune.common.config import AdapterConfig, DataConfig, ModelConfig, TaskConfig
from hushtune.common.config_columns import column_names
from hushtune.common.errors import DiskFullError
from hushtune.common.files import write_errors
from hushtune.common.kinds import Inputs
from hushtune.common.lora_files import plain_adapter, save_adapter
from hushtune.common.tasks.workspace import Workspace

DESCRIPTION = "hushtune.json"


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """What is needed beside peft's files to use an adapter; ``columns``: of a table, as they were
    read."""

    labels: tuple[str, ...]
    model: Mapping[str, Any]
    adapter: Mapping[str, Any]
    task: Mapping[str, Any]
    fingerprint: str
    columns: tuple[str, ...] = ()


def write_adapter_folder(
    workspace: Workspace,
    state: AdapterState,
    folder: Path,
    *,
    card: str,
    model: ModelConfig,
    adapter: AdapterConfig,
    task: TaskConfig,
    data: DataConfig,
) -> None:
    """Write an adapter in peft's format, its head, what encodes its inputs (tokenizer, image
    processor or columns), model card and description.

    What a rule changed of the frozen weights is in it: see ``lora_files.plain_adapter``.

    Written to a temporary folder and moved into place whole. Raises DiskFullError.
    """
    plain = plain_adapter(state)
    shape = {"rank": plain.spec.rank, "alpha": plain.spec.alpha, "rslora": plain.spec.rslora}
    description = SavedModel(
        labels=workspace.data.label_names,
        model=model.model_dump(mode="json"),
        adapter={**adapter.model_dump(mode="json"), **shape, "ranks": {}},
        task=task.model_dump(mode="json", exclude_none=True),
        fingerprint=workspace.task.model.fingerprint,
        columns=column_names(data) if task.of.inputs is Inputs.COLUMNS else (),
    )
    text = json.dumps(asdict(description), indent=2, sort_keys=True)
    with whole_folder(folder, replace=True) as partial:
        save_adapter(workspace.task.model, plain, partial, base_name=workspace.base_name)
        workspace.encoder.save_pretrained(str(partial))
        (partial / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
        (partial / "README.md").write_text(card, encoding="utf-8")


@contextmanager
def whole_folder(to: Path, *, replace: bool = False, private: bool = False) -> Generator[Path]:
    """A temporary folder that takes the place of ``to`` when all in it is written.

    ``private``: for its owner alone.
    """
    with write_errors(to):
        to.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=to.parent, prefix=f".{to.name}."))
    try:
        yield partial
        folders, files = (0o700, 0o600) if private else (0o755, 0o644)
        for path in (partial, *partial.rglob("*")):  # some libraries' are their owner's alone
            path.chmod(folders if path.is_dir() else files)
        if replace and to.exists():
            shutil.rmtree(to)
        partial.replace(to)  # over an empty folder too
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, SafetensorError) and "No space left" in str(error):
            raise DiskFullError(
                "the disk is full", given=str(to), remedy="free some space and try again"
            ) from error
        raise
