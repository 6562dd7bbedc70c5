"""Every error that hushtune raises on purpose, with a code that stays the same across versions.

::

    HushtuneError               HT000
    ├── ConfigError             HT100  a setting has a value that cannot be used
    │   ├── UnknownKeyError     HT101  a setting that does not exist
    │   └── PresetError         HT102  a preset that does not exist
    ├── DataError               HT200  the data cannot be used
    │   ├── MissingFileError    HT201
    │   ├── EmptyDataError      HT202
    │   ├── MissingColumnError  HT203
    │   ├── EncodingError       HT204
    │   ├── LabelError          HT205
    │   ├── TooFewRowsError     HT206
    │   ├── BadValueError       HT207
    │   └── UnsupportedDataError HT208
    ├── ModelError              HT300  the base model or the adapter cannot be used
    │   ├── MissingWeightsError HT301
    │   ├── TargetModuleError   HT302
    │   └── UnsupportedModelError HT303
    ├── PrivacyError            HT400  a promise could not be kept, so nothing was released
    │   ├── BudgetExceededError HT401
    │   ├── LedgerError         HT402
    │   ├── PlanError           HT403
    │   └── PolicyError         HT404
    ├── FederationError         HT500  server and sites could not work together
    │   ├── QuorumError         HT501
    │   ├── UpdateRejectedError HT502
    │   ├── MessageError        HT503
    │   ├── SiteError           HT504
    │   └── SecureSumError      HT505
    ├── RunError                HT600  a run could not start, go on or be saved
    │   ├── OutputExistsError   HT601
    │   ├── CheckpointError     HT602
    │   ├── DiskFullError       HT603
    │   └── InterruptedRunError HT604
    ├── AssetError              HT700  a named model or data set could not be had
    │   └── AssetMismatchError  HT701  its bytes are not the ones that were pinned
    └── DeploymentError         HT800  machines could not be set up, or do not know each other
        ├── KeyFileError        HT801
        ├── SignatureError      HT802
        ├── CertificateError    HT803
        ├── EnrolmentError      HT804
        ├── UnreachableError    HT805
        └── BusyError           HT806

``docs/errors.md`` has a section for each code. An error says what is wrong and, where known, what
was given, what was expected and what to do; all of it survives pickling between processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from hushtune.common.error_root import HushtuneError as HushtuneError  # noqa: PLC0414


class ConfigError(HushtuneError):
    """A setting has a value that cannot be used; names the dotted key and where it stood."""

    code = "HT100"


class UnknownKeyError(ConfigError):
    """A setting that does not exist; proposes the nearest one."""

    code = "HT101"


class PresetError(ConfigError):
    """A preset that does not exist; lists those that do."""

    code = "HT102"


class DataError(HushtuneError):
    """The data cannot be used.

    Args:
        file: the file that was read; appended to the message with row and column.
        row: the row's number as a text editor or spreadsheet counts it (the first line is 1).
        column: the column's name.
    """

    code = "HT200"

    def __init__(
        self,
        message: str,
        *,
        file: object = None,
        row: int | None = None,
        column: str | None = None,
        given: object = None,
        expected: object = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message, given=given, expected=expected, remedy=remedy)
        self.file = None if file is None else str(file)
        self.row = row
        self.column = column

    def __str__(self) -> str:
        place = [
            text
            for text in (
                None if self.file is None else f"file {self.file}",
                None if self.row is None else f"row {self.row}",
                None if self.column is None else f"column {self.column!r}",
            )
            if text is not None
        ]
        first, *rest = super().__str__().split("\n")
        return "\n".join([first, *([f"  where: {', '.join(place)}"] if place else []), *rest])


class MissingFileError(DataError):
    """A data file or folder is not there."""

    code = "HT201"


class EmptyDataError(DataError):
    """A data file, or what is left of it after cleaning, has no rows."""

    code = "HT202"


class MissingColumnError(DataError):
    """A file lacks a column that the settings name."""

    code = "HT203"


class EncodingError(DataError):
    """A file is not UTF-8 text throughout."""

    code = "HT204"


class LabelError(DataError):
    """A label is missing, contradictory, or too rare to be split over training and test."""

    code = "HT205"


class TooFewRowsError(DataError):
    """A site has fewer rows than its training needs."""

    code = "HT206"


class BadValueError(DataError):
    """A cell holds something that cannot be read as what its column should hold (NaN, say)."""

    code = "HT207"


class UnsupportedDataError(DataError):
    """A data format that is not read, or that needs an extra which is not installed."""

    code = "HT208"


class ModelError(HushtuneError):
    """The base model or the adapter cannot be used."""

    code = "HT300"


class MissingWeightsError(ModelError):
    """A model folder without weights or without a configuration."""

    code = "HT301"


class TargetModuleError(ModelError):
    """The adapter names modules that the model does not have, or that cannot be adapted."""

    code = "HT302"


class UnsupportedModelError(ModelError):
    """Something whose per-example gradients cannot be had: DoRA, BatchNorm in training mode."""

    code = "HT303"


class PrivacyError(HushtuneError):
    """A privacy promise could not be kept, so nothing was released."""

    code = "HT400"


class BudgetExceededError(PrivacyError):
    """The next round would spend more than the site's budget."""

    code = "HT401"


