"""What is public of the columns of tables: ranges and lists, by what a column is.

Sources: the R documentation of medicaldata (covid_testing) and openintro (loans_full_schema), for
Lending Club its own dictionary of 2016 (grades A1 to G5, terms of 36 and 60 months, loans of 1,000
to 40,000 dollars). Where a column has no natural end, such as an income, the range is a round one
that most people would be in; cells beyond it are moved to its end. These are set by hand, by people
who had seen the data: for rows of your own take them from what is known without the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

Ranges = Mapping[str, tuple[float, float]]
Values = Mapping[str, tuple[str, ...]]

_YEARS = (0.0, 120.0)
_PERCENT = (0.0, 100.0)
_FEW, _MANY = (0.0, 10.0), (0.0, 50.0)  # counts that are seldom above none, and others
_INCOME, _DEBTS, _LOAN = (0.0, 250_000.0), (0.0, 250_000.0), (0.0, 40_000.0)
_YES_OR_NO = (0.0, 1.0)

TESTS_RANGES: Final[Ranges] = MappingProxyType(
    {"age": _YEARS, "pan_day": (0.0, 107.0), "drive_thru_ind": _YES_OR_NO, "orderset": _YES_OR_NO}
)
TESTS_VALUES: Final[Values] = MappingProxyType(
    {
        "gender": ("female", "male"),
        "demo_group": ("patient", "misc adult", "client", "other adult", "unidentified"),
        "payor_group": (
            *("commercial", "government", "unassigned", "medical assistance", "self pay"),
            *("charity care", "other"),
        ),
        "patient_class": (
            *("inpatient", "emergency", "observation", "recurring outpatient", "outpatient"),
            *("not applicable", "day surgery", "admit after surgery-obs", "admit after surgery-ip"),
        ),
    }
)
LENDING_RANGES: Final[Ranges] = MappingProxyType(
    {
        "funded_amnt": _LOAN,
        "int_rate": (0.0, 36.0),
        "annual_inc": _INCOME,
        "revol_util": _PERCENT,
        "all_util": _PERCENT,
        "total_bal_il": _DEBTS,
        "total_il_high_credit_limit": _DEBTS,
        "delinq_amnt": _LOAN,
        **dict.fromkeys(("num_il_tl", "open_il_6m"), _MANY),
        **dict.fromkeys(("delinq_2yrs", "inq_last_6mths", "acc_now_delinq"), _FEW),
        **dict.fromkeys(("open_il_12m", "open_il_24m", "inq_fi", "inq_last_12m"), _FEW),
    }
)
LENDING_VALUES: Final[Values] = MappingProxyType(
    {
        "term": ("term_36", "term_60"),
        "sub_grade": tuple(f"{grade}{step}" for grade in "ABCDEFG" for step in range(1, 6)),
        "verification_status": ("Not_Verified", "Source_Verified", "Verified"),
        "emp_length": (
            "emp_lt_1",
            *(f"emp_{years}" for years in range(1, 10)),
            *("emp_ge_10", "emp_unk"),
        ),
    }
)
RATES_RANGES: Final[Ranges] = MappingProxyType(
    {
        "emp_length": (0.0, 10.0),
        "annual_income": _INCOME,
        "debt_to_income": _PERCENT,
        "earliest_credit_line": (1960.0, 2018.0),
        "total_credit_limit": (0.0, 500_000.0),
        "total_credit_utilized": _DEBTS,
        "account_never_delinq_percent": _PERCENT,
        "loan_amount": _LOAN,
        "term": (36.0, 60.0),
        **dict.fromkeys(("total_credit_lines", "open_credit_lines"), _MANY),
        **dict.fromkeys(("delinq_2y", "inquiries_last_12m", "accounts_opened_24m"), _FEW),
        **dict.fromkeys(("num_historical_failed_to_pay", "num_mort_accounts"), _FEW),
        **dict.fromkeys(("num_cc_carrying_balance", "public_record_bankrupt"), _FEW),
    }
)
RATES_VALUES: Final[Values] = MappingProxyType(
    {
        "homeownership": ("MORTGAGE", "OWN", "RENT"),
        "verified_income": ("Not Verified", "Source Verified", "Verified"),
        "loan_purpose": (
            *("car", "credit_card", "debt_consolidation", "educational", "home_improvement"),
            *("house", "major_purchase", "medical", "moving", "other", "renewable_energy"),
            *("small_business", "vacation", "wedding"),
        ),
        "application_type": ("individual", "joint"),
    }
)
PUPILS_RANGES: Final[Ranges] = MappingProxyType({"ses": (-3.0, 3.0)})  # a standardised score
PUPILS_VALUES: Final[Values] = MappingProxyType(
    {"minrty": ("No", "Yes"), "sx": ("Female", "Male"), "sector": ("Catholic", "Public")}
)
