"""The named terms of an objective: their means since the last log line, over steps and processes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..objectives import Objective
from ..objectives.loading import objective_name

RESERVED = frozenset({"grad_norm", "learning_rate", "epoch", "step", "total_flos", "num_input_tokens_seen"})
"""Names of a log line that are not an objective's to give; `loss` is the one that it must give."""
RESERVED_PREFIXES = ("eval_", "train_", "test_")


class RunningTerms:
    """
    Sums of terms on their device: nothing waits for them before a log line.

    Args:
        device (`torch.device`): Of the training.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.sums: dict[str, torch.Tensor] = {}
        self.weights: dict[str, float] = {}

    def add(self, terms: dict[str, torch.Tensor], weight: float = 1.0) -> None:
        """
        Add what one batch gave, but for the loss, which Trainer sums.

        Args:
            terms (`dict[str, torch.Tensor]`): Scalars.
            weight (`float`): Share of this batch in its optimizer step.

        Raises:
            ValueError: a term has the name of something else in the log.
        """
        for name, value in terms.items():
            if name == "loss":
                continue
            if name not in self.sums:
                check_name(name)
                self.sums[name], self.weights[name] = torch.zeros((), device=self.device), 0.0
            self.sums[name] += weight * value.detach()
            self.weights[name] += weight

    def state(self) -> dict[str, list[float]]:
        """Sum and weight of each term of this process."""
        return {name: [total.item(), self.weights[name]] for name, total in self.sums.items()}

    def load(self, states: Sequence[dict[str, list[float]]], process: int, processes: int) -> None:
        """Take over what `state` gave on each process; the mean of all where there were more or fewer of them."""
        if len(states) == processes:
            own = states[process]
        else:
            own = {name: [part / len(states) for part in parts] for name, parts in totals(states).items()}
        self.sums = {name: torch.tensor(total, device=self.device) for name, (total, _) in own.items()}
        self.weights = {name: weight for name, (_, weight) in own.items()}

    def take_means(self, processes: int) -> dict[str, float]:
        """Means since the last call. With several processes all must call it together."""
        states = [self.state()]
        if processes > 1:
            states = [None] * processes
            torch.distributed.all_gather_object(states, self.state())
        self.sums, self.weights = {}, {}
        return {name: total / weight for name, (total, weight) in totals(states).items()}


def totals(states: Sequence[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Sum and weight of each term over processes; one may lack a term."""
    found: dict[str, list[float]] = {}
    for name, (total, weight) in (item for state in states for item in state.items()):
        before = found.get(name, (0.0, 0.0))
        found[name] = [before[0] + total, before[1] + weight]
    return found


def is_reserved(name: str) -> bool:
    return name in RESERVED or name.startswith(RESERVED_PREFIXES)


def check_name(name: str) -> None:
    """Raise ValueError where a term would be taken for something else in the log."""
    if is_reserved(name):
        raise ValueError(
            f"The objective gives a term named {name!r}, which is something else in the log. Rename it; reserved are "
            f"{', '.join(sorted(RESERVED))}, and what begins with {', '.join(RESERVED_PREFIXES)}."
        )


def check_finite(means: dict[str, float], step: int) -> dict[str, float]:
    """The means of terms, or a FloatingPointError where one is NaN or infinite."""
    if broken := [name for name, value in means.items() if not math.isfinite(value)]:
        raise FloatingPointError(
            f"The term {broken[0]!r} of the objective became {means[broken[0]]} before step {step}, while the loss is "
            "finite. It may be a mean of nothing: leave the term out of such a batch in the objective's forward, or "
            "give 0."
        )
    return means


def smaller_steps(objective: Objective | None = None) -> str:
    """
    What to go on with after the loss became NaN or infinite.

    Args:
        objective (`Objective`, *optional*): By default that of the paper.
    """
    options = ["a lower learning_rate", "in float32"]
    if objective is None or objective_name(type(objective)) == "adaptor":
        options.append("with --objective '{\"max_logit_scale\": 100}'")
    elif "max_logit_scale" in objective.config_fields:
        options.append("with max_logit_scale 100 among the fields of --objective")
    else:
        options.append(f"with a forward of {type(objective).__name__} that divides by nothing that can be 0")
    return f"{', '.join(options[:-1])}, or {options[-1]}"


def why_zero(objective: Objective) -> str:
    """Why a training loss may be exactly 0, which most often is no success."""
    positives = getattr(objective, "positives", None)
    if positives is None:
        return f"{type(objective).__name__} finds nothing to change in any batch, and nothing is learned."
    return (
        "all pairs are told apart with certainty, or no row of a batch has a negative (the objective's positives: "
        f"{positives}) and nothing is learned. Check the column that this goes by."
    )


def last_terms(log_history: Sequence[dict[str, float]]) -> dict[str, float]:
    """The terms of the last log line of training; the loss is not among them."""
    last = next((entry for entry in reversed(log_history) if "loss" in entry), {})
    return {name: value for name, value in last.items() if name != "loss" and not is_reserved(name)}


__all__ = [
    "RESERVED",
    "RunningTerms",
    "check_finite",
    "check_name",
    "is_reserved",
    "last_terms",
    "smaller_steps",
    "totals",
    "why_zero",
]
