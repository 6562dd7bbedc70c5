"""What a run of real sites may be asked for; looked at before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Mapping

from hushtune.common.config import RunConfig
from hushtune.common.errors import ConfigError, EnrolmentError
from hushtune.server.deployment.enrol import Enrolled, enrolled_sites
from hushtune.server.deployment.home import Home


def sites_of_run(config: RunConfig, home: Home) -> Mapping[str, Enrolled]:
    """The run's sites as they are enrolled; EnrolmentError for one that is not."""
    known = enrolled_sites(home)
    strangers = sorted(set(config.data.public_sizes) - set(known))
    if strangers:
        raise EnrolmentError(
            "a run names sites that are not enrolled",
            given=", ".join(strangers),
            expected=", ".join(sorted(known)) or "no site is enrolled yet",
            remedy=f"hushtune server enrol {home.folder} SITE.pub, or mend data.public_sizes",
        )
    return {name: known[name] for name in sorted(config.data.public_sizes)}


def check_config(config: RunConfig) -> None:
    """Refuse settings that mean something in a simulation alone; ConfigError."""
    simulation = config.simulation
    given = {
        "simulation.attack": simulation.attack != "none",
        "simulation.policies": simulation.policies is not None,
        "simulation.ledgers": simulation.ledgers is not None,
        "privacy.insecure_seeded_noise": config.privacy.insecure_seeded_noise,
    }
    if config.data.source != "sites":
        raise ConfigError(
            "a run of real sites takes their own rows, and no others",
            given="data that the coordinator names",
            expected='data.source = "sites"',
            remedy="set data.source, data.labels and data.public_sizes, and leave files out",
        )
    wrong = [key for key, is_set in given.items() if is_set]
    if wrong:
        raise ConfigError(
            "settings of a simulation have no meaning for real sites",
            given=", ".join(wrong),
            expected="none of them",
            remedy="leave them out: each site has its own policy, ledger and noise",
        )
