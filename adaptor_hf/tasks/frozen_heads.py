"""Heads on frozen features: every system, fraction and seed, each scored once on each test set."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..privacy.mode import error_text
from ..training.systems import System
from .data import LabelledData, align_classes, training_subset
from .embedded import EmbeddedData
from .overlap import overlap_fields
from .probe import Probe, fit_probe, has_seed
from .protocols import ProbeProtocol
from .provenance import input_size, tower_name, tower_saw
from .runs import RunList, runs_to_make, subgroup_columns
from .targets import labels_hash

logger = logging.getLogger(__name__)

SPECIFICITIES = (0.9, 0.95)


def run_classification(
    embedded: EmbeddedData,
    systems: Sequence[System],
    protocol: ProbeProtocol,
    output_dir: str | os.PathLike,
    *,
    fractions: Sequence[float] = (1.0,),
    seeds: Sequence[int] = (0,),
    external: Iterable[EmbeddedData] = (),
    text_tower: str | None = None,
    num_resamples: int = 1000,
    device: Any = "cpu",
) -> RunList:
    """
    Train a head for each system, fraction and seed, and score it once on the test part and on each external set.

    Penalty, or epoch and learning rate, and thresholds come from the validation part. A run that is finished in
    `output_dir` is not made again. Where nothing but the training rows depends on the seed (a logistic regression),
    seeds with the same rows would be one run under several names: only the first is made, and the log says so.

    Args:
        embedded ([`EmbeddedData`]): With `train`, `validation` and `test`.
        systems (`Sequence[System]`): From `load_systems`.
        protocol ([`ProbeProtocol`]): How heads are trained.
        output_dir (`str` or `PathLike`): Each run is a folder under `runs`.
        fractions, seeds: Shares of the training rows; a seed is one of the subset too, where the protocol's rule has
            one.
        external (`Iterable[EmbeddedData]`): Sets of which the `test` part is scored.
        text_tower (`str`, *optional*): What results call the Adaptor's text tower.
        num_resamples (`int`, defaults to 1000): Of the bootstrap over patients.
        device (defaults to `"cpu"`): Where heads train.

    Raises:
        ValueError: a part is missing.
    """
    data = embedded.data
    for part in ("train", "validation", "test"):
        if part not in data.parts:
            raise ValueError(f"{data.name} has no {part} part with labels; it has {', '.join(data.parts)}.")
    tests = {data.name: embedded}
    for other in external:
        aligned = align_classes(other.data, data.class_names, data.exclusive)
        tests[aligned.name] = EmbeddedData(aligned, other.embeds, other.vision_spec)
    targets = {name: {"targets_hash": labels_hash(data, test.data)} for name, test in tests.items()}
    found = RunList()
    set_aside_earlier_probes(Path(output_dir))
    for system in systems:
        features = {part: system.features(embedded.embeds[part]) for part in ("train", "validation")}
        test_features = {name: system.features(test.embeds["test"]) for name, test in tests.items()}
        for fraction in fractions:
            for seed in distinct_seeds(data, system, protocol, fraction, seeds):
                fields = run_fields(embedded, system, protocol, fraction, seed, text_tower)
                runs = {name: _test_fields(fields, name, tests[name], data.name) | targets[name] for name in tests}
                try:
                    _run(found, runs, tests, test_features, features, data, system, protocol, output_dir, num_resamples,
                         device)  # fmt: skip
                except (ValueError, FloatingPointError) as error:
                    reason = f"{fields['system']}, {100 * fraction:g} %, seed {seed}: {error_text(error)}"
                    logger.warning("Not run: %s", reason)
                    found.failed.append(reason)
    return found


def _run(
    found, runs, tests, test_features, features, data, system, protocol, output_dir, num_resamples, device
) -> None:
    from ..evaluation.results import run_key, write_run

    folders = {name: Path(output_dir) / "runs" / run_key(fields) for name, fields in runs.items()}
    with runs_to_make(found, folders) as missing:
        if not missing:
            return
        fields = runs[data.name]
        rows = training_subset(data, fields["fraction"], protocol.fraction_rule, fields["seed"])
        probe = fit_probe(
            features["train"][rows], data.labels["train"][rows], features["validation"], data.labels["validation"],
            protocol, num_logits=data.num_logits, exclusive=data.exclusive, seed=fields["seed"],
            hidden_size=system.hidden_size, device=device, class_names=data.class_names,
        )  # fmt: skip
        outcome = {
            "n_train": len(rows),
            "head_params": probe.num_parameters,
            "trainable_params": probe.num_parameters,
            "lr": probe.learning_rate,
            "C": probe.strength,
            "selected_on": "validation",
        }
        settings = decisions(probe.predict(features["validation"]), data)
        settings["train_frequencies"] = class_frequencies(data.labels["train"][rows], data)
        if system.notes:
            settings["data_notes"] = system.notes
        for name in missing:
            test = tests[name].data
            predictions = predict(probe, test_features[name], test, num_resamples=num_resamples, **settings)
            found.lines += write_run(folders[name], predictions, runs[name] | outcome)


def distinct_seeds(
    data: LabelledData, system: System, protocol: ProbeProtocol, fraction: float, seeds: Sequence[int]
) -> list[int]:
    """The seeds that give heads of their own: all, or of a head without a seed those that draw other training rows."""
    if has_seed(protocol, system.hidden_size):
        return list(seeds)
    found = {}
    for seed in seeds:
        found.setdefault(training_subset(data, fraction, protocol.fraction_rule, seed).tobytes(), seed)
    if len(found) < len(seeds):
        logger.info("%s, %g %%: %d seeds draw the same training rows, and a logistic regression has no other chance: "
                    "%d run.", system.fields()["system"], 100 * fraction,
                    len(seeds), len(found))  # fmt: skip
    return list(found.values())


def set_aside_earlier_probes(output_dir: Path) -> None:
    """
    Rename result files of linear probes that an earlier version trained by gradient under the name `rigorous`: they are
    no runs of today's protocol, and must not stand in one mean with them. Said in the log.
    """
    from ..evaluation.results import RESULTS_FILE, read_results

    aside = 0
    for path in sorted((output_dir / "runs").glob(f"*/{RESULTS_FILE}")):
        lines = read_results(path).lines
        earlier = lines and "C" not in lines[0]
        if earlier and (lines[0]["protocol"] == "fewshot" or _is_probe(lines[0])):
            os.replace(path, path.with_name(f"{RESULTS_FILE}.earlier_probe"))
            aside += 1
    if aside:
        logger.warning("%d runs are by the linear probe of an earlier version, which did not converge. Their "
                       "result files are kept as %s.earlier_probe, and what is asked for is made again.", aside,
                       RESULTS_FILE)  # fmt: skip


def _is_probe(line: dict[str, Any]) -> bool:
    return line["task"] == "classification" and line["protocol"] == "linear" and line["recipe"] == "rigorous"


def decisions(scores: np.ndarray, data: LabelledData) -> dict[str, Any]:
    """
    Thresholds (highest F1) and operating points (90 and 95 % specificity) of labels from the probabilities of the
    validation part; nothing for exclusive classes, where the highest one wins.
    """
    from ..evaluation import f1_thresholds, specificity_thresholds

    if data.exclusive:
        return {}
    labels = data.labels["validation"]
    thresholds = f1_thresholds(scores, labels)
    points = {f"{value:.2f}": specificity_thresholds(scores, labels, value) for value in SPECIFICITIES}
    return {"thresholds": np.where(np.isnan(thresholds), 0.5, thresholds), "operating_points": points}


def class_frequencies(labels: np.ndarray, data: LabelledData) -> list[float]:
    """Share of each class among training labels."""
    if data.exclusive:
        return (np.bincount(labels, minlength=data.num_logits) / len(labels)).tolist()
    known = ~np.isnan(labels)
    return (np.where(known, labels, 0).sum(0) / np.maximum(known.sum(0), 1)).tolist()


def predict(probe: Probe, features: torch.Tensor, data: LabelledData, **settings: Any) -> Any:
    """`Predictions` of a data set's test part."""
    from ..evaluation import classification_predictions
    from ..evaluation.classification import MULTI, SINGLE

    rows, labels = data.rows("test"), data.labels["test"]
    return classification_predictions(
        rows["image_id"], rows["patient_id"], labels, probe.predict(features),
        problem_type=SINGLE if data.exclusive else MULTI, class_names=data.class_names,
        columns=subgroup_columns(rows), **settings,
    )  # fmt: skip


