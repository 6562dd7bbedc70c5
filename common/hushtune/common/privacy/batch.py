"""How small the expected batch of a step may be."""

from hushtune.common.errors import PlanError

LEAST_BATCH = 0.1
"""Expected units of a step: below, nine of ten steps and more are noise alone."""


def check_expected(place: str, expected: float, public_size: int, *, of_clients: bool) -> None:
    """PlanError where `expected` units of `public_size` are too few to be a step's batch."""
    if expected >= LEAST_BATCH:
        return
    setting = "privacy.client_sampling_probability" if of_clients else "train.sampling_probability"
    least = LEAST_BATCH / public_size
    raise PlanError(
        f"hardly any step would draw {'a client' if of_clients else f'a record of {place}'}: "
        "the expected batch is next to nothing",
        given=f"{setting} = {expected / public_size:g} of {public_size}, an expected batch of "
        f"{expected:.2g}",
        expected=f"an expected batch of {LEAST_BATCH:g} or more, "
        f"which is {setting} of {least:.2g} or more",
        remedy=f"raise {setting}; a batch of some hundred is what noise does not drown",
    )
