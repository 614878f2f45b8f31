"""Training the controls that are declared in evaluation/controls.py, as the Adaptor is trained, and comparing them."""

import logging
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import set_seed

from ..configuration_adaptor import AdaptorConfig
from ..evaluation.aligners import system_name
from ..evaluation.baselines import LEGEND, MARK, above_baseline
from ..evaluation.controls import CONTROLS, controls_made
from ..evaluation.retrieval import chance_retrieval, retrieval_intervals, retrieval_metrics
from ..markdown import table_row, table_rule
from ..modeling_adaptor import AdaptorModel
from ..objectives import AdaptorObjective, Objective
from .arguments import AdaptorTrainingArguments
from .base_trainer import KeepBest
from .needs import with_needs
from .pair_batches import side_of_column
from .pair_evaluation import embed_pairs
from .systems import System
from .trainer import AdaptorTrainer

if TYPE_CHECKING:
    from ..embeddings import EmbeddingCache

logger = logging.getLogger(__name__)


CONTROLS_FOLDER = "controls"
"""Inside a checkpoint's folder: the control models that `train_pretrain.py --controls` trained on the same pairs."""

FROZEN = "frozen_towers"
"""Key of the Adaptor on towers as they were before a run trained them, and the folder in the run's that holds it."""


@dataclass
class RetrievalResult:
    """
    Retrieval of one system on one split.

    Args:
        name (`str`): What was trained.
        metrics (`dict[str, float]`): As of `retrieval_metrics`.
        intervals (`dict[str, tuple[float, float]]`): 95 % intervals, of those metrics that have one.
        num_queries (`dict[str, int]`): Queries of each direction, `image_to_text` and `text_to_image`.
        learning_rate (`float`, *optional*): The rate chosen on validation; `None` where nothing was trained.
        validation_mean_recall (`float`, *optional*): What it was chosen by.
        chance (`dict[str, float]`): What a random order of the same images and texts scores, exactly, in the names of
            `metrics`.
        interval_over (`str`): `patients`, or `images` where no patient is known.
        interval_note (`str`): Why there is no interval.
    """

    name: str
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    num_queries: dict[str, int] = field(default_factory=dict)
    learning_rate: float | None = None
    validation_mean_recall: float | None = None
    chance: dict[str, float] = field(default_factory=dict)
    interval_over: str = "patients"
    interval_note: str = ""

    def above_chance(self, metric: str) -> bool:
        """Whether the interval of a metric is on the better side of chance, as of `above_baseline`."""
        low, high = self.intervals.get(metric, (float("nan"),) * 2)
        return above_baseline(metric, low, high, self.chance.get(metric, float("nan")))


