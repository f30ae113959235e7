"""How long a run trains, and the learning rate along the way: pure functions of the position, nothing to save."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from launch.errors import InputError

_BUDGET = re.compile("".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in "dhms"))


@dataclass(frozen=True)
class ScheduleSettings:
    """How long to train, and the shape of the learning rate."""

    epochs: int | None = 1
    """Passes over the training data; null for no limit."""
    steps: int | None = None
    """Optimizer steps at the most; null for no limit."""
    budget: str | None = None
    """Time budget such as `30m`, `1h30m` or `90s`; the learning rate lands on it."""
    warmup_share: float = 0.06
    """Share of the run over which the learning rate rises linearly from 0."""
    shape: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""

    def __post_init__(self) -> None:
        """Refuse what cannot end, or cannot begin."""
        if self.epochs is None and self.steps is None and self.budget is None:
            raise ValueError("schedule: set at least one of epochs, steps and budget, or the run never ends")
        if not 0 <= self.warmup_share < 1:
            raise ValueError(f"schedule.warmup_share: {self.warmup_share} is not in [0, 1)")
        for name in ("epochs", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"schedule.{name}: {value} is not positive")
        if self.budget is not None:
            budget_in_seconds(self.budget)

    def share_done(self, step: int, epochs: float, seconds: float) -> float:
        """Share of the run that lies behind: 0 before the first step, 1 where it ends."""
        shares = [0.0]
        if self.epochs is not None:
            shares.append(epochs / self.epochs)
        if self.steps is not None:
            shares.append(step / self.steps)
        if self.budget is not None:
            shares.append(seconds / budget_in_seconds(self.budget))
        return min(1.0, max(shares))

    def factor(self, share_done: float) -> float:
        """Learning rate at this share of the run, as a factor of the peak."""
        if share_done < self.warmup_share:
            return share_done / self.warmup_share
        falling = (share_done - self.warmup_share) / (1 - self.warmup_share)
        if self.shape == "linear":
            return 1 - falling
        return 0.5 * (1 + math.cos(math.pi * falling)) if self.shape == "cosine" else 1.0


def budget_in_seconds(budget: str) -> float:
    """Seconds in ``1h30m``, ``30m``, ``90s``, ``2d``; InputError for anything else."""
    match = _BUDGET.fullmatch(budget.strip())
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0,) * 4
    if not (total := 86400 * days + 3600 * hours + 60 * minutes + seconds):
        raise InputError(f"budget {budget!r} is not a time such as 30m, 1h30m or 90s")
    return total
