"""The settings of [data]: where the labelled rows come from, and who holds which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hushtune.common.config_base import (
    Count,
    FilePath,
    Name,
    Names,
    Positive,
    Range,
    Section,
    refuse,
    refuse_balanced,
)
from hushtune.common.config_column_lists import check_column_lists

SOURCES = ("source", "file", "files", "folder", "dataset")
"""Keys of [data] of which exactly one names where the rows come from."""


class DataConfig(Section):
    """Where the labelled rows come from, how they are cleaned, and who holds which."""

    source: Name | None = Field(
        default=None,
        description="data by name, such as demo = rated sentences from four real sites (all are in "
        "docs/data.md); sites = each site has rows of its own, which its site.toml names, and "
        "which nobody else reads",
        examples=["demo"],
    )
    labels: Names | None = Field(
        default=None,
        description="all labels, where the data do not tell them: needed with source = sites, as "
        "the sites must number them alike. A row with any other label is refused",
        examples=[["negative", "positive"]],
    )
    file: FilePath | None = Field(
        default=None,
        description="one file (CSV, TSV, JSON, JSONL, Parquet; .txt with a text a line; .conll "
        "with words and tags; all but Parquet also as .gz); relative to this file's folder; what "
        "separates the cells of a CSV (comma, semicolon, tab or bar) follows from its header",
        examples=["all.csv"],
    )
    files: Mapping[Name, FilePath] | None = Field(
        default=None,
        description="one file a site: site name = path; of images also a folder with CLASS/FILE",
        examples=[{"north": "north.csv"}],
    )
    folder: FilePath | None = Field(
        default=None,
        description="for images: a folder with SITE/CLASS/FILE; with a partition CLASS/FILE",
        examples=["images"],
    )
    dataset: Name | None = Field(
        default=None,
        description="an id of the `datasets` library, or a folder saved by it",
        examples=["a"],
    )
    site: Name | None = Field(
        default=None, description="the column that names each row's site", examples=["hospital"]
    )
    group: Name | None = Field(
        default=None,
        description="the column that names each row's patient or user, for privacy.unit = group",
        examples=["patient"],
    )
    split_by: Name | None = Field(
        default=None,
        description="a column whose rows of one value are all for training, or for validation, or "
        "for the test: a document's sentences, say; it changes no privacy",
        examples=["document"],
    )
    text: Name = Field(
        default="text",
        description="the column with the text, the first of two texts, or an image's path",
    )
    second: Name | None = Field(
        default=None,
        description="for pairs: the column with the second text",
        examples=["hypothesis"],
    )
    columns: Names = Field(
        default=(),
        description="for tables: the columns that are read, in place of text",
        examples=[["age", "income"]],
    )
    column_ranges: Mapping[Name, Range] = Field(
        default_factory=dict[str, tuple[float, float]],
        description="for tables and model.name = columns: least and largest value of each column "
        "of numbers, from public knowledge and never from the rows; what is outside is moved to "
        "the end and counted",
        examples=[{"age": [0.0, 120.0]}],
    )
    column_values: Mapping[Name, Names] = Field(
        default_factory=dict[str, tuple[str, ...]],
        description="the same: all values of each column of categories; another value is none of "
        "them",
        examples=[{"job": ["nurse", "clerk"]}],
    )
    label: Name = Field(
        default="label",
        description="the column with the target: text or a number, each different value a class; "
        "or, as task.kind says, several classes joined by |, a number, a tag for each word, or an "
        "answer",
    )
    form: Literal[
        "auto", "columns", "messages", "sharegpt", "alpaca", "prompt", "question", "text"
    ] = Field(
        default="auto",
        description="of instructions and answers: which columns hold them; auto = as their names "
        "say, and data.text and data.label where either is set (docs/data-forms.md)",
    )
    unescape_html: bool = Field(
        default=False,
        description="whether HTML entities of all cells, such as &amp;, become characters",
    )
    validation_fraction: float = Field(
        default=0.1, ge=0, lt=1, description="share of each site's rows for validation"
    )
    test_fraction: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="share of each site's rows for the test; never trains anything",
    )
    folds: Annotated[int, Field(ge=2, le=1000)] | None = Field(
        default=None,
        description="cross-validation: each site's rows in so many parts, of which one is tested "
        "on in place of test_fraction; hushtune simulate --folds sets it",
        examples=[5],
    )
    fold: Count | None = Field(
        default=None, description="with folds: which part is tested on, from 1", examples=[1]
    )
    left_out: Name | None = Field(
        default=None,
        description="a site that takes no part in training, and whose rows are all tested on; "
        "hushtune simulate --folds sites sets it",
        examples=["north"],
    )
    partition: Literal["natural", "iid", "dirichlet", "quantity", "shards"] = Field(
        default="natural", description="how rows are dealt to sites; natural = as the data say"
    )
    sites: Count | None = Field(
        default=None,
        description="how many sites a partition other than natural makes",
        examples=[4],
    )
    alpha: Positive = Field(
        default=0.5, description="skew of dirichlet and quantity: small = very unequal sites"
    )
    shards_per_site: Count = Field(default=2, description="shards: label-sorted pieces a site gets")
    max_rows_per_site: Count | None = Field(
        default=None, description="a seeded subsample of each site, for quick runs", examples=[1000]
    )
    shots: Count | None = Field(
        default=None,
        description="few-shot training: so many training examples of each label at each site, "
        "drawn with the seed (of privacy.unit = group, so many groups); validation and test stay "
        "whole",
        examples=[16],
    )
    public_sizes: Mapping[Name, Count] = Field(
        default_factory=dict[str, int],
        description="declared public number of training rows (of groups, for privacy.unit = "
        "group): site = number; empty = taken from "
        "the data when the run is configured, and said so in the privacy statement",
    )
    class_weights: Mapping[Name, Positive] = Field(
        default_factory=dict[str, float],
        description="weight of each label's loss, from public numbers only: label = weight",
    )
    inconsistent: Literal["drop", "keep", "error"] = Field(
        default="drop", description="what to do with equal texts that have different labels"
    )
    missing: Literal["error", "drop"] = Field(
        default="error",
        description="what to do with a row that has NaN in a column of numbers (label, site or "
        "group), or names no site or group; drop = leave it out and say so. A row with an empty "
        "text or label is always left out and counted",
    )

    @model_validator(mode="before")
    @classmethod
    def _not_balanced(cls, data: Any) -> Any:
        return refuse_balanced(data)

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        named = [key for key in SOURCES if getattr(self, key) is not None]
        if len(named) != 1:
            refuse(
                "the data need exactly one source",
                key="",
                given=" and ".join(named) if named else "none",
                expected="one of " + ", ".join(SOURCES),
                remedy='set data.file = "all.csv" and data.site = "the column that names the '
                'site", or data.files, or data.source = "demo"',
            )
        if self.files is not None and not self.files:
            refuse(
                "data.files names no site",
                key="files",
                given="an empty table",
                expected="site = path, at least once",
                remedy='name one file a site: data.files = {north = "north.csv"}',
            )
        self._check_labels()
        self._check_split_by()
        if len(set(self.columns)) < len(self.columns) or self.label in self.columns:
            refuse(
                "the columns that are read are each named once, and the target is none of them",
                key="columns",
                given=", ".join(self.columns),
                expected=f"different columns without {self.label!r} (data.label)",
                remedy="list in data.columns what is known before the target, each column once",
            )
        self._check_folds()
        check_column_lists(self.column_ranges, self.column_values)
        if self.source == "sites":
            self._check_own_rows()
        if self.validation_fraction + self.tested_fraction >= 1:
            refuse(
                "validation and test leave nothing to train on",
                key="test_fraction",
                given=f"{self.validation_fraction} + {self.tested_fraction}",
                expected="a sum below 1",
                remedy="lower data.validation_fraction or data.test_fraction",
            )
        return self

    def _check_split_by(self) -> None:
        if self.split_by is None:
            return
        no_columns = self.folder is not None or self.source not in (None, "sites")
        if no_columns or self.group is not None:
            what = "data by name" if self.folder is None else "a folder of images"
            refuse(
                f"{what} has no columns"
                if no_columns
                else "rows of one group are in one part already",
                key="split_by",
                given=self.split_by,
                expected="no data.split_by",
                remedy="leave data.split_by out",
            )

    @property
    def tested_fraction(self) -> float:
        """The share of each site's rows that is tested on."""
        return self.test_fraction if self.folds is None else 1 / self.folds

    def _check_folds(self) -> None:
        if (self.folds is None) != (self.fold is None) or (self.fold or 1) > (self.folds or 1):
            refuse(
                "a fold is one of several",
                key="fold",
                given=f"fold = {self.fold}, folds = {self.folds}",
                expected="fold from 1 to folds, or neither",
                remedy="leave both out; hushtune simulate --folds K sets them",
            )
        for key, given in (("folds", self.folds), ("left_out", self.left_out)):
            if given is not None and self.source == "sites":
                refuse(
                    "rows that only their sites see are trained on once: each fold would be a run "
                    "of its own, charged to every site",
                    key=key,
                    given=str(given),
                    expected=f"no data.{key}",
                    remedy=f"leave data.{key} out",
                )
        if self.folds is not None and self.left_out is not None:
            refuse(
                "folds are parts of each site's rows, or sites",
                key="left_out",
                given=f"left_out = {self.left_out}, folds = {self.folds}",
                expected="one of the two",
                remedy="leave data.folds or data.left_out out",
            )

    def _check_labels(self) -> None:
        labels = self.labels
        if labels is not None and (len(set(labels)) < len(labels) or len(labels) < 2):
            refuse(
                "labels are at least two, each named once",
                key="labels",
                given=", ".join(labels),
                expected='such as labels = ["negative", "positive"]',
                remedy="list every label once in data.labels",
            )

    def _check_own_rows(self) -> None:
        """What the rows would tell has to be declared where no one place has them."""
        if self.shots is not None and self.labels:
            expected = self.shots * len(self.labels)
            wrong = sorted(site for site, size in self.public_sizes.items() if size != expected)
            if wrong:
                refuse(
                    "with data.shots each site trains on as many examples of each label",
                    key="public_sizes",
                    given=f"{wrong[0]} = {self.public_sizes[wrong[0]]}",
                    expected=f"{expected}: {self.shots} of each of {len(self.labels)} labels",
                    remedy="set each of data.public_sizes to that number, or leave data.shots out",
                )
        if not self.public_sizes:
            refuse(
                "with rows that only their sites see, data.public_sizes must be declared",
                key="public_sizes",
                given="nothing",
                expected="names and numbers that are public",
                remedy="set data.public_sizes = {north = 5000, south = 3000}",
            )
        if self.partition != "natural":
            refuse(
                "rows that only their sites see cannot be dealt to sites",
                key="partition",
                given=self.partition,
                expected="natural",
                remedy="leave data.partition out",
            )
