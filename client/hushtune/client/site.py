"""What a site holds: its rows, its task, its ledger, its limits and its randomness.

A site is opened once in a process and kept, the base model loaded; messages only swap adapters.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from flwr.app import Context

from hushtune.client.deployment.site_file import SiteFile, with_own_rows
from hushtune.client.memory import SiteMemory
from hushtune.client.policy import SitePolicy
from hushtune.client.signed_run import SignedRun
from hushtune.client.terms import Terms, load_terms
from hushtune.common.adapter import AdapterSpec
from hushtune.common.config import RunConfig
from hushtune.common.config_base import MOST_STEPS
from hushtune.common.config_io import config_hash
from hushtune.common.deployment import SITE_KEY
from hushtune.common.errors import PolicyError, SiteError
from hushtune.common.planning import charged_unit, public_held_out, site_rank
from hushtune.common.privacy.accountant import LEAST_NOISE_MULTIPLIER
from hushtune.common.privacy.ledger import Ledger, Limit
from hushtune.common.privacy.noise import NoiseSource
from hushtune.common.privacy.plan import Trust, Unit
from hushtune.common.run_context import RunContext, read_run_config
from hushtune.common.seeds import fold
from hushtune.common.site_files import site_stem
from hushtune.common.tasks.base import Task
from hushtune.common.tasks.units import Units
from hushtune.common.tasks.workspace import Workspace, open_workspace


@dataclass(frozen=True, kw_only=True)
class Site:
    """One site of one run: its training and held-out units, and their public numbers."""

    name: str
    task: Task
    units: Units
    public_size: int
    held_out: Units
    public_held_out: float
    dataset: str
    unit: str
    policy: SitePolicy
    limit: Limit
    ledger: Ledger | None
    noise: NoiseSource
    batch_key: bytes
    memory: SiteMemory

    def batch_randomness(self, run: str, round: int, sequence: int) -> np.random.Generator:
        """The generator of a round's Poisson draws, which only ``batch_key`` gives.

        ``sequence`` counts the charges so far: a round that is trained anew after a charge must
        not draw the same batches, since the accountant counts them as independent.
        """
        text = json.dumps([run, round, sequence])
        digest = hmac.new(self.batch_key, text.encode(), hashlib.sha256).digest()
        return np.random.default_rng(int.from_bytes(digest, "big"))


def open_site(context: Context) -> Site:
    """The site that a Flower node stands for: an institution's own, or one of a simulation."""
    run = read_run_config(context.run_config)
    if SITE_KEY in context.node_config:
        return _own_site(run, Path(str(context.node_config[SITE_KEY])))
    names = sorted(run.config.data.public_sizes)
    place = context.node_config.get("partition-id")
    if not isinstance(place, int) or not 0 <= place < len(names):
        raise SiteError(
            "a node has no site",
            given=f"partition-id = {place}",
            expected=f"0 to {len(names) - 1}: " + ", ".join(names),
            remedy=f"start the simulation with {len(names)} SuperNodes",
        )
    own = context.node_config.get("policy")  # set where the node is started: the site's own
    policy = simulated_policy(run.config, names[place]) if own is None else Path(str(own))
    # Where such a site's ledger lies, no run says.
    ledger = simulated_ledger(run, names[place]) if own is None else _beside(Path(str(own)))
    return _kept_site(run, names[place], policy, ledger)


@dataclass(frozen=True)
class OwnTerms:
    """A site's own policy, as its file had it when it was read."""

    file: Path
    terms: Terms

    @classmethod
    def read(cls, file: Path) -> OwnTerms:
        """Raises what ``load_terms`` does."""
        return cls(file, load_terms(file))


_open: dict[tuple[RunContext, str, OwnTerms | None], Site] = {}


def close_sites() -> None:
    """Forget every open site: their folders may be replaced."""
    _open.clear()


@dataclass(frozen=True)
class OwnRun:
    """A run as an institution's own site has it: ``site.toml``, the run with the site's rows and
    folder in it, and its configuration as far as this process has rows."""

    file: SiteFile
    run: RunContext
    rows: RunConfig


def own_run(run: RunContext, file: Path) -> OwnRun:
    """A run at the site whose ``site.toml`` a file is; of its data only what it declares counts."""
    own = SiteFile.read(file)
    check_takes_part(run.config, own)
    mine = _at_site(run, own)
    return OwnRun(own, mine, with_own_rows(mine.config, own.name))


