"""How many rows an order has a site compute at once."""

from __future__ import annotations

from typing import Any

import pytest

from hushtune.common.planning import site_plans
from hushtune.common.tasks.workspace import open_workspace, resolve
from hushtune.server.orders import make_orders

SITE = {"privacy__trust": "site", "privacy__epsilon": 8.0}


def rows_at_once(config: Any, sizes: dict[str, int] | None = None) -> dict[str, int]:
    config = resolve(config)
    orders = make_orders(
        open_workspace(config).initial_state,
        run="run",
        round=1,
        config=config,
        plans=site_plans(config),
        sizes=sizes or config.data.public_sizes,
    )
    return {site: order.training.microbatch for site, order in orders.items()}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train__batch_size": 3}, 3),
        ({"train__batch_size": 9}, 5),
        ({"train__batch_size": 30}, 8),
        ({"train__batch_size": 30, "train__microbatch": 5}, 5),
        ({"train__batch_size": 3, "train__microbatch": 1}, 1),
        ({"train__batch_size": 3, "augment__views": 7, "augment__word_dropout": 0.1}, 7),
        ({"train__sampling_probability": 1.0, "train__microbatch": 4}, 4),
        ({"train__batch_size": 9, "speed__gradients": "fused"}, 10),
        ({"train__batch_size": 9, "speed__gradients": "fused", "speed__pack": False}, 5),
        ({"train__batch_size": 9, "speed__gradients": "fused", "model__head": "own"}, 5),
        ({"train__batch_size": 9, "speed__gradients": "fused", "adapter__dropout": 0.1}, 5),
    ],
)
@pytest.mark.parametrize("trust", [{"privacy__trust": "off"}, SITE], ids=["off", "site"])
def test_few_of_the_rows_that_a_step_is_expected_to_have_are_computed_at_once(
    changes: dict[str, Any], expected: int, trust: dict[str, Any], settings: Any
) -> None:
    probability = changes.get("train__sampling_probability")
    made = settings.config(**{"train__sampling_probability": probability, **changes, **trust})
    assert set(rows_at_once(made).values()) == {expected}


def test_it_follows_from_public_sizes_alone(settings: Any) -> None:
    config = settings.config(train__sampling_probability=0.25)
    sizes = {"east": 32, "north": 33, "south": 400}
    assert rows_at_once(config, sizes) == {"east": 4, "north": 5, "south": 15}
