"""How heads and decoders are trained on frozen parts: our protocol, and those of published systems by name."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .logistic import STRENGTHS


@dataclass(frozen=True)
class ProbeProtocol:
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


PROTOCOLS: dict[str, ProbeProtocol] = {
    "rigorous": ProbeProtocol(
        "rigorous", max_steps=300, eval_steps=20, patience=5, standardize=True, strengths=STRENGTHS
    ),
    "adaptor": ProbeProtocol(
        "adaptor", "mlp2", (5e-5,), weight_decay=1e-4, batch_size=512, epochs=100, min_delta=1e-3, monitor="metric",
        schedule="cosine_restarts", dropout=0.1, fraction_rule="mgca",
    ),
    "mgca": ProbeProtocol(
        "mgca", "linear", (5e-4,), weight_decay=1e-6, batch_size=48, epochs=50, monitor="loss", fraction_rule="mgca"
    ),
    "gloria": ProbeProtocol(
        "gloria", "linear", (5e-4,), "adam", (0.5, 0.999), weight_decay=1e-6, batch_size=64, epochs=50, monitor="loss",
        schedule="plateau", fraction_rule="gloria",
    ),
    "slip": ProbeProtocol(
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


def get_protocol(name: str, dataset: str | None = None, head: str | None = None) -> ProbeProtocol:
    """
    A protocol by name, with the values that its authors used for a data set.

    Args:
        name (`str`): A key of `PROTOCOLS`.
        dataset (`str`, *optional*): Name of the data set.
        head (`str`, *optional*): `linear` or `mlp2`, instead of the protocol's.

    Raises:
        ValueError: no such protocol or head.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"Unknown protocol {name!r}. Choose one of: {', '.join(PROTOCOLS)}.")
    if head not in (None, "linear", "mlp2"):
        raise ValueError(f"head is linear or mlp2, got {head!r}.")
    protocol = replace(PROTOCOLS[name], **_BY_DATASET.get((name, dataset), {}))
    return protocol if head is None else replace(protocol, head=head)


@dataclass(frozen=True)
class SegmentationProtocol:
    """
    Training of a decoder, with AdamW and the loss of MGCA (`mixed_loss`).

    Args:
        name (`str`): In results.
        learning_rate, weight_decay (`float`): Of AdamW.
        batch_size, epochs (`int`): Images a step; passes over the training images.
        patience (`int`): Evaluations without a better `monitor` after which training stops; one an epoch.
        min_delta (`float`): What counts as better for `patience`.
        monitor (`str`): Metric on validation that keeps the best epoch.
        cosine_epochs (`int`, *optional*): The rate falls as a half cosine that reaches 0 after so many epochs, even if
            training is shorter (the reference: 100). By default it is constant.
        augment (`bool`): Rotation up to 10 degrees and scale up to 10 %, half of the time (MGCA, Adaptor).
        fraction_rule (`str`): Of `adaptor_hf.data.fractions`.
    """

    name: str
    learning_rate: float = 5e-4
    weight_decay: float = 1e-4
    batch_size: int = 8
    epochs: int = 50
    patience: int = 10
    min_delta: float = 0.0
    monitor: str = "dice_pooled"
    cosine_epochs: int | None = None
    augment: bool = True
    fraction_rule: str = "nested"


SEGMENTATION_PROTOCOLS = {
    "rigorous": SegmentationProtocol("rigorous"),
    "adaptor": SegmentationProtocol(
        "adaptor", min_delta=1e-3, monitor="dice_reference", cosine_epochs=100, fraction_rule="mgca_detection"
    ),
    "mgca": SegmentationProtocol("mgca", 5e-4, 0.05, 16, monitor="loss", fraction_rule="mgca_detection"),
}
"""`rigorous` (ours), and the values of Adaptor and MGCA for RSNA; see docs/downstream.md."""

# What the references change from one data set to another.
_SEGMENTATION_BY_DATASET = {
    ("adaptor", "siim"): {"epochs": 100, "fraction_rule": "mgca_balanced"},
    ("mgca", "siim"): {"batch_size": 8, "fraction_rule": "mgca_balanced"},
}


def get_segmentation_protocol(name: str, dataset: str | None = None) -> SegmentationProtocol:
    """
    A protocol by name, with the values that its authors used for a data set.

    Raises:
        ValueError: no such protocol.
    """
    if name not in SEGMENTATION_PROTOCOLS:
        known = ", ".join(SEGMENTATION_PROTOCOLS)
        raise ValueError(f"--task segmentation has no protocol {name!r}. Choose one of: {known}.")
    return replace(SEGMENTATION_PROTOCOLS[name], **_SEGMENTATION_BY_DATASET.get((name, dataset), {}))


__all__ = [
    "PROTOCOLS",
    "SEGMENTATION_PROTOCOLS",
    "ProbeProtocol",
    "SegmentationProtocol",
    "get_protocol",
    "get_segmentation_protocol",
]
