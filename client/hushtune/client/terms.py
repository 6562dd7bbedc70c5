"""``policy.toml``: what a site agrees to, written by its own people and read at the site alone."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from hushtune.common.config_base import (
    Count,
    CountOrNone,
    Delta,
    Name,
    Names,
    Positive,
    Section,
    refuse,
)
from hushtune.common.config_problems import Origins, as_config_error
from hushtune.common.config_template import commented
from hushtune.common.errors import ConfigError, MissingFileError
from hushtune.common.lora_rules import RULES
from hushtune.common.privacy.accountant import LEAST_NOISE_MULTIPLIER
from hushtune.common.privacy.ledger import Limit
from hushtune.common.privacy.ledger_entry import unit_name
from hushtune.common.privacy.plan import Relation, Unit

_LISTING = "hushtune policy new"


Trusts = Annotated[
    tuple[Literal["site", "server", "distributed"], ...],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
    Field(min_length=1),
]


class Terms(Section):
    """What a site agrees to; nothing that a server sends can weaken it."""

    max_epsilon: Positive = Field(
        description="the most that may ever be spent, in all runs together",
        examples=[3.0],
    )
    max_delta: Delta = Field(
        description="the delta at which max_epsilon is meant; must be below 1 / (records)",
        examples=[1e-5],
    )
    relation: Literal["add_or_remove_one", "replace_one"] = Field(
        default="add_or_remove_one", description="how neighbouring data sets differ"
    )
    trust: Trusts = Field(
        default=("site",),
        description="the trust models under which the site takes part: site, which relies on "
        "nobody; distributed, on enough other sites that keep apart from the server; server, on "
        "the server, which sees the site's updates and keeps the ledger: max_epsilon then holds "
        "for each run by itself",
    )
    colluding_sites: CountOrNone = Field(
        default=1,
        description="with trust = distributed: the least number of sites siding with the server "
        "that a run must withstand",
    )
    peers: Names = Field(
        default=(),
        description="with trust = distributed: the names of the sites that a secure sum may be "
        "with; empty = any. Names alone: that a site is who it says it is, the server vouches for",
        examples=[["east", "north"]],
    )
    unit: Literal["example", "group", "client"] = Field(
        default="example",
        description="by what: a record, all records of a patient or user, or all of the site's "
        "(client: with trust = server or distributed)",
    )
    group: Name | None = Field(
        default=None,
        description="the column whose equal values are one patient or user; for unit = group, "
        "and needed there: a server that chose it could make a group of every record",
        examples=["patient"],
    )
    public_size: Count | None = Field(
        default=None,
        description="the site's number of training units (records, or groups) as it may be known; "
        "a run that declares another is refused. Left out, the run's own figure is taken, and "
        "min_batch is judged by that",
        examples=[5000],
    )
    data_set: Name | None = Field(
        default=None,
        description="a name under which what is spent is added up; for a site that holds several "
        "data sets without a person in common. Left out, all that the site's ledger holds counts, "
        "whichever rows and columns were used; what was charged before the name was given does not "
        "count towards it",
        examples=["cardiology"],
    )
    min_noise_multiplier: Annotated[float, Field(ge=LEAST_NOISE_MULTIPLIER)] = Field(
        default=0.5, description="least noise of a step, in units of the clip norm"
    )
    max_rounds: Count | None = Field(
        default=None,
        description="answers in all runs: rounds of training, and figures told with noise; with "
        "trust = distributed each step is an answer, and only a round of clients is one step",
        examples=[100],
    )
    max_steps: Count = Field(
        default=10_000,
        description="optimiser steps in all runs; figures count as one",
    )
    min_batch: Positive = Field(
        default=1.0, description="least expected number of units in a step, by public_size"
    )
    base_models: Names = Field(
        default=(),
        description="sha256 of the weights of the base models that may be trained on; empty = "
        "whichever the run names",
    )
    rules: Names = Field(
        default=tuple(sorted(RULES)), description="aggregation rules that the site takes part in"
    )
    targets: Names = Field(
        default=(),
        description="ends of the names of modules that may be adapted; empty = any of the model's",
    )
    max_rank: Count = Field(default=64, description="largest rank of an adapter")
    max_base_rank: CountOrNone = Field(
        default=0,
        description="largest rank of what the rules fedex and flora add to the frozen weights of a "
        "module, which grows from round to round; 0 = as large as the module is wide",
    )
    metrics: Literal["none", "noised", "public"] = Field(
        default="none",
        description="how the site tells how well a model does on its held-out rows: not at all, "
        "noised and charged, or as it is, which no promise covers",
    )
    min_metrics_noise_multiplier: Positive = Field(
        default=5.0, description="least noise of such figures, in units of their sensitivity"
    )

    @model_validator(mode="after")
    def _group_for_groups(self) -> Terms:
        if (self.unit == "group") != (self.group is not None):
            refuse(
                "unit and group belong together",
                key="group",
                given=f"unit = {self.unit}, group = {self.group or 'none'}",
                expected='unit = "group" and group = "a column", or neither',
            )
        return self

    @property
    def charged_unit(self) -> str:
        """What the site's ledger calls the unit that it protects."""
        return str(Unit.CLIENT) if self.unit == Unit.CLIENT else unit_name(self.group)

    def limit(self, *, whole_ledger: bool) -> Limit:
        """What the ledger is held to."""
        return Limit(
            epsilon=self.max_epsilon,
            delta=self.max_delta,
            relation=Relation(self.relation),
            max_rounds=self.max_rounds,
            max_steps=self.max_steps,
            whole_ledger=whole_ledger,
        )


def load_terms(path: Path) -> Terms:
    """The terms in a file; raises MissingFileError, or a ConfigError that names key and file.

    An error's message may leave the site, so that it has no more of the path than the name.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingFileError(
            "the site's policy does not exist",
            file=path,
            remedy=f"`{_LISTING} > {shlex.quote(str(path))}` writes one to begin with",
        ) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"the site's policy {path.name} cannot be read",
            given=f"{path}: {error}"[:300],
            expected="a TOML file, in UTF-8",
            remedy=f"mend it; `{_LISTING}` prints every key with an example",
        ) from error
    try:
        terms = Terms.model_validate(tree)
    except ValidationError as error:
        raise as_config_error(
            error, Origins({}, [path.name], model=Terms, listing=_LISTING)
        ) from None
    unknown = sorted(set(terms.rules) - set(RULES))
    if unknown or not terms.rules:
        raise ConfigError(
            f"rules names none, or one that is not known (in {path.name})",
            given=", ".join(unknown) or "no rule",
            expected=", ".join(sorted(RULES)),
            remedy="name rules of this list, or leave rules out for all of them",
        )
    return terms


def terms_template(values: Mapping[str, Any] | None = None) -> str:
    """A commented ``policy.toml`` with every key, what it means and its default, or its value."""
    return commented(
        Terms,
        "# What this site agrees to. It stands above whatever a server asks for; an order that",
        "# goes beyond it, or names what is unknown here, is refused before anything is computed.",
        values=values,
    )
