"""A process's one copy of model, data and activations, shared by all sites and baselines."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from hushtune.common import lora
from hushtune.common.adapter import AdapterState
from hushtune.common.config import PrivacyConfig, RunConfig, TaskConfig
from hushtune.common.config_columns import COLUMNS
from hushtune.common.config_io import config_hash
from hushtune.common.errors import (
    ConfigError,
    DataError,
)
from hushtune.common.lora_rules import RULES
from hushtune.common.planning import POOLED, global_rank
from hushtune.common.self_test import kept_precision
from hushtune.common.tasks.activations import padded_alike
from hushtune.common.tasks.assets import public_name, resolve_model
from hushtune.common.tasks.base_model import adapted_model
from hushtune.common.tasks.data import LabelledRows, load_data
from hushtune.common.tasks.encoder import load_encoder
from hushtune.common.tasks.few_shot import check_shots
from hushtune.common.tasks.kinds.registry import head_for, prepare
from hushtune.common.tasks.kinds.texts import padding_id, separator_id
from hushtune.common.tasks.supervised import Supervised
from hushtune.common.tasks.units import Rows, Units
from hushtune.common.tuning import GradientMethod, keep_freed_memory

Progress = Callable[[str, int, int], None]
"""Hears (what, done, total) while something long is prepared."""


class Workspace:
    """Everything that runs over the same data, model and adapter settings share."""

    def __init__(
        self,
        config: RunConfig,
        data: LabelledRows,
        progress: Progress | None,
        *,
        layers: bool = False,
    ) -> None:
        """``layers``: see ``Supervised``."""
        self.data = data
        self.base_name = public_name(config.model.name)  # what is written beside an adapter
        source = str(resolve_model(config.model.name))
        self.encoder = load_encoder(source, config.task, config.model, config.data)
        prepared = prepare(config, data, self.encoder)
        if config.speed.pad == "max_tokens":
            prepared = replace(
                prepared,
                inputs=padded_alike(prepared.inputs),
                targets=padded_alike(prepared.targets),
                augmented=padded_alike(prepared.augmented),
            )
        self.notes = prepared.notes
        model = adapted_model(
            config,
            source,
            data.label_names,
            head=head_for(config.task, config.model),
            num_outputs=prepared.objective.num_outputs,
            pad_id=padding_id(self.encoder)
            if isinstance(self.encoder, PreTrainedTokenizerBase)
            else None,
        )
        if isinstance(self.encoder, PreTrainedTokenizerBase):
            model.separator = separator_id(self.encoder)
        self.initial_state: AdapterState = lora.initial_state(model, seed=config.seed)
        self.task = Supervised(
            model,
            prepared.inputs,
            prepared.targets,
            prepared.objective,
            evaluation_batch=prepared.evaluation_batch,
            cache_megabytes=config.train.cache_megabytes,
            on_fill=None if progress is None else lambda i, n: progress("frozen features", i, n),
            augmented=prepared.augmented,
            layers=layers,
        )

    def data_notes(self) -> list[str]:
        """What was left out of the data, and what is odd of them: one readable line each."""
        return [*self.data.report.lines(), *self.notes]

    def warm(self, *, features: bool = True) -> None:
        """Fill the activations now, so that no round pays for them; see ``Supervised.fill``."""
        self.task.fill(features=features)

    def train_units(self, site: str) -> Units:
        """Training rows of a site, or of all sites together, by the unit that is protected."""
        return self.data.units(self.rows(site, "train"))

    def rows(self, site: str, part: str) -> Rows:
        """Rows of one part (train, validation, test) of a site, or of all sites together."""
        splits = self.data.sites
        chosen = [splits[site]] if site != POOLED else list(splits.values())
        return np.concatenate([getattr(split, part) for split in chosen])

    def dataset_id(self, site: str) -> str:
        """What a ledger knows a site's rows by."""
        return self.data.fingerprints[site] if site != POOLED else POOLED


def resolve(config: RunConfig) -> RunConfig:
    """A configuration with every site's public size and the precision in it.

    Sizes that are not declared are taken from the data here, once; the statement says so. From
    then on nothing depends on how many rows a site really has.
    """
    if config.model.precision == "auto":
        model = config.model.model_copy(update={"precision": kept_precision()})
        config = config.model_copy(update={"model": model})
    if config.data.public_sizes:
        return config
    data = _data(config)  # never of rows that only their sites see, which must declare sizes
    sizes = {site: len(data.units(split.train)) for site, split in data.sites.items()}
    return config.model_copy(
        update={"data": config.data.model_copy(update={"public_sizes": sizes})}
    )


def dataset_ids(config: RunConfig) -> Mapping[str, str]:
    """What a ledger knows each site's rows by; loads no model."""
    return _data(config).fingerprints


