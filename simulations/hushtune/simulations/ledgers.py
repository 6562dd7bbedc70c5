"""The ledgers of a run, looked at from outside: found, summed up, compared and exported.

Nothing here writes to a ledger; see ``hushtune.common.privacy.ledger_record``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from hushtune.common.config import RunConfig
from hushtune.common.config_io import CONFIG, stored_config
from hushtune.common.errors import LedgerError, MissingFileError
from hushtune.common.privacy.ledger_entry import GENESIS, LedgerEntry
from hushtune.common.privacy.ledger_record import LedgerRecord, read_ledger
from hushtune.common.privacy.plan import Relation
from hushtune.simulations import server_ledger

MECHANISM = (
    "each charge is `steps` releases of a Poisson-sampled Gaussian sum over units, of the kind "
    "that `unit` names (example: records; group and a column: all records with one value of it; "
    "client: all that one client holds): every unit is in a release with probability "
    "`sampling_probability`, what it adds to the sum is clipped to norm C, and the noise on the "
    "sum has standard deviation `noise_multiplier` times C; the charges of one data set, in "
    "whatever runs, are composed. `round` numbers the run's rounds, or, where a round is of "
    "several secure sums, those sums. A charge with `kinds` is the release of the best of a random "
    "number of such runs alone, the number drawn from the law `law` with mean `mean` and each run "
    "one of `kinds` (Papernot and Steinke 2110.03620): its Renyi divergence adds to that of the "
    "others, and counts towards whoever gets that run and nothing else of the search"
)
HASH = (
    "SHA-256, in hexadecimal, of a charge's JSON without `hash`, keys sorted, no spaces, ASCII; "
    "`previous` is the hash of the charge before, `genesis` for the first"
)


def find_ledgers(place: Path) -> dict[str, Path]:
    """The ledgers of a run's folder, of its folder ``ledger``, or the one file, by site.

    Of a run whose sites keep theirs beside their policies, or share some with other runs, those.
    A head without its ledger counts as a ledger, so that one that was deleted is missed. Of a run
    whose server adds the noise, its checkpoint. Raises MissingFileError where there is none.
    """
    at_server = server_ledger.find(place, run_config(place))
    if at_server is not None:
        return {server_ledger.NAME: at_server}
    if place.is_dir():
        folder = place / "ledger" if (place / "ledger").is_dir() else _elsewhere(place) or place
        heads = (path.with_suffix("") for path in folder.glob("*.sqlite.head"))
        paths = sorted({*folder.glob("*.sqlite"), *heads})
    else:
        paths = [place] if place.is_file() else []
    if not paths:
        raise MissingFileError(
            "there is no privacy ledger here",
            given=str(place),
            expected="the folder of a run with privacy, its folder ledger, or a file in that",
            remedy="name the folder that the run was written to (its --out)",
        )
    return {unquote(path.stem): path for path in paths}


def run_delta(place: Path) -> float | None:
    """The delta of the run that a folder or a ledger belongs to; None where no run says it.

    A ledger does not hold it: its charges are mechanisms, which have an epsilon at any delta.
    """
    config = run_config(place)
    return None if config is None else config.privacy.delta


def run_config(place: Path) -> RunConfig | None:
    """The settings of the run that a folder or a file in it belongs to; None where none is near."""
    folders = (place, *place.absolute().parents[:2]) if place.exists() else ()
    found = next((folder for folder in folders if (folder / CONFIG).is_file()), None)
    return None if found is None else stored_config(found)


def read(path: Path) -> LedgerRecord:
    """What a ledger holds, be it a site's or the server's; LedgerError where it is not sound."""
    return (server_ledger.read if server_ledger.is_one(path) else read_ledger)(path)


def charge_word(place: Path) -> str:
    """What a charge's number counts: a run's rounds, or its steps where each is a secure sum."""
    config = run_config(place)
    if config is None or config.simulation.ledgers or config.simulation.policies:
        return "round or step"  # of runs that another configuration may have had
    by_step = config.privacy.trust == "distributed" and config.privacy.unit != "client"
    return "step" if by_step else "round"


def own_charges(run: Path) -> dict[str, int]:
    """How many charges the ledgers in a run's own folder hold, by site; of sound ones alone.

    Those of a server that adds the noise stand under `server_ledger.NAME`.
    """
    found: dict[str, int] = {}
    paths = {unquote(path.stem): path for path in sorted((run / "ledger").glob("*.sqlite"))}
    at_server = server_ledger.find(run, stored_config(run))
    for name, path in ({server_ledger.NAME: at_server} if at_server else paths).items():
        try:
            number = len(read(path).entries)
        except LedgerError:
            continue
        if number:
            found[name] = number
    return found


def _elsewhere(run: Path) -> Path | None:
    config = stored_config(run)
    return None if config is None else config.simulation.ledgers or config.simulation.policies


def noted_heads(given: Sequence[str], sites: Sequence[str]) -> dict[str, str]:
    """Which hash was noted for which site, of ``HASH`` (of the only site) or ``SITE=HASH``."""
    noted: dict[str, str] = {}
    for text in given:
        site, equals, head = text.rpartition("=")
        site = site if equals or len(sites) != 1 else sites[0]
        if site not in sites or site in noted:
            raise LedgerError(
                "a noted hash belongs to one ledger",
                given=f"--head {text}",
                expected=" or ".join(f"--head {name}=HASH" for name in sites),
            )
        noted[site] = head.strip().lower()
    return noted


def summary(record: LedgerRecord) -> dict[str, Any]:
    """A ledger in a few JSON-ready figures."""
    return {
        "path": str(record.path),
        "head": record.head,
        "num_charges": len(record.entries),
        "num_resent": sum(record.resent.values()),
    }


def spending(record: LedgerRecord, *, delta: float) -> dict[str, Any]:
    """What a ledger's data sets have spent, JSON-ready: composed over all runs, and by run.

    The figures of single runs do not add up to that of all: composition is less than a sum. None
    stands for "no bound". Raises PlanError for a delta outside (0, 1).
    """
    datasets: dict[str, Any] = {}
    for dataset in _in_order(entry.dataset for entry in record.entries):
        entries = [entry for entry in record.entries if entry.dataset == dataset]
        runs = {
            run: _spent([entry for entry in entries if entry.run == run], record, delta)
            for run in _in_order(entry.run for entry in entries)
        }
        charges = [{**entry.to_dict()["event"], **_place(entry)} for entry in entries]
        datasets[dataset] = {**_spent(entries, record, delta), "runs": runs, "charges": charges}
    return {**summary(record), "datasets": datasets}


def export_document(records: Mapping[str, LedgerRecord]) -> dict[str, Any]:
    """Every charge with its hash, JSON-ready, so that anyone can check the chain and recompute
    epsilon with an accountant of their own. Of replies, their digests only."""
    return {
        "format": "hushtune privacy ledgers",
        "version": 1,
        "mechanism": MECHANISM,
        "hash": HASH,
        "genesis": GENESIS,
        "ledgers": {
            site: {
                "head": record.head,
                "charges": [entry.to_dict() for entry in record.entries],
                "replies": [
                    {"sequence": sequence, "sha256": reply.digest, "kept_bytes": reply.num_bytes}
                    for sequence, reply in record.replies.items()
                ],
                "resent": [
                    {"sequence": sequence, "times": times}
                    for sequence, times in record.resent.items()
                ],
            }
            for site, record in records.items()
        },
    }


def _spent(entries: Sequence[LedgerEntry], record: LedgerRecord, delta: float) -> dict[str, Any]:
    from hushtune.common.privacy import accountant

    events = [entry.event for entry in entries]
    found = {str(kind): accountant.epsilon(events, delta=delta, relation=kind) for kind in Relation}
    return {
        "epsilon": {kind: value if value < math.inf else None for kind, value in found.items()},
        "num_charges": len(entries),
        "steps": sum(event.steps for event in events),
        "num_resent": sum(record.resent.get(entry.sequence, 0) for entry in entries),
    }


def _place(entry: LedgerEntry) -> dict[str, Any]:
    return {
        "sequence": entry.sequence,
        "run": entry.run,
        "round": entry.round,
        "hash": entry.hash,
    }


def _in_order(names: Any) -> list[str]:
    return list(dict.fromkeys(names))
