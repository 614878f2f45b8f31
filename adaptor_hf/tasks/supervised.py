"""The supervised control: a published classifier's own scores of the classes that it knows, nothing trained here."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..evaluation.controls import CONTROLS
from ..privacy.mode import error_text, is_private
from ..regular_files_adaptor import check_regular
from ..tower_bundles_adaptor import find_bundled
from ..tower_specs_adaptor import partial_spec
from ..towers.xrv_labels import MatchedLabels, match_labels
from ..xrv_towers_adaptor import PREFIX, XRV_CLASSIFIERS, classifier_weights, is_classifier, last_layer
from .arguments import DownstreamArguments, pairs_of
from .data import LabelledData, align_classes
from .embedded import EmbeddedData
from .features import tower_features
from .loading import cache_dir_of
from .provenance import input_size, tower_name, tower_saw
from .runs import RunList, finish_run, subgroup_columns
from .targets import PARTS, labels_hash

logger = logging.getLogger(__name__)

KEY = "supervised"


@dataclass(frozen=True)
class SupervisedClassifier:
    """
    The last layer of a published classifier.

    Args:
        spec (`dict`): Of the tower whose pooled features it reads.
        weight (`torch.Tensor` of shape `(C, D)`), bias (`(C,)`): float32.
        thresholds (`torch.Tensor` of shape `(C,)`): Published operating points; NaN where it knows no such class.
        labels (`tuple[str, ...]`): Its classes, `C`.
    """

    spec: dict[str, Any]
    weight: torch.Tensor
    bias: torch.Tensor
    thresholds: torch.Tensor
    labels: tuple[str, ...]

    @property
    def known(self) -> list[str]:
        """Classes that it gives scores for: those with an operating point; of others torchxrayvision gives 0.5."""
        return [name for name, point in zip(self.labels, self.thresholds, strict=True) if name and not point.isnan()]

    @property
    def digest(self) -> str:
        """12 hex digits over the last layer."""
        from ..evaluation.naming import weights_digest

        layer = torch.nn.Linear(self.weight.shape[1], self.weight.shape[0])
        layer.load_state_dict({"weight": self.weight, "bias": self.bias})
        return weights_digest(layer)

    def scores(self, features: torch.Tensor) -> np.ndarray:
        """
        What torchxrayvision's model gives, `(N, C)` float64 in [0, 1] of features `(N, D)`: the sigmoid, stretched so
        that the operating point is 0.5.
        """
        from torchxrayvision.models import op_norm

        logits = torch.nn.functional.linear(features.float(), self.weight, self.bias)
        return op_norm(torch.sigmoid(logits), self.thresholds).double().numpy()


def load_supervised(name: str, towers_dir: str | os.PathLike | None = None) -> SupervisedClassifier:
    """
    A published classifier by `xrv:NAME`, from a bundle where there is one.

    Raises:
        OSError: it is not on this machine and cannot be downloaded.
        ValueError: no such classifier.
    """
    from torchxrayvision.models import model_urls

    spec = check_supervised(name)
    bundled = find_bundled(spec, towers_dir)
    if bundled is None:
        weights = classifier_weights(spec["name_or_path"], {})
    else:
        from safetensors.torch import load_file

        weights = load_file(check_regular(bundled.folder / "model.safetensors"))
    known = spec["name_or_path"].removeprefix(PREFIX)
    layer, facts = last_layer(XRV_CLASSIFIERS[known].architecture), model_urls[known]
    thresholds = torch.tensor(facts["op_threshs"], dtype=torch.float32)
    return SupervisedClassifier(
        spec, weights[f"{layer}.weight"], weights[f"{layer}.bias"], thresholds, tuple(facts["labels"])
    )


def check_supervised(name: str) -> dict[str, Any]:
    """Spec of the tower of a published classifier, of its name alone. Raises ValueError where there is none."""
    if name not in XRV_CLASSIFIERS and not is_classifier(name):
        raise ValueError(
            f"--supervised_control takes a classifier of torchxrayvision, got {name!r}. There are "
            f"{', '.join(PREFIX + one for one in XRV_CLASSIFIERS)}."
        )
    return partial_spec("vision", name.removeprefix(PREFIX), None, None)


def known_classes(
    data: LabelledData, classifier: SupervisedClassifier, given: Mapping[str, str] | None = None
) -> tuple[LabelledData | None, MatchedLabels]:
    """
    A data set with the classes that the classifier knows alone; None where it knows none, or not all of classes that
    exclude each other.

    Args:
        given (`Mapping`, *optional*): As of `match_labels`.
    """
    matched = match_labels(data.class_names, classifier.known, given)
    if not matched.known or (data.exclusive and len(matched.known) < len(data.class_names)):
        return None, matched
    if len(matched.known) == len(data.class_names):
        return data, matched
    columns = [data.class_names.index(name) for name in matched.known]
    labels = {part: values[:, columns] for part, values in data.labels.items()}
    return replace(data, class_names=list(matched.known), labels=labels), matched


def run_supervised(
    embedded: EmbeddedData,
    classifier: SupervisedClassifier,
    output_dir: str | os.PathLike,
    cache_dir: str | os.PathLike,
    *,
    task: str = "classification",
    given: Mapping[str, str] | None = None,
    external: Iterable[EmbeddedData] = (),
    num_resamples: int = 1000,
    **options: Any,
) -> RunList:
    """
    Score the test parts by a published classifier: of each label its own score, above 0.5 where it says that the
    finding is there. Classes that it does not know are named and left out.

    Args:
        embedded ([`EmbeddedData`]): Labels and rows; the tower's features in it are not read.
        classifier ([`SupervisedClassifier`]): From `load_supervised`.
        output_dir, cache_dir (`str` or `PathLike`): Of the runs, and of the embeddings.
        task (`str`): In whose table it stands, `classification` or `zero_shot`.
        given, external, num_resamples: As of `known_classes` and `run_classification`.
        options: As of `tower_features`.

    Raises:
        ValueError: as of `match_labels` and `tower_features`.
    """
    found, data = RunList(), embedded.data
    reduced, matched = known_classes(data, classifier, given)
    for sentence in _left_out(classifier, data, reduced, matched):
        logger.warning("%s", sentence)
    if reduced is None:
        found.failed += _left_out(classifier, data, reduced, matched)
        return found
    tests = {data.name: reduced}
    for other in external:
        aligned = align_classes(other.data, data.class_names, data.exclusive)
        tests[aligned.name] = known_classes(aligned, classifier, given)[0]
    for name, test in tests.items():
        fields = _fields(classifier, data, reduced, test, task, name)

        def score(test=test) -> Any:
            return _predictions(classifier, test, matched, cache_dir, num_resamples, options)

        outcome = {"n_train": 0, "head_params": 0, "trainable_params": 0, "selected_on": None}
        notes = [*_left_out(classifier, data, reduced, matched), _seen(classifier, name, fields)]
        try:
            finish_run(found, Path(output_dir), fields, score, outcome, notes)
        except (ValueError, FloatingPointError) as error:
            found.failed.append(f"{fields['system']}, {name}: {error_text(error)}")
    return found


def _predictions(
    classifier: SupervisedClassifier, test: LabelledData, matched: MatchedLabels, cache_dir: Any, num_resamples: int,
    options: dict[str, Any],
) -> Any:  # fmt: skip
    from ..evaluation import classification_predictions
    from ..evaluation.classification import MULTI, SINGLE

    features, kept, _ = tower_features(test.parts["test"], classifier.spec, cache_dir, dtype="float32", **options)
    columns = [classifier.labels.index(matched.known[name]) for name in test.class_names]
    rows = test.rows("test").iloc[kept]
    return classification_predictions(
        rows["image_id"], rows["patient_id"], test.labels["test"][kept], classifier.scores(features)[:, columns],
        problem_type=SINGLE if test.exclusive else MULTI, class_names=test.class_names,
        # Stretched around the operating point they are no probabilities: there is no calibration to measure.
        probabilities=False, thresholds=None if test.exclusive else [0.5] * test.num_logits,
        columns=subgroup_columns(rows), num_resamples=num_resamples,
    )  # fmt: skip


def _fields(
    classifier: SupervisedClassifier,
    data: LabelledData,
    reduced: LabelledData,
    test: LabelledData,
    task: str,
    name: str,
) -> dict[str, Any]:
    from .overlap import overlap_fields

    # As the other rows of the task have it: where all classes are known, it predicts the same.
    parts = ("test",) if task == "zero_shot" else PARTS
    known, all_classes = len(reduced.class_names), len(data.class_names)
    external = {"test_set": name, "split_hash": f"{data.split_hash}-{test.split_hash}"} if name != data.name else {}
    return {
        "system": CONTROLS[KEY].name,
        "module": KEY,
        "checkpoint": classifier.digest,
        "vision_tower": tower_name(classifier.spec),
        "text_tower": None,
        "task": task,
        "dataset": data.name,
        "split_hash": data.split_hash,
        "protocol": KEY,
        "recipe": "published operating points" + (f", {known} of {all_classes} classes" if known < all_classes else ""),
        "input_size": input_size(classifier.spec),
        "fraction": None,
        "seed": 0,
        "positive_class": reduced.positive_class,
        "targets_hash": labels_hash(reduced, test, parts),
        "tower_saw_dataset": tower_saw(classifier.spec, name),
    } | external | overlap_fields(data.seen, KEY)  # fmt: skip


def _left_out(
    classifier: SupervisedClassifier, data: LabelledData, reduced: LabelledData | None, matched: MatchedLabels
) -> list[str]:
    """What to say of classes that have no score; in private mode their number, for a name may hold anything."""
    found, name = [], f"{CONTROLS[KEY].name} {tower_name(classifier.spec)}"
    if matched.unknown:
        named = str(len(matched.unknown)) if is_private() else ", ".join(matched.unknown)
        found.append(f"{name}: classes that it does not know are left out ({named})")
    if matched.ambiguous:
        named = str(len(matched.ambiguous)) if is_private() else ", ".join(matched.ambiguous)
        found.append(
            f"{name}: left out are classes that join two of its own ({named}); say which one is meant with "
            "--supervised_label MINE=ITS"
        )
    if reduced is None:
        why = "classes that exclude each other need a score each" if matched.known else "it knows none of the classes"
        found.append(f"{name}, {data.name}: {why}. Name them with --supervised_label MINE=ITS, or leave it out")
    elif found:
        found.append(
            f"{name}: its means are over {len(reduced.class_names)} of {len(data.class_names)} classes; compare class "
            "by class"
        )
    return found


def _seen(classifier: SupervisedClassifier, name: str, fields: Mapping[str, Any]) -> str:
    trained_on = ", ".join(classifier.spec["pretraining_data"] or ["data that are not known"])
    said = {
        "yes": f"{name} is among them, and which of its images were held out is not known: the scores may be too good",
        "no": f"{name} is not among them",
        "unknown": f"whether {name} shares images with them is not known",
    }[fields["tower_saw_dataset"]]
    return f"{CONTROLS[KEY].name} {fields['vision_tower']} was trained on labels of {trained_on}: {said}"


def supervised_runs(
    arguments: DownstreamArguments, embedded: EmbeddedData, device: str, external: Iterable[EmbeddedData] = ()
) -> RunList:
    """The runs of `--supervised_control`; none where it is not given."""
    if arguments.supervised_control is None:
        return RunList()
    return run_supervised(
        embedded, load_supervised(arguments.supervised_control), arguments.output_dir, cache_dir_of(arguments),
        task=arguments.task, given=pairs_of(arguments.supervised_label), external=external,
        num_resamples=arguments.num_resamples, batch_size=arguments.extraction_batch_size, device=device,
        check=arguments.check,
    )  # fmt: skip


__all__ = [
    "SupervisedClassifier",
    "check_supervised",
    "known_classes",
    "load_supervised",
    "run_supervised",
    "supervised_runs",
]