def _own_site(run: RunContext, file: Path) -> Site:
    own = own_run(run, file)
    name, policy, ledger = own.file.name, own.file.table.policy, own.file.ledger
    return _kept_site(own.run, name, policy, ledger, rows=own.rows)


def check_takes_part(config: RunConfig, own: SiteFile) -> None:
    """Raise SiteError unless a run is of rows that sites have, this one's among them."""
    if config.data.source != "sites":
        raise SiteError(
            "the run brings data of its own, which a site with rows does not take",
            given="a run without data.source = 'sites'",
            expected="data.source = 'sites'",
            remedy="the coordinator: set data.source, data.labels and data.public_sizes",
        )
    if own.name not in config.data.public_sizes:
        raise SiteError(
            "the run does not know this site",
            given=own.name,
            expected=", ".join(sorted(config.data.public_sizes)),
            remedy="the coordinator: add it to data.public_sizes, or use its name",
        )


@lru_cache(maxsize=64)
def _at_site(run: RunContext, own: SiteFile) -> RunContext:
    """A run as its site has it: with its rows, and a folder of its own."""
    return RunContext(own.configured(run.config), own.runs / config_hash(run.config)[:12])


def _kept_site(
    run: RunContext, name: str, policy: Path | None, ledger: Path, *, rows: RunConfig | None = None
) -> Site:
    """``rows``: of an institution's site, whose run is signed, the run's configuration as far as
    this process has its rows; None where it has all of them."""
    workspace = open_workspace(rows or run.config)
    if any(site.task is not workspace.task for site in _open.values()):
        _open.clear()  # they would keep the model and activations of an earlier study
    # Read for every order, so that a policy that is made stricter holds at once.
    own = None if policy is None else OwnTerms.read(policy)
    key = (run, name, own)
    if key not in _open:
        signed = None if rows is None else SignedRun.of(run.config, name)
        _open[key] = _make_site(run, name, own, ledger, workspace, signed)
    return _open[key]


def _make_site(
    run: RunContext,
    name: str,
    own: OwnTerms | None,
    ledger_file: Path,
    workspace: Workspace,
    signed: SignedRun | None,
) -> Site:
    config = run.config
    spec = replace(workspace.initial_state.spec, rank=site_rank(config, name))
    agreed, limit = agreed_terms(config, name, own, spec, signed=signed)
    insecure = config.privacy.insecure_seeded_noise
    ledger = Ledger(ledger_file) if agreed.trust.charges_sites else None
    data_set = agreed.terms.data_set or workspace.dataset_id(name)
    seeded = fold(config.seed, "batches", name).to_bytes(8, "big")
    return Site(
        name=name,
        task=workspace.task,
        units=workspace.train_units(name),
        public_size=agreed.public_size,
        held_out=workspace.data.units(workspace.rows(name, "validation")),
        public_held_out=public_held_out(config, name),
        dataset=data_set if ledger is None else ledger.name_of(data_set),
        unit=charged_unit(config),
        policy=agreed,
        limit=limit,
        ledger=ledger,
        noise=(
            NoiseSource.insecure(fold(config.seed, "noise", name)) if insecure else NoiseSource()
        ),
        # Batches that whoever knows the run's seed can draw again would not be secret.
        batch_key=seeded if ledger is None or insecure else ledger.batch_key(),
        memory=site_memory(run, name),
    )


def site_memory(run: RunContext, site: str) -> SiteMemory:
    """What a simulated site keeps of a run's model for itself."""
    return SiteMemory(run.out / "own", site)


def agreed_terms(
    config: RunConfig,
    site: str,
    own: OwnTerms | None,
    spec: AdapterSpec,
    *,
    signed: SignedRun | None = None,
) -> tuple[SitePolicy, Limit]:
    """What a site agrees to, by its own policy or else by what the run asks, and its limit.

    ``spec``: of the adapters of the model that the site has loaded. ``signed``: see SitePolicy.
    Raises PolicyError where ``own`` does not fit.
    """
    terms = terms_of_run(config) if own is None else own.terms
    size = config.data.public_sizes[site]
    if own is not None:
        _check_terms(own, config, size)
    trust = Trust(config.privacy.trust)
    if own is not None and trust not in terms.trust:
        if trust is Trust.SITE:
            raise PolicyError(
                "the run's trust model is not one that this site takes part in",
                given=f"privacy.trust = {trust}",
                expected=f"{' or '.join(terms.trust)}, in {own.file.name}",
            )
        trust = Trust.SITE  # orders of a run under another trust are refused, whatever it says
    agreed = SitePolicy(
        site=site,
        trust=trust,
        spec=spec,
        public_size=size,
        terms=terms,
        run_sites=tuple(sorted(config.data.public_sizes)),
        signed=signed,
    )
    return agreed, terms.limit(whole_ledger=own is not None and terms.data_set is None)


