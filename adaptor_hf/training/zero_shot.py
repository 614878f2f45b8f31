"""Zero-shot classification while training: the AUROC of each class, from texts that name and deny it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..data.positive import spelling_key
from ..embeddings.targets import TARGETS, target_values
from ..evaluation.classification import MULTI, classification_metrics
from ..evaluation.zero_shot import prompt_features, prompt_scores
from ..modeling_adaptor import AdaptorModel
from ..privacy.class_names import names_written
from ..privacy.vocabulary import column_list
from ..towers_adaptor import TextTower, load_text_tower
from .pair_embeddings import PairEmbeddings, as_they_were
from .pair_evaluation import PairEvaluator

if TYPE_CHECKING:
    from torch import Tensor

    Prompts = Sequence[str] | Tensor

logger = logging.getLogger(__name__)

CHANCE = 0.5
"""AUROC of any score that knows nothing of the class."""


class ZeroShot(PairEvaluator):
    """
    AUROC of each class on the images of a split: cosine to the texts that name it, minus that to those that deny it.
    The scores are those of `train_downstream.py --task zero_shot`.

    Labels are the column `targets`: of an `EmbeddingCache`, what its table had as `labels`; else of the batches. They
    are `(N, C)` of 0 and 1, or class numbers `(N,)`; NaN and -1 (unknown, uncertain) do not count. A class without a
    positive or a negative has no AUROC: it is left out of the mean, and named in the log.

    Metrics, with `name` before them: `zero_shot_auroc` (the mean), and of each class `zero_shot_auroc/CLASS`,
    `zero_shot_positives/CLASS` and `zero_shot_negatives/CLASS`; `zero_shot_classes`, those in the mean; and
    `zero_shot_chance`, 0.5.

    Args:
        prompts (`Mapping` or `PromptSet`): Of each class the texts that name it and those that deny it, or no others:
            `{"effusion": (["pleural effusion"], ["no pleural effusion"])}`; or what `load_prompts` of
            `adaptor_hf.tasks.prompts` gives. In place of a list of texts what the text tower gives of them, `(n, D)`.
        classes (`Sequence[str]`, *optional*): What the columns (or numbers) of `targets` are called, in their order. By
            default the names that the data set has for them; a cache has none.
        text_tower (`TextTower` or `str` or `dict`, *optional*): By default that of the model, or the one that its
            config names: it is loaded for the prompts and let go.
        name (`str`): Of another set of prompts beside this one.

    Raises:
        TypeError, ValueError: prompts of another form, naming the class.
    """

    columns = (TARGETS,)

    def __init__(
        self,
        prompts: Mapping[str, tuple[Prompts, Prompts | None]] | Any,
        *,
        classes: Sequence[str] | None = None,
        text_tower: TextTower | str | dict[str, Any] | None = None,
        name: str = "zero_shot",
    ):
        if hasattr(prompts, "positive"):
            prompts = {key: (texts, prompts.negative.get(key)) for key, texts in prompts.positive.items()}
        if not isinstance(prompts, Mapping) or not prompts:
            raise TypeError(f"prompts must be a mapping from classes to their texts, got {type(prompts).__name__}.")
        self.prompts = {key: _checked(key, value) for key, value in prompts.items()}
        self.classes, self.text_tower, self.name = classes, text_tower, name
        self._features: tuple[str, dict[str, tuple[Tensor, Tensor | None]]] | None = None
        self._named = False

    def metric_names(self, sources: Sequence[str] = ()) -> dict[str, bool]:
        return {f"{self.name}_auroc": True} | {f"{self.name}_auroc/{said}": True for said in self._said}

    @cached_property
    def _said(self) -> list[str]:
        """How each class is called in metrics and in the log."""
        written = names_written(self.prompts)
        return [written[key] for key in self.prompts]

    def check(self, model: AdaptorModel, dataset: Dataset) -> None:
        """
        Embed the prompts, and see that a class can be scored. Of a data set without `pairs` only the first.

        Raises:
            OSError, ValueError: no text tower, no labels, or other classes; or the model pools tokens itself, which
                the prompts do not have.
        """
        if model.config.attention_pooling_heads is not None:
            raise ValueError(
                f"{self.name}: prompts are one embedding each, and a model with attention_pooling_heads needs their "
                "tokens. Leave the evaluator out, or train without attention_pooling_heads."
            )
        with as_they_were(model):
            self._features_of(model)
        if _has_pairs(dataset):
            self._scorable(self._truth(_targets_of_pairs(dataset), dataset))

    def measure(self, model: AdaptorModel, embeds: PairEmbeddings, dataset: Dataset) -> dict[str, float]:
        given = embeds[TARGETS].cpu().numpy() if TARGETS in embeds else _targets_of_pairs(dataset)
        truth, images = self._truth(given, dataset), embeds["image_embeds"]
        if len(truth) != len(images):
            raise ValueError(f"{len(truth)} rows have labels and {len(images)} embeddings: they must be the same rows.")
        scorable = self._scorable(truth)
        scores = prompt_scores(model, images, self._features_of(model))
        found = classification_metrics(scores, truth, problem_type=MULTI, class_names=self._said, probabilities=False)
        metrics = {f"{self.name}_auroc": found["auroc"]}
        for column, key in enumerate(self._said):
            if scorable[column]:
                # Of one class alone there is no mean beside it.
                metrics[f"{self.name}_auroc/{key}"] = found.get(f"auroc/{key}", found["auroc"])
            metrics[f"{self.name}_positives/{key}"] = int((truth[:, column] == 1).sum())
            metrics[f"{self.name}_negatives/{key}"] = int((truth[:, column] == 0).sum())
        return metrics | {f"{self.name}_classes": int(scorable.sum()), f"{self.name}_chance": CHANCE}

    def _scorable(self, truth: np.ndarray) -> np.ndarray:
        """(C,) bool: classes with a positive and a negative. The others are named, once."""
        scorable = (truth == 1).any(0) & (truth == 0).any(0)
        left_out = [
            f"{said} ({(column == 1).sum()} positive, {(column == 0).sum()} negative)"
            for said, column, scored in zip(self._said, truth.T, scorable, strict=True)
            if not scored
        ]
        if not scorable.any():
            raise ValueError(
                f"{self.name}: no class can be scored on these {len(truth)} rows: {', '.join(left_out)}. An AUROC "
                "needs at least one positive and one negative. Check the labels, or leave this evaluator out."
            )
        if left_out and not self._named:
            logger.warning(
                "%s: no AUROC of %s. The mean is over %d of %d classes.",
                self.name, ", ".join(left_out), scorable.sum(), len(scorable),
            )  # fmt: skip
            self._named = True
        return scorable

    def _truth(self, targets: np.ndarray, dataset: Dataset) -> np.ndarray:
        """`(N, C)` of 0, 1 and NaN in the order of the prompts, from the column `targets`."""
        names = _feature_names(dataset) or self.classes
        if names is None:
            raise ValueError(
                f"{self.name}: the column targets has no names for its classes here. Give ZeroShot(..., classes=[...]) "
                "in the order of the label columns that the cache was built of, or of the class numbers."
            )
        if self.classes is not None and list(map(spelling_key, names)) != list(map(spelling_key, self.classes)):
            raise ValueError(f"{self.name}: classes are others than those of the data. {column_list(names, 'Its own')}")
        targets = targets.astype(np.float64)
        if targets.ndim == 1 and len(names) > 1:
            known = targets >= 0
            if (targets[known] >= len(names)).any() or (targets[known] % 1).any():
                raise ValueError(f"{self.name}: targets must be class numbers below {len(names)}, or -1 for unknown.")
            targets = np.where(known[:, None], targets[:, None] == np.arange(len(names)), np.nan)
        targets = targets.reshape(len(targets), -1)
        if targets.shape[1] != len(names):
            raise ValueError(
                f"{self.name}: targets have {targets.shape[1]} columns, and there are {len(names)} classes. Name all "
                "of them, in their order."
            )
        places = {spelling_key(key): column for column, key in enumerate(names)}
        missing = [said for said, key in zip(self._said, self.prompts, strict=True) if spelling_key(key) not in places]
        if missing:
            raise ValueError(
                f"{self.name}: there are prompts for {', '.join(missing)}, which the labels do not have. "
                f"{column_list(names, 'They have')} Leave these prompts out, or call them as the labels are called."
            )
        chosen = targets[:, [places[spelling_key(key)] for key in self.prompts]]
        return np.where(chosen == -1, np.nan, chosen)

    def _features_of(self, model: AdaptorModel) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Of each class what the text tower gives of its prompts."""
        attached = self.text_tower if isinstance(self.text_tower, TextTower) else getattr(model, "text_model", None)
        if self.text_tower is not None and attached is not self.text_tower:
            attached = None
        reference = None if attached is not None else self.text_tower or model.config.text_tower
        key = json.dumps(attached.spec if attached is not None else reference, sort_keys=True, default=str)
        trains = attached is not None and any(value.requires_grad for value in attached.parameters())
        if self._features is not None and self._features[0] == key and not trains:
            return self._features[1]
        if attached is None and any(not _is_tensor(one) for pair in self.prompts.values() for one in pair):
            attached = self._loaded(reference, model)
        found = {
            name: tuple(
                one if one is None or _is_tensor(one) else prompt_features(attached, one).float().cpu() for one in pair
            )
            for name, pair in self.prompts.items()
        }
        self._features = key, found
        return found

    def _loaded(self, reference: Any, model: AdaptorModel) -> TextTower:
        if not reference or (isinstance(reference, dict) and reference.get("library") == "external"):
            raise ValueError(
                f"{self.name}: the config of the model names no text tower that can be loaded. Give "
                "ZeroShot(..., text_tower=...) the one that its texts were embedded with, or embeddings as prompts."
            )
        return load_text_tower(reference, device=model.device)


