"""`predictions.parquet`: what a run said of each test image, enough to compute all its numbers again."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..files import check_regular, parse_json, written_aside
from .mask_baselines import EXTRA_COUNTS, MEAN_COUNTS
from .segmentation import COUNTS

PREDICTIONS_FILE = "predictions.parquet"
_OWN_SETTINGS = ("num_resamples", "bootstrap_seed", "train_frequencies", "data_notes")
_METADATA = b"adaptor_hf.predictions"


@dataclass(frozen=True)
class Kind:
    """
    One kind of predictions: which columns it has, and how it is scored. All its functions take [`Predictions`] first.

    Args:
        name (`str`): The predictions' `kind`.
        columns (`tuple[str, ...]`): What it needs beside image, patient, target and score.
        metrics (`Callable`): Gives its `evaluate.Metric` objects; keyword arguments are theirs.
        rows (`Callable`): Gives what their `compute` takes, of rows of a slice.
        score (`Callable`): With the metrics' values and sentences, gives a `Score` each.
        values (`Callable`): Gives a function from weights of the rows `(B, N)` to each metric `(B,)` that may have an
            interval, and
        intervals (`Callable`): how each of these gets it, a `IntervalMethod`.
        notes (`Callable`): With the scores, gives what a reader must be warned of, a sentence each.
        repeats_images (`bool`): An image may have several rows.
    """

    name: str
    columns: tuple[str, ...]
    metrics: Callable[..., list]
    rows: Callable[..., dict[str, Any]]
    score: Callable[..., list]
    values: Callable[..., Callable[[np.ndarray], dict[str, np.ndarray]]]
    intervals: Callable[..., dict[str, Any]]
    notes: Callable[..., list[str]]
    repeats_images: bool = False


KINDS: dict[str, Kind] = {}
"""By name; `adaptor_hf.evaluation.scoring` declares those of the package."""


def declare_kind(kind: Kind) -> Kind:
    """
    Make a kind of predictions known.

    Raises:
        ValueError: another kind has its name.
    """
    if KINDS.setdefault(kind.name, kind) != kind:
        raise ValueError(f"There is a kind {kind.name!r} of predictions already, and it is another one.")
    return kind


@dataclass
class Predictions:
    """
    One row a test image (of retrieval: a query), and how the rows are to be scored.

    Args:
        kind (`str`): `classification`, `segmentation` or `retrieval`.
        columns (`dict[str, np.ndarray]`): `image_id` (once each; of retrieval, an image with several texts has a row
            for each), `patient_id` (None: unknown, the image counts as a patient of its own), and

            * classification: `target` (class number, or 0, 1 and NaN) and `score`, `(N,)` or `(N, C)`;
            * segmentation: `target` (whether there is a mask) and the counts of `segmentation_counts`, with `score`;
              those of `baseline_counts` where known;
            * retrieval: `direction`, `target` (number of positives), `candidates` (number), `score` (the rank of the
              best positive), any `precision@k`, and `same_class`, the number of candidates of the query's class.

            Others, such as `sex` or `view`, are kept for subgroups.
        settings (`dict`): Keyword arguments of the metrics, `num_resamples` and `bootstrap_seed`.
    """

    kind: str
    columns: dict[str, np.ndarray]
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is one of {', '.join(KINDS)}, got {self.kind!r}.")
        needed = ["image_id", "patient_id", "target", "score", *KINDS[self.kind].columns]
        missing = [name for name in needed if name not in self.columns]
        if missing:
            raise ValueError(f"Predictions for {self.kind} need the columns {', '.join(missing)}.")
        lengths = {name: len(values) for name, values in self.columns.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise ValueError(f"Columns need the same number of rows, at least one, got {lengths}.")
        if fault := repeated_images(self.kind, self.columns["image_id"]):
            raise ValueError(fault)
        self.settings = {"num_resamples": 1000, "bootstrap_seed": 0} | self.settings

    def __len__(self) -> int:
        return len(self.columns["image_id"])

    @property
    def patients(self) -> np.ndarray:
        """(N,) int64 code of each row's patient; an image without one is its own."""
        pairs = zip(self.columns["patient_id"], self.columns["image_id"], strict=True)
        names = [f"image {image}" if patient is None else f"patient {patient}" for patient, image in pairs]
        return np.unique(names, return_inverse=True)[1]

    @property
    def interval_over(self) -> str:
        """What intervals are over: `"patients"`, or `"images"` where the patient of none is known."""
        return "images" if all(patient is None for patient in self.columns["patient_id"]) else "patients"

    @property
    def num_patients(self) -> int | None:
        """Number of patients, images without one counted as one each; None where none is known."""
        return len(set(self.patients.tolist())) if self.interval_over == "patients" else None


