"""A run of the made-up institutions that is over and handed over, with folders as they are left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from hushtune.client.site import close_sites
from hushtune.common import lora
from hushtune.common.config import RunConfig
from hushtune.common.config_io import dump_toml
from hushtune.common.deployment import Invitation, SiteCard
from hushtune.common.run_context import RunContext, run_config
from hushtune.common.signing import load_signing_key, public_text
from hushtune.server.app import federate
from hushtune.server.deployment.federate import loaded_model
from hushtune.server.deployment.handover import hand_over
from hushtune.server.roll_call import RollCall
from hushtune.server.strategy import FederationResult

from .institutions import SIZES, OwnSites, coordinator_key, site_folder

FEDERATION = "test federation"


def certificate() -> str:
    """A certificate that nobody will ever connect to."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, SHA256())
    )
    return made.public_bytes(Encoding.PEM).decode()


def node_key() -> str:
    """A node's public key."""
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


@dataclass(frozen=True)
class Place:
    """Folders of a coordinator and its sites below one folder, and a run of theirs that is over."""

    root: Path
    config: RunConfig
    result: FederationResult

    @property
    def home(self) -> Path:
        return self.root / "coordinator"

    @property
    def out(self) -> Path:
        return self.home / "runs" / "first"

    @property
    def toml(self) -> str:
        return dump_toml(self.config)

    def site(self, name: str) -> Path:
        return self.root / name

    def results(self, name: str) -> Path:
        """The run's folder at a site."""
        return self.site(name) / "runs" / self.result.run

    def cards(self) -> dict[str, SiteCard]:
        found: dict[str, SiteCard] = {}
        for name in SIZES:
            raw = json.loads((self.home / "sites" / f"{name}.json").read_text())
            found[name] = SiteCard(**{k: v for k, v in raw.items() if k != "node_id"})
        return found

    def grid(self, toml: str | None = None) -> OwnSites:
        given = run_config(self.config, self.out) | ({} if toml is None else {"toml": toml})
        return OwnSites({name: self.site(name) for name in SIZES}, run_config=given)

    def handed_over(self, grid: Any = None, **changes: Any) -> dict[str, Any]:
        """Hand over (again); a new process at each site."""
        close_sites()
        grid = self.grid() if grid is None else grid
        usual: dict[str, Any] = {
            "run": RunContext(self.config, self.out),
            "toml": self.toml,
            "result": self.result,
            "key": load_signing_key(self.home / "keys" / "signing.key"),
            "federation": FEDERATION,
            "cards": self.cards(),
            "timeout": 60.0,
            "patience": 0.0,
        }
        return hand_over(grid, grid.nodes, **{**usual, **changes})

    def copied(self, to: Path) -> Place:
        """The same in another folder, to be damaged there."""
        shutil.copytree(self.root, to)
        return replace(self, root=to)


def institutions(root: Path, terms: Mapping[str, Any] | None = None) -> None:
    """The coordinator's folder and the sites', as `init` and `enrol` leave them."""
    home = root / "coordinator"
    key = coordinator_key(home / "keys")
    Invitation(
        name=FEDERATION, address="localhost:9092", sign_key=key, certificate=certificate()
    ).write(home / "federation.toml")
    (home / "sites").mkdir()
    for number, (name, rows) in enumerate(sorted(SIZES.items()), start=101):
        folder = site_folder(root / name, name, rows=rows, sign_key=key, terms=terms)
        own = public_text(load_signing_key(folder / "keys" / "site.key"))
        card = SiteCard(name=name, node_key=node_key(), sign_key=own)
        card.write(folder / f"{name}.pub")
        enrolled = {**card.model_dump(), "node_id": number}
        (home / "sites" / f"{name}.json").write_text(json.dumps(enrolled))


def run_there(
    root: Path,
    config: RunConfig,
    *,
    before_round: Callable[[int], None] = lambda _: None,
    out: str = "first",
    absent: tuple[str, ...] = (),
) -> Place:
    """A run of all institutions but the absent ones, called one after the other."""
    close_sites()
    place = root / "coordinator" / "runs" / out
    grid = OwnSites({name: root / name for name in SIZES}, run_config=run_config(config, place))
    model = loaded_model(config)
    count = 0

    def roll(_: Any) -> RollCall:
        nonlocal count
        count += 1
        before_round(count)
        nodes = {name: node for name, node in grid.nodes.items() if name not in absent}
        return RollCall(nodes, dict.fromkeys(absent, "not connected"))

    result = federate(
        RunContext(config, place),
        grid,  # type: ignore[arg-type]
        initial=lora.initial_state(model, seed=config.seed),
        roll=roll,
        heads=root / "coordinator" / "heads",
    )
    return Place(root, config, result)