def check_sizes(config: RunConfig) -> None:
    """Refuse declared sizes that are not those of all sites of the data, and no others."""
    sizes = set(config.data.public_sizes)
    sites = sizes if config.data.source == "sites" else set(_data(config).sites)
    if config.data.source != "sites":
        check_shots(config.data.shots, config.data.public_sizes, len(_data(config).label_names))
    if POOLED in sites:
        raise DataError(
            f"a site cannot be called {POOLED!r}: the pooled baseline is", remedy="rename the site"
        )
    if sites != sizes:
        raise ConfigError(
            "data.public_sizes must name every site of the data, and no other",
            given=", ".join(sorted(sizes)),
            expected=", ".join(sorted(sites)),
            remedy="name these sites in data.public_sizes, or leave it out",
        )


_workspaces: dict[str, Workspace] = {}
_tables: dict[str, LabelledRows] = {}


def open_workspace(
    config: RunConfig, progress: Progress | None = None, *, layers: bool = False
) -> Workspace:
    """The process's workspace for a configuration; made when first asked for, then kept.

    ``layers``: for heads on several frozen layers, as ``Supervised`` has them.
    """
    data = _data(config)
    unknown = set(config.data.public_sizes) - set(data.sites) - {POOLED}
    if unknown:
        raise ConfigError(
            "data.public_sizes names a site that the data do not have",
            given=", ".join(sorted(unknown)),
            expected=", ".join(data.sites),
            remedy="leave that site out of data.public_sizes",
        )
    key = workspace_key(config)
    if key not in _workspaces:
        if config.speed.keep_freed_memory:
            keep_freed_memory()
        # One pretrained model in memory at a time.
        if _workspaces and config.model.name != COLUMNS:
            _workspaces.clear()
            gc.collect()
        _workspaces[key] = Workspace(config, data, progress, layers=layers)
    workspace = _workspaces[key]
    workspace.task.model.gradients = GradientMethod(config.speed.gradients)
    workspace.task.model.pack = config.speed.pack
    return workspace


def _data(config: RunConfig) -> LabelledRows:
    key = config_hash(_stripped(config)) + _stamps(config)
    if key not in _tables:
        _tables.clear()
        _tables[key] = load_data(
            config.data,
            config.task,
            seed=config.seed,
            records_per_group=config.privacy.records_per_group,
        ).without_unused()
    return _tables[key]


def _stamps(config: RunConfig) -> str:
    """Time and size of the data files: a file that was changed is read again."""
    paths = [config.data.file, config.data.folder, *(config.data.files or {}).values()]
    given = [path for path in paths if path is not None and path.exists()]
    folders = [path for path in given if path.is_dir()]  # whose own time tells of no file in them
    inside = [path for folder in folders for path in sorted(folder.rglob("*"))]
    found = [path.stat() for path in (*given, *inside)]
    return "".join(f"-{stat.st_mtime_ns}-{stat.st_size}" for stat in found)


def _stripped(config: RunConfig) -> RunConfig:
    """A configuration reduced to what the table of rows depends on."""
    left_out = ("public_sizes", "class_weights", "column_ranges", "column_values")
    data = config.data.model_copy(update={key: {} for key in left_out})
    return RunConfig(
        task=_task_alone(config), data=data, seed=config.seed, privacy=_unit_alone(config)
    )


def _task_alone(config: RunConfig) -> TaskConfig:
    """Of the settings of the task those that decide which rows there are."""
    return config.task.model_copy(update={"metric": None, "positive": None})


def _unit_alone(config: RunConfig) -> PrivacyConfig:
    """Of the settings of privacy those that decide which rows there are."""
    privacy = config.privacy
    trust = "off" if privacy.unit == "client" else "site"  # any under which the unit can be
    return PrivacyConfig(
        trust=trust, unit=privacy.unit, records_per_group=privacy.records_per_group
    )


def workspace_key(config: RunConfig) -> str:
    """What model, rows and activations depend on: runs with equal ones share a workspace."""
    data = config.data.model_copy(update={"public_sizes": {}})
    cache = f"{config.train.cache_megabytes}-{config.train.pixel_megabytes}-{config.speed.pad}"
    kept = RunConfig(
        task=config.task,
        data=data,
        seed=config.seed,
        model=config.model,
        adapter=config.adapter.model_copy(update={"rank": global_rank(config), "ranks": {}}),
        privacy=_unit_alone(config),
        augment=config.augment,
    )
    inner = "R" if RULES[config.aggregation.rule].inner else ""
    smoothing = config.train.label_smoothing
    return f"{config_hash(kept)}{inner}-{smoothing}-{cache}-{os.getpid()}{_stamps(config)}"