def repeated_images(kind: str, image_ids: Sequence) -> str | None:
    """
    What is wrong with the ids of test images, without naming one; None where each is there once. Of retrieval, where an
    image may have several texts, nothing can be said by them.
    """
    names = np.array([str(value) for value in image_ids])
    ids, first, codes, counts = np.unique(names, return_index=True, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(counts > 1)
    if not len(repeated) or (kind in KINDS and KINDS[kind].repeats_images):
        return None
    groups = [np.flatnonzero(codes == number) for number in repeated[np.argsort(first[repeated])][:3]]
    rows = "; ".join(", ".join(map(str, group[:5])) + (", ..." if len(group) > 5 else "") for group in groups)
    more = "; ..." if len(repeated) > len(groups) else ""
    return (
        f"{len(names) - len(ids)} of {len(names)} rows repeat the image_id of an earlier row ({len(repeated)} images; "
        f"rows from 0: {rows}{more}): each would count several times. Keep one row an image, for instance with the "
        "mean of its scores; different images need ids of their own."
    )


def repeated_images_of(folder: str | os.PathLike) -> str | None:
    """`repeated_images` of a run's `predictions.parquet`; None where there is none, or it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(check_regular(Path(folder) / PREDICTIONS_FILE), columns=["image_id"])
        kind = parse_json((table.schema.metadata or {})[_METADATA])["kind"]
        return repeated_images(kind, table["image_id"].to_pylist())
    except (pa.ArrowInvalid, OSError, KeyError, ValueError):
        return None


def classification_predictions(
    image_ids: Sequence[str],
    patient_ids: Sequence[str | None],
    labels: np.ndarray,
    scores: np.ndarray,
    *,
    train_frequencies: Sequence[float] | None = None,
    columns: Mapping[str, Sequence] | None = None,
    **settings: Any,
) -> Predictions:
    """
    Args:
        labels, scores: As in `classification_metrics`.
        train_frequencies (`Sequence[float]`, *optional*): Share of each class among the training labels: what the
            trivial predictor always says. By default that of the test labels, the best a constant can know.
        columns (`Mapping[str, Sequence]`, *optional*): More columns, for subgroups.
        settings: `problem_type`, `class_names`, `thresholds`, `probabilities`, `operating_points`; `num_resamples`,
            `bootstrap_seed`.
    """
    if train_frequencies is not None:
        settings["train_frequencies"] = [float(value) for value in train_frequencies]
    for name in ("thresholds", "class_names"):
        if isinstance(settings.get(name), np.ndarray):
            settings[name] = settings[name].tolist()
    if settings.get("operating_points"):
        settings["operating_points"] = {
            name: [float(value) for value in values] for name, values in settings["operating_points"].items()
        }
    basic = {"target": np.asarray(labels), "score": np.asarray(scores, dtype=np.float64)}
    return Predictions("classification", _with_ids(image_ids, patient_ids, basic, columns), settings)


def segmentation_predictions(
    image_ids: Sequence[str],
    patient_ids: Sequence[str | None],
    counts: Mapping[str, np.ndarray],
    *,
    columns: Mapping[str, Sequence] | None = None,
    **settings: Any,
) -> Predictions:
    """
    `counts` as of `segmentation_counts`, and joined with them those of `baseline_counts`, without which the empty mask
    is the only baseline; `settings`: `num_resamples`, `bootstrap_seed`, `data_notes` (sentences on the data for every
    reader of the results).
    """
    basic = {"target": (np.asarray(counts["target_pixels"]) > 0).astype(np.int64)}
    basic |= {name: np.asarray(counts[name]) for name in COUNTS}
    basic |= {name: np.asarray(counts[name]) for name in (*EXTRA_COUNTS, *MEAN_COUNTS) if name in counts}
    return Predictions("segmentation", _with_ids(image_ids, patient_ids, basic, columns), settings)


def retrieval_predictions(
    image_ids: Sequence[str],
    patient_ids: Sequence[str | None],
    ranks: Mapping[str, Any],
    text_ids: Any,
    *,
    precisions: Mapping[str, Mapping[int, np.ndarray]] | None = None,
    same_class: Mapping[str, np.ndarray] | None = None,
    **settings: Any,
) -> Predictions:
    """
    Args:
        image_ids, patient_ids (`(N,)`): Of each image-text row. A text belongs to its first row's patient.
        ranks (`Mapping`): `image_to_text` `(N,)` and `text_to_image` `(distinct texts,)`, from `retrieval_metrics`.
        text_ids (`torch.Tensor` of shape `(N,)`): Equal for equal texts, as there.
        precisions (`Mapping`, *optional*): Direction to k to precision of each query, from `precision_at_k`.
        same_class (`Mapping`, *optional*): Direction to the number of candidates of each query's class: what a random
            order scores in `precision@k`.
    """
    ids, first, inverse, copies = np.unique(
        np.asarray(text_ids), return_index=True, return_inverse=True, return_counts=True
    )
    pairs = set(zip(map(str, image_ids), inverse.tolist(), strict=True))
    if len(pairs) < len(inverse):
        raise ValueError(
            f"{len(inverse) - len(pairs)} of {len(inverse)} rows repeat an image with the same text: each would be "
            "asked for several times. Keep one row for each image and text; different images need ids of their own."
        )
    rows = {"image_to_text": np.arange(len(inverse)), "text_to_image": first}
    positives = {"image_to_text": np.ones(len(inverse), dtype=np.int64), "text_to_image": copies}
    candidates = {"image_to_text": len(ids), "text_to_image": len(inverse)}
    parts: dict[str, list] = {}
    for way, order in rows.items():
        rank = np.asarray(ranks[way])
        if len(rank) != len(order):
            raise ValueError(f"Got {len(rank)} ranks {way} for {len(order)} queries.")
        part = {
            "image_id": np.asarray(image_ids, dtype=object)[order],
            "patient_id": np.asarray(patient_ids, dtype=object)[order],
            "direction": np.full(len(order), way, dtype=object),
            "target": positives[way],
            "candidates": np.full(len(order), candidates[way]),
            "score": rank.astype(np.int64),
        }
        of_way = (precisions or {}).get(way, {})
        for k in sorted({k for values in (precisions or {}).values() for k in values}):
            part[f"precision@{k}"] = np.asarray(of_way[k]) if k in of_way else np.full(len(order), np.nan)
        if same_class is not None:
            part["same_class"] = np.asarray(same_class[way], dtype=np.int64)
        for name, values in part.items():
            parts.setdefault(name, []).append(values)
    return Predictions("retrieval", {name: np.concatenate(values) for name, values in parts.items()}, settings)


def _with_ids(image_ids, patient_ids, basic: dict[str, np.ndarray], columns: Mapping[str, Sequence] | None) -> dict:
    taken = {"image_id", "patient_id", *basic} & set(columns or ())
    if taken:
        raise ValueError(f"Columns {', '.join(sorted(taken))} have a meaning of their own: choose other names.")
    ids = {
        "image_id": np.array([str(value) for value in image_ids], dtype=object),
        "patient_id": np.array([None if value is None else str(value) for value in patient_ids], dtype=object),
    }
    return ids | basic | {name: np.asarray(values) for name, values in (columns or {}).items()}


def save_predictions(predictions: Predictions, folder: str | os.PathLike) -> Path:
    """Write `predictions.parquet` into a folder, whole or not at all. It names images and patients: keep it private."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {}
    for name, values in predictions.columns.items():
        if values.ndim == 2:
            flat = pa.array(np.ascontiguousarray(values).reshape(-1))
            arrays[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        else:
            arrays[name] = pa.array(values.tolist() if values.dtype == object else values)
    described = json.dumps({"kind": predictions.kind, "settings": predictions.settings}, sort_keys=True)
    table = pa.table(arrays).replace_schema_metadata({_METADATA: described.encode()})
    path = Path(folder) / PREDICTIONS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        pq.write_table(table, aside)
    return path


def load_predictions(path: str | os.PathLike) -> Predictions:
    """
    Read a run's predictions, from its folder or the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is damaged, was not written by `save_predictions`, or holds an image more than once.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    path = path / PREDICTIONS_FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"No predictions at {path}.")
    try:
        table = pq.read_table(check_regular(path))
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from error
    described = (table.schema.metadata or {}).get(_METADATA)
    if described is None:
        raise ValueError(f"{path} does not say how it is to be scored: it was not written by save_predictions.")
    columns = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if pa.types.is_fixed_size_list(column.type):
            columns[name] = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
        elif pa.types.is_string(column.type) or pa.types.is_null(column.type):
            columns[name] = np.array(column.to_pylist(), dtype=object)
        else:
            columns[name] = column.to_numpy(zero_copy_only=False)
    try:
        return Predictions(columns=columns, **parse_json(described))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def metric_options(predictions: Predictions) -> dict:
    """Settings that the metrics take."""
    return {name: value for name, value in predictions.settings.items() if name not in _OWN_SETTINGS}


__all__ = [
    "PREDICTIONS_FILE",
    "Predictions",
    "classification_predictions",
    "load_predictions",
    "metric_options",
    "repeated_images",
    "repeated_images_of",
    "retrieval_predictions",
    "save_predictions",
    "segmentation_predictions",
]
