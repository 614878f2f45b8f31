"""How a head is trained on frozen features: our protocol, and those of published systems by name."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .logistic import STRENGTHS


@dataclass(frozen=True)
class ProbeRecipe:
    """
    Training of a head.

    Args:
        name (`str`): In results.
        head (`str`): `linear`, or `mlp2` (the paper's two layers, 512 wide).
        learning_rates (`tuple[float, ...]`): With more than one, the rate is chosen on validation.
        optimizer (`str`): `adamw`, `adam` or `sgd` (momentum 0.9).
        betas (`tuple[float, float]`), weight_decay (`float`): Of the optimizer.
        batch_size (`int`): Rows a step.
        epochs (`int`), max_steps (`int`, *optional*): Length; `max_steps`, where given, instead of epochs.
        eval_steps (`int`, *optional*): Steps between evaluations on validation; by default an epoch.
        patience (`int`, *optional*): Evaluations without improvement after which training stops.
        min_delta (`float`): What counts as an improvement.
        monitor (`str`): On validation: `auroc` (macro; of equal ones the lower loss), `metric` (AUROC; accuracy for
            exclusive classes) or `loss`. The best evaluation is kept, and chooses the learning rate.
        schedule (`str`): `constant`, `cosine_restarts` (stepped once an epoch, as the reference code of Adaptor does),
            `cosine_epochs` or `plateau` (half after 5 evaluations without a lower loss).
        dropout (`float`): Before each linear layer.
        standardize (`bool`): Features to mean 0 and deviation 1 of the training rows.
        weight_std (`float`, *optional*): Initial weights normal with this deviation, biases 0.
        fraction_rule (`str`): Of `adaptor_hf.data.fractions`.
        strengths (`tuple[float, ...]`, *optional*): Where given, a linear head is a logistic regression solved to
            convergence, C (inverse penalty) one of these as of `choose_on_validation`, and what is said above of
            optimizer, length and rate is of heads with a hidden layer.
    """

    name: str
    head: str = "linear"
    learning_rates: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    batch_size: int = 1024
    epochs: int = 100
    max_steps: int | None = None
    eval_steps: int | None = None
    patience: int | None = 10
    min_delta: float = 0.0
    monitor: str = "auroc"
    schedule: str = "constant"
    dropout: float = 0.0
    standardize: bool = False
    weight_std: float | None = None
    fraction_rule: str = "nested"
    strengths: tuple[float, ...] | None = None

    @property
    def hidden_size(self) -> int | None:
        return 512 if self.head == "mlp2" else None


RECIPES: dict[str, ProbeRecipe] = {
    "rigorous": ProbeRecipe(
        "rigorous", max_steps=300, eval_steps=20, patience=5, standardize=True, strengths=STRENGTHS
    ),
    "adaptor": ProbeRecipe(
        "adaptor", "mlp2", (5e-5,), weight_decay=1e-4, batch_size=512, epochs=100, min_delta=1e-3, monitor="metric",
        schedule="cosine_restarts", dropout=0.1, fraction_rule="mgca",
    ),
    "mgca": ProbeRecipe(
        "mgca", "linear", (5e-4,), weight_decay=1e-6, batch_size=48, epochs=50, monitor="loss", fraction_rule="mgca"
    ),
    "gloria": ProbeRecipe(
        "gloria", "linear", (5e-4,), "adam", (0.5, 0.999), weight_decay=1e-6, batch_size=64, epochs=50, monitor="loss",
        schedule="plateau", fraction_rule="gloria",
    ),
    "slip": ProbeRecipe(
        "slip", "linear", (0.00625,), "sgd", weight_decay=0.0, batch_size=1024, epochs=90, patience=None,
        monitor="metric", schedule="cosine_epochs", weight_std=0.01, fraction_rule="nested",
    ),
}  # fmt: skip
"""`rigorous` (ours), and the hyper-parameters of Adaptor, MGCA, GLoRIA and SLIP; see docs/downstream.md."""

# What the references change from one data set to another.
_BY_DATASET = {
    ("adaptor", "covidx"): {
        "learning_rates": (5e-4,), "weight_decay": 0.05, "batch_size": 128, "epochs": 50, "patience": 5,
    },
    ("gloria", "chexpert"): {"learning_rates": (1e-4,)},
}  # fmt: skip


def get_recipe(name: str, dataset: str | None = None, head: str | None = None) -> ProbeRecipe:
    """
    A recipe by name, with the values that its authors used for a data set.

    Args:
        name (`str`): A key of `RECIPES`.
        dataset (`str`, *optional*): Name of the data set.
        head (`str`, *optional*): `linear` or `mlp2`, instead of the recipe's.

    Raises:
        ValueError: no such recipe or head.
    """
    if name not in RECIPES:
        raise ValueError(f"Unknown recipe {name!r}. Choose one of: {', '.join(RECIPES)}.")
    if head not in (None, "linear", "mlp2"):
        raise ValueError(f"head is linear or mlp2, got {head!r}.")
    recipe = replace(RECIPES[name], **_BY_DATASET.get((name, dataset), {}))
    return recipe if head is None else replace(recipe, head=head)


__all__ = ["RECIPES", "ProbeRecipe", "get_recipe"]
