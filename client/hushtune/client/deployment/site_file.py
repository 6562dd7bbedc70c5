"""``site.toml``: what a site is called, where its rows are, and whom it joins; read there alone."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from hushtune.common.config import RunConfig
from hushtune.common.config_base import Count, FilePath, Name, Names, Section
from hushtune.common.config_problems import Origins, as_config_error
from hushtune.common.deployment import Address, SignKey, SiteName
from hushtune.common.errors import ConfigError, DeploymentError

SITE_FILE = "site.toml"
MOST_MEGABYTES = 256


class ServerTable(Section):
    """Whom the site joins: what the coordinator's invitation says."""

    name: Name = Field(description="of the federation")
    address: Address = Field(description="where the coordinator's server listens: host:port")
    certificate: FilePath = Field(description="of the authority that signs the server's, PEM")
    sign_key: SignKey = Field(description="that runs and results must be signed by")
    max_message_megabytes: Count = Field(
        default=MOST_MEGABYTES,
        description="messages larger than this are refused before they are read; `site join` looks "
        "at it as it begins",
    )


class DataTable(Section):
    """Where the site's rows are; nothing of this leaves the site."""

    file: FilePath = Field(description="CSV, TSV, JSONL or Parquet")
    text: Name = Field(default="text", description="the column with the text")
    second: Name | None = Field(
        default=None, description="for pairs: the column with the second text"
    )
    columns: Names = Field(
        default=(), description="for tables: the columns that are read, in place of text"
    )
    label: Name = Field(default="label", description="the column with the target")
    group: Name | None = Field(
        default=None, description="the column that names each row's patient or user"
    )


class SiteTable(Section):
    """The whole of ``site.toml``."""

    name: SiteName = Field(description="of the site, as the coordinator has enrolled it")
    policy: FilePath = Field(default=Path("policy.toml"), description="what the site agrees to")
    model: FilePath | None = Field(
        default=None,
        description="a folder with the base model, in place of the name that runs give it; its "
        "weights must be the same",
    )
    server: ServerTable
    data: DataTable


@dataclass(frozen=True)
class SiteFile:
    """A site's settings with absolute paths, and the folder that has everything else of it."""

    file: Path
    table: SiteTable

    @classmethod
    def read(cls, file: Path) -> SiteFile:
        """``file``: ``site.toml`` or its folder. Raises DeploymentError and ConfigError."""
        file = file.expanduser().absolute()
        file = file if file.name == SITE_FILE or file.is_file() else file / SITE_FILE
        try:
            raw = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise DeploymentError(
                "this folder is no site's",
                given=str(file.parent),
                expected=f"{SITE_FILE}, as `hushtune site init` writes it",
                remedy=f"hushtune site init {file.parent} --server federation.toml",
            ) from error
        except ValueError as error:
            raise ConfigError(f"{SITE_FILE} is not TOML", given=str(error)) from error
        try:
            table = SiteTable.model_validate(raw)
        except ValidationError as error:
            # The message may leave the site, and tells no folder of it.
            origins = Origins({}, [file.name], model=SiteTable, listing="hushtune site init --help")
            raise as_config_error(error, origins) from None
        return cls(file, _absolute(table, file.parent))

    @property
    def folder(self) -> Path:
        return self.file.parent

    @property
    def name(self) -> str:
        return self.table.name

    @property
    def ledger(self) -> Path:
        """Beside the policy, whose budget is for all runs."""
        return self.table.policy.with_suffix(".sqlite")

    @property
    def node_key(self) -> Path:
        """That the server knows the site by: EC, in OpenSSH's form."""
        return self.folder / "keys" / "node.key"

    @property
    def sign_key(self) -> Path:
        """That the site signs what it tells of itself with: Ed25519."""
        return self.folder / "keys" / "site.key"

    @property
    def history(self) -> Path:
        """Every order, and what was decided on it."""
        return self.folder / "orders.jsonl"

    @property
    def status(self) -> Path:
        """What ``site join`` tells of itself."""
        return self.folder / "status.json"

    @property
    def runs(self) -> Path:
        """Results, and what the site keeps of a run's model for itself."""
        return self.folder / "runs"

    def configured(self, config: RunConfig) -> RunConfig:
        """A run's configuration with this site's own rows, columns and model folder in it.

        ``data.group`` says whether the run is about groups; the column is the site's own.
        """
        own = self.table.data
        data = config.data.model_copy(
            update={
                "source": None,
                "files": {self.name: own.file},
                "text": own.text,
                "second": own.second,
                "columns": own.columns,
                "label": own.label,
                "group": None if config.data.group is None else own.group or config.data.group,
            }
        )
        model = config.model
        if self.table.model is not None:
            model = model.model_copy(update={"name": str(self.table.model)})
        return config.model_copy(update={"data": data, "model": model})


def with_own_rows(config: RunConfig, site: str) -> RunConfig:
    """A run's configuration as far as one site's process has its rows."""
    alone = {site: config.data.public_sizes[site]}
    data = config.data.model_copy(update={"public_sizes": alone})
    return config.model_copy(update={"data": data})


def _absolute(table: SiteTable, folder: Path) -> SiteTable:
    """Paths relative to the file's folder, made absolute."""

    def there(path: Path) -> Path:
        return folder / path.expanduser()

    server = table.server.model_copy(update={"certificate": there(table.server.certificate)})
    data = table.data.model_copy(update={"file": there(table.data.file)})
    return table.model_copy(
        update={
            "policy": there(table.policy),
            "model": None if table.model is None else there(table.model),
            "server": server,
            "data": data,
        }
    )