class ShuffledPairs(Dataset):
    """The same images and texts, matched at random once: what is learned from it is not in the pairing."""

    def __init__(self, pairs: "EmbeddingCache", seed: int):
        self.pairs = pairs
        self.partner = np.random.default_rng(seed).permutation(len(pairs))

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def source_names(self) -> list[str]:
        return self.pairs.source_names

    @property
    def source_codes(self) -> np.ndarray | None:
        """Of the image, as the pairs have it."""
        return self.pairs.source_codes

    def __getitems__(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        batch = self.pairs.__getitems__(rows)
        other = self.pairs.__getitems__(self.partner[np.asarray(rows)])
        return batch | {name: value for name, value in other.items() if side_of_column(name) == "text"}


def evaluate_retrieval(model: AdaptorModel, pairs: "EmbeddingCache", name: str) -> RetrievalResult:
    """Retrieval on a split with intervals over its patients. Rows without patient count as one patient each."""
    embeds = embed_pairs(model, pairs)
    metrics, ranks = retrieval_metrics(embeds["image_embeds"], embeds["text_embeds"], embeds["text_row"])
    unit = "patients" if any(patient is not None for patient in pairs.pairs["patient_id"][:]) else "images"
    intervals = retrieval_intervals(ranks, embeds["text_row"], patients_of(pairs), unit=unit)
    queries = {way: len(rank) for way, rank in ranks.items()}
    chance = chance_retrieval(embeds["text_row"])
    known = {metric: ends for metric, ends in intervals.items() if not math.isnan(ends[0])}
    note = " ".join(sorted({reason for metric, reason in intervals.reasons.items() if metric not in known}))
    return RetrievalResult(name, metrics, known, queries, chance=chance, interval_over=unit, interval_note=note)


def patients_of(pairs: "EmbeddingCache") -> np.ndarray:
    """(n,) integer code of each row's patient; a row without one is its own."""
    known = pairs.pairs["patient_id"][:]
    return np.unique(
        [f"row {row}" if patient is None else f"patient {patient}" for row, patient in enumerate(known)],
        return_inverse=True,
    )[1]


def train_control(
    config: AdaptorConfig,
    train: Dataset,
    validation: "EmbeddingCache",
    arguments: AdaptorTrainingArguments,
    learning_rates: Sequence[float],
    make_objective: Callable[[], Objective] = AdaptorObjective,
) -> tuple[AdaptorModel, float, float]:
    """
    Train once a learning rate and keep the best epoch of the best rate, both by mean recall on validation. Each
    training has an objective of its own.

    Returns:
        `tuple[AdaptorModel, float, float]`: The model, its learning rate and its validation mean recall.
    """
    best: tuple[AdaptorModel, float, float] | None = None
    for learning_rate in learning_rates:
        set_seed(arguments.seed)
        model = AdaptorModel(config)
        keep = KeepBest("mean_recall")
        with tempfile.TemporaryDirectory() as folder:
            trainer = AdaptorTrainer(
                model=model,
                args=replace(
                    arguments,
                    output_dir=folder,
                    learning_rate=learning_rate,
                    # Of towers, which are frozen here.
                    tower_learning_rate=None,
                    layer_decay=1.0,
                    save_strategy="no",
                    load_best_model_at_end=False,
                    eval_strategy="epoch",
                    resume_from_checkpoint=None,
                    push_to_hub=False,
                    report_to=[],
                    disable_tqdm=True,
                ),
                objective=make_objective(),
                train_dataset=train,
                eval_dataset=validation,
                keep_best=keep,
                quiet=True,
            )
            trainer.train()
        if best is None or keep.score > best[2]:
            best = (model, learning_rate, keep.score)
    return best


def same_as_run(config: AdaptorConfig) -> tuple[str, ...]:
    """Keys of the pre-trained controls that would be the run itself, by its aligner: they are not trained again."""
    return tuple(key for key in controls_made("pretrained") if CONTROLS[key].aligner == config.aligner)


def train_controls(
    config: AdaptorConfig,
    train: "EmbeddingCache",
    validation: "EmbeddingCache",
    arguments: AdaptorTrainingArguments,
    learning_rates: Sequence[float],
    make_objective: Callable[[], Objective] = AdaptorObjective,
    adaptor: str = "adaptor",
) -> list[System]:
    """
    The Adaptor and its controls on one cache: all that is trained gets the same objective, learning rates, epochs,
    batch and seed, and its rate and epoch are chosen on validation. The raw towers are no control of what crosses
    modalities: their spaces are not comparable.

    Args:
        config (`AdaptorConfig`): The Adaptor's.
        train, validation (`EmbeddingCache`): Views with pairs only.
        arguments (`AdaptorTrainingArguments`): Epochs, batch, seed and the rest of the run.
        learning_rates (`Sequence[float]`): The shared grid.
        make_objective (`Callable`): Gives the run's objective anew, which all that is trained minimises.
        adaptor (`str`): Key in `CONTROLS` of the Adaptor itself: `frozen_towers` where the run's own has other towers.

    Returns:
        `list[System]`: Adaptor, the pre-trained ones of `CONTROLS` (two linear projections, Adaptor on shuffled pairs)
        but for [`same_as_run`], untrained Adaptor.
    """
    systems = []
    # Of a cache that is shuffled, all that is read must be open before.
    objective = make_objective()
    train, validation = (with_needs(objective, part, config) for part in (train, validation))
    for key in (adaptor, *controls_made("pretrained")):
        if key in same_as_run(config):
            continue
        control, shape = CONTROLS[key], config
        if control.aligner is not None:
            shape = config.with_aligner(control.aligner)
        pairs = ShuffledPairs(train, arguments.seed) if control.shuffled else train
        name = system_name(key, shape.aligner)
        logger.info(f"Control: {name}, learning rates {', '.join(f'{rate:g}' for rate in learning_rates)}")
        model, learning_rate, score = train_control(shape, pairs, validation, arguments, learning_rates, make_objective)
        model = model.to(arguments.device).eval()
        systems.append(System(key, model, learning_rate=learning_rate, validation_mean_recall=score))
    for key in controls_made("built"):
        if CONTROLS[key].new_weights:
            set_seed(arguments.seed)
            systems.append(System(key, AdaptorModel(config).to(arguments.device).eval()))
    return systems


def compare_retrieval(systems: Sequence[System], test: "EmbeddingCache") -> list[RetrievalResult]:
    """Retrieval of every system on a split."""
    return [
        replace(
            evaluate_retrieval(system.model, test, system.label),
            learning_rate=system.learning_rate,
            validation_mean_recall=system.validation_mean_recall,
        )
        for system in systems
    ]


def save_controls(systems: Sequence[System], folder: str | os.PathLike) -> dict[str, str]:
    """
    Save the control models of [`train_controls`] for `adaptor_hf.tasks.controls.load_systems`.

    Returns:
        `dict[str, str]`: Key of each pre-trained control to its folder.
    """
    saved = {}
    for system in systems:
        if system.key in controls_made("pretrained"):
            saved[system.key] = os.path.join(folder, system.key)
            system.model.save_pretrained(saved[system.key])
    return saved


def format_table(results: list[RetrievalResult]) -> str:
    """
    Markdown table of retrieval with 95 % intervals, a mark where a value is not above chance, chance itself in the last
    row, and a legend.
    """
    columns = ["image_to_text_recall@1", "image_to_text_recall@5", "image_to_text_recall@10", "text_to_image_recall@10"]
    columns += ["mean_recall", "image_to_text_median_rank"]
    head = ["system", "i2t R@1", "i2t R@5", "i2t R@10", "t2i R@10", "mean recall", "i2t median rank", "learning rate"]
    lines = [table_row(head), table_rule(len(head))]
    for result in results:
        cells = [result.name]
        for column in columns:
            digits = 1 if column.endswith("_rank") else 3
            cell = f"{result.metrics[column]:.{digits}f}"
            if column in result.intervals:
                low, high = result.intervals[column]
                cell += f" [{low:.{digits}f}, {high:.{digits}f}]"
            elif not column.endswith("median_rank"):
                cell += " [n/a]"
            cells.append(cell if result.above_chance(column) else f"{cell} {MARK}")
        cells.append("" if result.learning_rate is None else f"{result.learning_rate:g}")
        lines.append(table_row(cells))
    chance = [f"{results[0].chance[column]:.{1 if column.endswith('_rank') else 3}f}" for column in columns]
    lines.append(table_row(["trivial: chance", *chance, ""]))
    notes = sorted({result.interval_note for result in results} - {""})
    return "\n".join([*lines, "", f"Intervals: 95 %, over {results[0].interval_over}.", *notes, "", LEGEND])


__all__ = [
    "CONTROLS_FOLDER",
    "FROZEN",
    "RetrievalResult",
    "ShuffledPairs",
    "compare_retrieval",
    "evaluate_retrieval",
    "format_table",
    "patients_of",
    "same_as_run",
    "save_controls",
    "train_control",
    "train_controls",
]
