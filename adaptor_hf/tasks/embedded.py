"""Labelled images with the features of their tower: what heads, prompts and episodes read."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..evaluation.tasks import TASKS
from ..modeling_adaptor import AdaptorModel
from .arguments import DownstreamArguments
from .data import LabelledData
from .features import tower_features
from .loading import cache_dir_of, load_classification, vision_tower_of
from .overlap import check_copies


@dataclass
class EmbeddedData:
    """
    Labelled data with the tower's features beside each part's rows. Rows whose image cannot be read are gone.

    Args:
        data (`LabelledData`): Labels and rows.
        embeds (`dict[str, torch.Tensor]`): Of each part, `(n, D)` float32.
        vision_spec (`dict`): The tower's.
    """

    data: LabelledData
    embeds: dict[str, torch.Tensor]
    vision_spec: dict[str, Any]

    def without_training_rows(self, left_out: np.ndarray) -> EmbeddedData:
        """Without the training rows of a mask, `(n,)` bool."""
        if not left_out.any():
            return self
        kept = np.flatnonzero(~left_out)
        parts = self.data.parts | {"train": self.data.parts["train"].select(kept)}
        data = replace(self.data, parts=parts, labels=self.data.labels | {"train": self.data.labels["train"][kept]})
        return EmbeddedData(data, self.embeds | {"train": self.embeds["train"][kept]}, self.vision_spec)


def embed_labelled(data: LabelledData, tower: Any, cache_dir: str | os.PathLike, **options: Any) -> EmbeddedData:
    """Features of all parts of a data set; options as of `tower_features`."""
    embeds, parts, labels, spec = {}, {}, {}, None
    for part, dataset in data.parts.items():
        embeds[part], kept, spec = tower_features(dataset, tower, cache_dir, **options)
        parts[part] = dataset if len(kept) == len(dataset) else dataset.select(kept)
        labels[part] = data.labels[part][kept]
    found = replace(data, parts=parts, labels=labels)
    return EmbeddedData(found, embeds, spec)


def load_embedded(arguments: DownstreamArguments, model: AdaptorModel, device: str) -> EmbeddedData:
    """
    The labelled data of the arguments with its features; of a task that trains, without copies of held-out images
    among the training rows (`--duplicates`).
    """
    options = {"batch_size": arguments.extraction_batch_size, "device": device, "check": arguments.check}
    tower = vision_tower_of(arguments, model)
    embedded = embed_labelled(load_classification(arguments), tower, cache_dir_of(arguments), **options)
    if TASKS[arguments.task].trains and "train" in embedded.data.parts:
        data = embedded.data
        keep = check_copies(
            data.parts, cache_dir_of(arguments), arguments.duplicates, known_leak=data.leak, check=arguments.check
        )
        embedded = embedded.without_training_rows(~keep)
    return embedded


__all__ = ["EmbeddedData", "embed_labelled", "load_embedded"]