def _check_terms(own: OwnTerms, config: RunConfig, size: int) -> None:
    """Raise PolicyError where a site's policy does not fit the run or the site, before any order.

    ``size``: the site's declared number of units.
    """
    terms, policy = own.terms, own.file
    if config.privacy.insecure_seeded_noise:
        raise PolicyError(
            "the run asks for noise and batches that whoever knows its seed can draw again",
            given="privacy.insecure_seeded_noise = true",
            expected=f"false, as the site has a policy, {policy.name}",
        )
    if terms.public_size is not None and terms.public_size != size:
        raise PolicyError(
            "the run declares another size of the site than the site itself does",
            given=f"{size} units",
            expected=f"{terms.public_size}, as public_size in {policy.name} says",
            remedy="set data.public_sizes of this site to that",
        )
    if terms.max_delta >= 1 / size and terms.unit != Unit.CLIENT:
        raise PolicyError(
            "a policy's max_delta promises nothing to a site of this size",
            given=f"{terms.max_delta:g} for {size} units, in {policy.name}",
            expected=f"below {1 / size:.3g}",
        )
    if (config.privacy.unit, config.data.group) != (terms.unit, terms.group):
        trust = config.privacy.trust
        raise PolicyError(
            "the run protects another unit than the site's policy",
            given=f"{charged_unit(config)}, under trust = {trust}",
            expected=f"{terms.charged_unit}, under trust = {' or '.join(terms.trust)}, in "
            f"{policy.name}",
            remedy="set privacy.unit and data.group as the policy has them"
            + ("" if trust in terms.trust else ", and privacy.trust too"),
        )


def simulated_terms(config: RunConfig, site: str) -> OwnTerms | None:
    """What a simulated site's own policy says; None without one."""
    policy = simulated_policy(config, site)
    return None if policy is None else OwnTerms.read(policy)


def simulated_policy(config: RunConfig, site: str) -> Path | None:
    """Where a simulated site's own policy is; None without one."""
    folder = config.simulation.policies
    return None if folder is None else folder / f"{site_stem(site)}.toml"


def terms_of_run(config: RunConfig) -> Terms:
    """A simulated site without a policy of its own agrees to what the run asks, and no more."""
    privacy = config.privacy
    return Terms(
        max_epsilon=privacy.epsilon,
        max_delta=privacy.delta,
        relation=privacy.relation,
        trust=tuple(kind.value for kind in Trust if kind is not Trust.OFF),
        unit=privacy.unit,
        group=config.data.group,
        colluding_sites=privacy.colluding_sites if privacy.trust == Trust.DISTRIBUTED else 0,
        min_noise_multiplier=LEAST_NOISE_MULTIPLIER,
        max_steps=MOST_STEPS,
        min_batch=1e-9,
        max_rank=2**16,
        metrics=config.metrics.release,
        min_metrics_noise_multiplier=LEAST_NOISE_MULTIPLIER,
    )


def simulated_ledger(run: RunContext, site: str) -> Path:
    """Where a simulated site keeps its ledger.

    Beside its own policy, whose budget is for all runs; or in ``simulation.ledgers``, which several
    runs share; or in the run's folder.
    """
    own, shared = ledger_path(run.out, site), run.config.simulation.ledgers
    policy = simulated_policy(run.config, site)
    if policy is not None:
        return _beside(policy)
    return own if shared is None else shared / own.name


def _beside(policy: Path) -> Path:
    return policy.with_suffix(".sqlite")


def ledger_path(out: Path, site: str) -> Path:
    """Where a simulated site's ledger is in a run's folder."""
    return out / "ledger" / f"{site_stem(site)}.sqlite"