class LedgerError(PrivacyError):
    """A ledger cannot be read, or was changed after it was written."""

    code = "HT402"


class PlanError(PrivacyError):
    """No noise keeps the promise that was asked for, or the promise is none (delta >= 1/n)."""

    code = "HT403"


class PolicyError(PrivacyError):
    """An order goes beyond what the site's own policy allows."""

    code = "HT404"


class FederationError(HushtuneError):
    """Server and sites could not work together."""

    code = "HT500"


class QuorumError(FederationError):
    """Fewer sites answered a round than the quorum; ``refusals``: rows of those that refused it."""

    code = "HT501"
    refusals: Mapping[str, Mapping[str, Any]] = MappingProxyType({})


class UpdateRejectedError(FederationError):
    """A site's update was refused; the reason is one of a fixed set of names.

    Args:
        reason: "shape", "dtype", "nonfinite", "norm", "keys", "round", "run" or "site".
    """

    code = "HT502"

    def __init__(self, message: str, *, reason: str | None = None, **told: Any) -> None:
        super().__init__(message, **told)
        self.reason = reason


class MessageError(FederationError):
    """A message does not hold what its kind must hold."""

    code = "HT503"


class SiteError(FederationError):
    """A site failed at its own work and said so."""

    code = "HT504"


class SecureSumError(FederationError):
    """A secure sum was asked for, or answered, in a way that would not protect it."""

    code = "HT505"


class RunError(HushtuneError):
    """A run could not start, go on or be saved."""

    code = "HT600"


class OutputExistsError(RunError):
    """The output folder holds another run."""

    code = "HT601"


class CheckpointError(RunError):
    """A checkpoint is damaged, or belongs to another configuration."""

    code = "HT602"


class DiskFullError(RunError):
    """The disk is full; the last complete checkpoint is still there."""

    code = "HT603"


class InterruptedRunError(RunError):
    """The run was stopped (Ctrl-C); it can be resumed from its checkpoint."""

    code = "HT604"


class AssetError(HushtuneError):
    """A named model or data set could not be had."""

    code = "HT700"


class AssetMismatchError(AssetError):
    """An asset's bytes are not the ones that were pinned by sha256."""

    code = "HT701"


class DeploymentError(HushtuneError):
    """A coordinator or a site is not set up to work with the other."""

    code = "HT800"


class KeyFileError(DeploymentError):
    """A private key is missing, no key, or readable by others."""

    code = "HT801"


class SignatureError(DeploymentError):
    """What was received is not signed by the key that it must be signed by; it is not used."""

    code = "HT802"


class CertificateError(DeploymentError):
    """A certificate is missing, expired, of another name, or signed by another authority."""

    code = "HT803"


class EnrolmentError(DeploymentError):
    """A site is not enrolled, enrolled twice, or its card is none."""

    code = "HT804"


class UnreachableError(DeploymentError):
    """The other end does not answer, or its clock differs too much for it to be believed."""

    code = "HT805"


class BusyError(DeploymentError):
    """The same site, server or run is being worked with by another process."""

    code = "HT806"