def run_fields(
    embedded: EmbeddedData, system: System, protocol: ProbeProtocol, fraction: float, seed: int, text_tower: str | None
) -> dict[str, Any]:
    spec = embedded.vision_spec
    head = "mlp2" if system.hidden_size is not None else protocol.head
    return system.fields() | {
        "vision_tower": tower_name(spec),
        "text_tower": text_tower if system.model is not None else None,
        "task": "classification",
        "dataset": embedded.data.name,
        "split_hash": embedded.data.split_hash,
        "protocol": head,
        "recipe": protocol.name,
        "input_size": input_size(spec),
        "fraction": float(fraction),
        "seed": int(seed),
        "positive_class": embedded.data.positive_class,
    }


def _test_fields(fields: dict[str, Any], name: str, test: EmbeddedData, own: str) -> dict[str, Any]:
    external = {"test_set": name, "split_hash": f"{fields['split_hash']}-{test.data.split_hash}"} if name != own else {}
    seen = overlap_fields(test.data.seen, fields["module"])
    return fields | external | seen | {"tower_saw_dataset": tower_saw(test.vision_spec, name)}


__all__ = [
    "class_frequencies",
    "decisions",
    "distinct_seeds",
    "predict",
    "run_classification",
    "run_fields",
    "set_aside_earlier_probes",
]
