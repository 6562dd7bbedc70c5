"""How a site trains in one round, as an order says it."""

from __future__ import annotations

from dataclasses import dataclass

from hushtune.common.errors import MessageError
from hushtune.common.schedules import learning_rate
from hushtune.common.wire_values import is_count, is_number


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalTraining:
    """How a site trains in one round; nothing in here can change what privacy costs."""

    learning_rate: float
    optimizer: str
    schedule: str
    weight_decay: float
    first_step: int
    schedule_steps: int
    microbatch: int
    sampling_probability: float = 1.0
    """Of a record, where the plan is about clients and says nothing of records."""
    proximal: float = 0.0
    """mu of FedProx (1812.06127): how strongly steps are drawn to the adapter of the order."""
    rate_warmup_steps: int = 0
    """Steps of the phase in which the learning rate rises to its full height."""

    def __post_init__(self) -> None:
        allowed = {
            "learning_rate": is_number(self.learning_rate) and self.learning_rate > 0,
            "optimizer": self.optimizer in ("adamw", "sgd"),
            "schedule": self.schedule in ("constant", "linear", "cosine"),
            "weight_decay": is_number(self.weight_decay) and self.weight_decay >= 0,
            "first_step": is_count(self.first_step, 0),
            "schedule_steps": is_count(self.schedule_steps, 1),
            "microbatch": is_count(self.microbatch, 1),
            "sampling_probability": is_number(self.sampling_probability)
            and 0 < self.sampling_probability <= 1,
            "proximal": is_number(self.proximal) and self.proximal >= 0,
            "rate_warmup_steps": is_count(self.rate_warmup_steps, 0),
        }
        for name, good in allowed.items():
            if not good:
                given = repr(getattr(self, name))[:100]
                raise MessageError(f"{name} of an order has a wrong value", given=given)

    def rate(self, step: int) -> float:
        """The learning rate of a step of the round, counted from 0."""
        return learning_rate(
            self.learning_rate,
            self.schedule,
            self.first_step + step,
            self.schedule_steps,
            warmup=self.rate_warmup_steps,
        )
