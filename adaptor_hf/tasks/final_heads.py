"""What a user takes away: scores of images without labels, and a checkpoint for `pipeline("image-classification")`."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.reading import Reading
from ..files import write_csv, written_aside
from ..folder_lock import only_writer
from ..heads_adaptor import AdaptorForImageClassification
from ..hub.trained_card import complete_towers
from ..image_processing_adaptor import processor_of_tower
from ..modeling_adaptor import AdaptorModel
from ..training.systems import System
from .data import plain_rows, training_subset
from .embedded import EmbeddedData
from .features import tower_features
from .frozen_heads import distinct_seeds
from .probe import Probe, fit_probe, fold_standardization
from .protocols import ProbeProtocol

if TYPE_CHECKING:
    from datasets import Dataset


def final_probes(
    embedded: EmbeddedData, system: System, protocol: ProbeProtocol, fraction: float, seeds: Sequence[int], device: str
) -> list[Probe]:
    """The heads that `run_classification` scored, one a distinct seed: trained again, which gives the same."""
    data = embedded.data
    train, validation = (system.features(embedded.embeds[part]) for part in ("train", "validation"))
    probes = []
    for seed in distinct_seeds(data, system, protocol, fraction, seeds):
        rows = training_subset(data, fraction, protocol.fraction_rule, seed)
        probes.append(
            fit_probe(
                train[rows], data.labels["train"][rows], validation, data.labels["validation"], protocol,
                num_logits=data.num_logits, exclusive=data.exclusive, seed=seed, device=device,
            )
        )  # fmt: skip
    return probes


def write_predictions(
    dataset: Dataset,
    probes: Sequence[Probe],
    system: System,
    class_names: Sequence[str],
    tower: Any,
    cache_dir: str | os.PathLike,
    path: str | os.PathLike,
    **options: Any,
) -> Path:
    """
    Probabilities of the classes, mean over the heads, as a CSV file with `image_id` and a column a class. Images that
    cannot be read have no row.

    Args:
        dataset (`Dataset`): With `image`, and `image_id` where known.
        probes, system: From `final_probes`.
        path (`str` or `PathLike`): Of the file; it names images: keep it private.
        options: `batch_size`, `device` and `check` of `tower_features`.
    """
    embeds, kept, _ = tower_features(dataset, tower, cache_dir, **options)
    features = system.features(embeds)
    scores = np.mean([probe.predict(features) for probe in probes], axis=0)
    frame = plain_rows(dataset)[["image_id"]].iloc[kept].reset_index(drop=True)
    for column, name in enumerate(class_names):
        frame[name] = scores[:, column]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        write_csv(aside, frame.columns, frame.itertuples(index=False))
    return path


def save_classifier(
    probe: Probe, model: AdaptorModel, protocol: ProbeProtocol, embedded: EmbeddedData, folder: str | os.PathLike
) -> AdaptorForImageClassification:
    """
    Save Adaptor, head and image processing, for `pipeline("image-classification")`: an
    [`AdaptorForImageClassification`] that gives the head's probabilities. Its config names the terms of the data of
    both.
    """
    from ..data.terms import restricted_terms

    data = embedded.data
    classifier = AdaptorForImageClassification.from_adaptor(
        model,
        id2label=dict(enumerate(data.class_names)),
        problem_type="single_label_classification" if data.exclusive else "multi_label_classification",
        classifier_hidden_size=protocol.hidden_size,
        classifier_dropout=protocol.dropout,
    )
    classifier.classifier.load_state_dict(fold_standardization(probe).state_dict())
    terms = (model.config.data_terms or {}) | (restricted_terms(data.name) or {})
    classifier.config.data_terms = terms or None
    reading = Reading.of_spec(embedded.vision_spec)
    if classifier.config.vision_tower is not None:
        classifier.config.vision_tower = reading.in_spec(classifier.config.vision_tower)
    processor_of_tower(reading.in_spec(embedded.vision_spec)).save_pretrained(folder)
    classifier.eval().save_pretrained(folder)
    complete_towers(folder)
    return classifier


def save_and_predict(
    embedded: EmbeddedData,
    model: AdaptorModel,
    protocol: ProbeProtocol,
    *,
    fraction: float,
    seeds: Sequence[int],
    tower: Any,
    cache_dir: str | os.PathLike,
    output_dir: str | os.PathLike,
    unlabelled: Dataset | None = None,
    device: str = "cpu",
    check: str = "touched",
) -> str:
    """Save the first seed's classifier, score a table without labels with all seeds' heads, and say where they are."""
    system = System("adaptor", model)
    probes = final_probes(embedded, system, protocol, fraction, seeds, device)
    folder = Path(output_dir) / "model"
    with only_writer(output_dir, "model", what="process", strict=False, timeout=math.inf):
        save_classifier(probes[0], model, protocol, embedded, folder)
    said = [f"Classifier: {folder}"]
    if unlabelled is not None:
        path = Path(output_dir) / "predictions.csv"
        names, options = embedded.data.class_names, {"device": device, "check": check}
        write_predictions(unlabelled, probes, system, names, tower, cache_dir, path, **options)
        said.append(f"Predictions: {path}")
    return "\n".join(said)


__all__ = ["final_probes", "save_and_predict", "save_classifier", "write_predictions"]