def _is_tensor(prompts: Any) -> bool:
    return prompts is None or isinstance(prompts, torch.Tensor)


def _checked(key: str, value: Any) -> tuple[Prompts, Prompts | None]:
    if not isinstance(value, (tuple, list)) or len(value) != 2 or isinstance(value[0], str):
        raise TypeError(
            f"prompts of {key!r} must be two lists: texts that name the class, and texts that deny it, or None."
        )
    for one in value:
        if one is None and one is not value[0]:
            continue
        if isinstance(one, torch.Tensor):
            if one.ndim != 2 or not len(one):
                raise ValueError(f"prompts of {key!r} as embeddings must be (n, D), got {tuple(one.shape)}.")
        elif isinstance(one, str) or not one or not all(isinstance(text, str) and text.strip() for text in one):
            raise ValueError(f"prompts of {key!r} must be lists of texts, at least one in each.")
    return tuple(value)


def _has_pairs(dataset: Dataset) -> bool:
    return hasattr(dataset, "pairs") and hasattr(dataset.pairs, "column_names")


def _feature_names(dataset: Dataset) -> list[str] | None:
    """Names of the columns or numbers of `targets`, where a data set of `datasets` has them."""
    features = getattr(dataset.pairs if _has_pairs(dataset) else dataset, "features", None) or {}
    feature = features.get(TARGETS)
    names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
    return None if names is None else list(names)


def _targets_of_pairs(dataset: Dataset) -> np.ndarray:
    """The labels in the table of a cache, as of `target_values`."""
    if not _has_pairs(dataset) or TARGETS not in dataset.pairs.column_names:
        raise ValueError(
            "ZeroShot needs labels, and this data set has no targets. Build the cache from a table with labels "
            "(load_table of adaptor_hf.tasks.data, with label_columns), or give examples a column targets."
        )
    labels = dataset.pairs.select_columns([TARGETS]).with_format("arrow")[:]
    return target_values(labels.column(TARGETS))


__all__ = ["CHANCE", "ZeroShot"]
