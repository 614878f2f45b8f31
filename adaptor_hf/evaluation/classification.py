"""Classification metrics: binary, multi-class and multi-label, unknown labels left out, and their intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from .calibration import calibration_error
from .checks import as_columns, check_finite, check_probabilities, label_matrix
from .draws import gather_draws
from .intervals import IntervalMethod, Intervals, make_intervals
from .statistics import resampled_weights
from .weighted import ratio, weighted_areas

SINGLE, MULTI = "single_label_classification", "multi_label_classification"

_NEAR_CONSTANT = "All scores are equal up to rounding."


class Metrics(dict[str, float]):
    """A dictionary of metrics; `notes` says, in sentences, why a value is NaN or a class was left out of a mean."""

    def __init__(self, values: Mapping[str, float] = (), notes: Sequence[str] = ()):
        super().__init__(values)
        self.notes = list(notes)


def classification_metrics(
    scores: np.ndarray,
    labels: np.ndarray,
    *,
    problem_type: str,
    class_names: Sequence[str] | None = None,
    thresholds: float | Sequence[float] | None = None,
    probabilities: bool = True,
    operating_points: Mapping[str, Sequence[float]] | None = None,
) -> Metrics:
    """
    All metrics of one set of predictions.

    Args:
        scores (`np.ndarray` of shape `(N, C)` or `(N,)`): Probabilities (after sigmoid or softmax), or any scores with
            `probabilities=False`, higher for the class. One column is a binary problem.
        labels (`np.ndarray`): Class numbers `(N,)` for `single_label_classification`; for `multi_label_classification`
            and for one column 0, 1 or NaN (unknown), `(N, C)` or `(N,)`.
        problem_type (`str`): As in a config of transformers. With one column both mean the same.
        class_names (`Sequence[str]`, *optional*): Names for the metrics of each class; numbers by default.
        thresholds (`float` or one a class, *optional*): A score above it says "positive"; 0.5 for probabilities.
            Choose it on validation. Not for several exclusive classes: there the highest score wins.
        probabilities (`bool`, defaults to `True`): Whether scores are probabilities. If not, there is no calibration
            error and no Brier score, and without `thresholds` nothing that needs a decision.
        operating_points (`Mapping[str, Sequence[float]]`, *optional*): Name of a point, such as "0.90", to a threshold
            a class, from [`specificity_thresholds`] on validation. Adds `sensitivity@specificity0.90` and the
            specificity that this threshold reaches on these rows.

    Returns:
        [`Metrics`]: `auroc`, `auprc`, `accuracy`, `balanced_accuracy`, `f1`, `precision`, `recall`, `specificity`,
        `ece`, `brier`; with more than one class also `name/CLASS`, and then the plain name is the unweighted mean over
        the classes for which it is defined. Accuracy of exclusive classes is top-1; of labels, the mean over labels.
        Precision of a class that is never predicted counts 0. `ece` is the expected calibration error with 15 equal
        bins (of the top class, or of each label's probability); `brier` sums squares over exclusive classes, and is the
        mean of labels otherwise. A value that the rows do not determine is NaN, with a sentence in `notes`.

    Raises:
        ValueError: shapes that do not fit, no rows, a score that is NaN, infinite or no probability, a label out of
            range.
    """
    task = _ScoredRows(scores, labels, problem_type, class_names, thresholds, probabilities, operating_points)
    values = {name: float(value[0]) for name, value in task.values(np.ones((1, task.num_rows))).items()}
    return Metrics(values, task.notes)


def classification_intervals(
    scores: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    *,
    problem_type: str,
    class_names: Sequence[str] | None = None,
    thresholds: float | Sequence[float] | None = None,
    probabilities: bool = True,
    operating_points: Mapping[str, Sequence[float]] | None = None,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    unit: str = "patients",
) -> Intervals:
    """
    Intervals over patients of all that [`classification_metrics`] gives, from its arguments.

    Args:
        patients (`np.ndarray` of shape `(N,)`): Images of one patient are drawn together.
        num_resamples, level, seed: As in [`bootstrap_interval`].
        unit (`str`, defaults to `"patients"`): What `patients` are, for the sentences: `"images"` where none is known.

    Returns:
        [`Intervals`]: Both ends are NaN, with a reason, where fewer than 5 patients are positive or negative, where all
        scores of a class are equal up to rounding, and for `ece`, which is biased upwards.
    """
    task = _ScoredRows(scores, labels, problem_type, class_names, thresholds, probabilities, operating_points)
    if len(patients) != task.num_rows:
        raise ValueError(f"Got {len(patients)} patients for {task.num_rows} rows.")
    patients = np.asarray(patients)
    values = {name: float(value[0]) for name, value in task.values(np.ones((1, task.num_rows))).items()}
    methods = task.interval_methods()
    draws = gather_draws(task.values, resampled_weights(patients, num_resamples, seed), methods)
    return make_intervals(methods, values, draws, patients, level=level, unit=unit)


def classification_interval_methods(scores: np.ndarray, labels: np.ndarray, **options) -> dict[str, IntervalMethod]:
    """How each metric gets its interval; arguments of [`classification_metrics`]."""
    defaults = {"class_names": None, "thresholds": None, "probabilities": True, "operating_points": None}
    return _ScoredRows(scores, labels, **(defaults | options)).interval_methods()


def metrics_under_weights(
    scores: np.ndarray,
    labels: np.ndarray,
    *,
    problem_type: str,
    class_names: Sequence[str] | None = None,
    thresholds: float | Sequence[float] | None = None,
    probabilities: bool = True,
    operating_points: Mapping[str, Sequence[float]] | None = None,
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A function from weights of the rows `(B, N)` to each metric `(B,)`; arguments of [`classification_metrics`]."""
    return _ScoredRows(scores, labels, problem_type, class_names, thresholds, probabilities, operating_points).values


class _ScoredRows:
    """Checked predictions, ready to be scored under many weightings of their rows."""

    def __init__(self, scores, labels, problem_type, class_names, thresholds, probabilities, operating_points):
        self.scores = as_columns(np.asarray(scores, dtype=np.float64))
        self.num_rows, self.num_classes = self.scores.shape
        if self.num_rows == 0:
            raise ValueError("There is no row to score.")
        if problem_type not in (SINGLE, MULTI):
            raise ValueError(f"problem_type is {SINGLE!r} or {MULTI!r}, got {problem_type!r}.")
        check_finite(self.scores)
        self.exclusive = problem_type == SINGLE and self.num_classes > 1
        self.names = [str(name) for name in (range(self.num_classes) if class_names is None else class_names)]
        if len(self.names) != self.num_classes or len(set(self.names)) != self.num_classes:
            raise ValueError(f"Need {self.num_classes} different class names, got {self.names}.")
        self.truth = label_matrix(np.asarray(labels), self.scores.shape, self.exclusive)
        self.known = ~np.isnan(self.truth)
        self.positive = self.truth == 1
        self.probabilities = probabilities
        if probabilities:
            check_probabilities(self.scores, self.exclusive)
        self.notes = self._describe_classes()
        self.predicted = self._decide(thresholds)
        self.operating_points = {}
        for name, point in (operating_points or {}).items():
            if self.exclusive or len(point) != self.num_classes:
                raise ValueError(f"Operating point {name} needs a threshold for each of {self.num_classes} labels.")
            self.operating_points[name] = np.asarray(point, dtype=np.float64)

    def _describe_classes(self) -> list[str]:
        notes = []
        for name, known, positive in zip(self.names, self.known.T, self.positive.T, strict=True):
            what = f"Class {name!r}" if self.num_classes > 1 else "The label"
            if not known.any():
                notes.append(f"{what} has no known label here: its metrics are NaN and no part of a mean.")
            elif not positive.any():
                notes.append(
                    f"{what} has no positive among {known.sum()} rows: its AUROC, AUPRC, F1, precision and "
                    "recall are NaN and no part of a mean."
                )
            elif positive[known].all():
                notes.append(
                    f"{what} has no negative among {known.sum()} rows: its AUROC and specificity are NaN "
                    "and no part of a mean."
                )
        return notes

    def _decide(self, thresholds) -> np.ndarray | None:
        if self.exclusive:
            if thresholds is not None:
                raise ValueError("thresholds are for labels that do not exclude each other; here the top score wins.")
            return self.scores.argmax(1)[:, None] == np.arange(self.num_classes)
        if thresholds is None:
            if not self.probabilities:
                self.notes.append("Scores without thresholds: accuracy, F1, precision and recall are NaN.")
                return None
            thresholds = 0.5
        thresholds = np.asarray(thresholds, dtype=np.float64)
        if thresholds.ndim and thresholds.shape != (self.num_classes,):
            raise ValueError(f"Need one threshold or {self.num_classes}, got {thresholds.shape}.")
        if np.isnan(thresholds).any():
            raise ValueError("A threshold is NaN: validation had no such class to choose it on. Pass one for it.")
        return self.scores > thresholds

    def values(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Each metric, `(B,)`, under each row of weights `(B, N)`."""
        columns = range(self.num_classes)
        areas = [
            weighted_areas(self.scores[:, column], self.positive[:, column], weights, self.known[:, column])
            for column in columns
        ]
        per_class = {name: np.stack([pair[side] for pair in areas], 1) for side, name in enumerate(("auroc", "auprc"))}
        per_class |= self._decisions(weights, self.predicted)
        if self.exclusive:
            found = {"accuracy": weights @ (self.predicted & self.positive).any(1) / weights.sum(1)}
            found["balanced_accuracy"] = self._mean(per_class["recall"], self.positive.any(0))
            del per_class["accuracy"], per_class["balanced_accuracy"]
        else:
            found = {}
        for point, thresholds in self.operating_points.items():
            decided = np.where(np.isnan(thresholds), False, self.scores > thresholds)
            rates = self._decisions(weights, decided)
            for name, rate in (("sensitivity", "recall"), ("specificity", "specificity")):
                values = np.where(np.isnan(thresholds), np.nan, rates[rate])
                per_class[f"{name}@specificity{point}"] = values
        calibration = self._calibration(weights)
        if self.exclusive:
            found |= calibration
        else:
            per_class |= calibration
        for name, values in per_class.items():
            found[name] = self._mean(values, self._defined(name))
            if self.num_classes > 1:
                found |= {f"{name}/{self.names[column]}": values[:, column] for column in columns}
        return found

    def interval_methods(self) -> dict[str, IntervalMethod]:
        """How each metric of `values` gets its interval."""
        found: dict[str, IntervalMethod] = {}
        of_class: dict[str, list[str]] = {}
        for column, label in enumerate(self.names):
            for name, method in self._methods_of(column).items():
                own = f"{name}/{label}" if self.num_classes > 1 else name
                parts = tuple(f"{part}/{label}" if self.num_classes > 1 else part for part in method.parts)
                found[own] = replace(method, parts=parts)
                if self._defined(name)[column]:
                    of_class.setdefault(name, []).append(own)
        everyone = np.ones(self.num_rows, dtype=bool)
        if self.exclusive:
            whole = {
                "accuracy": IntervalMethod("share", everyone, needs={"": everyone}),
                "balanced_accuracy": IntervalMethod("average", parts=tuple(of_class.get("recall", ()))),
                "brier": IntervalMethod("mean", everyone, needs={"": everyone}, scale=2.0),
                "ece": _no_ece(),
            }
            found = {name: method for name, method in found.items() if name.partition("/")[0] not in whole} | whole
        if self.num_classes > 1:
            for name, own in of_class.items():
                found.setdefault(name, _no_ece() if name == "ece" else IntervalMethod("average", parts=tuple(own)))
        return found

    def _methods_of(self, column: int) -> dict[str, IntervalMethod]:
        known, positive = self.known[:, column], self.positive[:, column]
        negative = known & ~positive
        with_positive, with_negative = {"positive": positive}, {"negative": negative}
        ranked = self.scores[known, column]
        constant = _NEAR_CONSTANT if len(ranked) and nearly_constant(ranked) else ""
        found = {
            "auroc": IntervalMethod("area", positive, negative, with_positive | with_negative, reason=constant),
            "auprc": IntervalMethod("ap", positive, negative, with_positive | with_negative, reason=constant),
            "accuracy": IntervalMethod("share", known, needs={"": known}),
            "balanced_accuracy": IntervalMethod("average", parts=("recall", "specificity")),
            "f1": IntervalMethod("ratio", positive, negative, with_positive),
            "recall": IntervalMethod("share", positive, needs=with_positive),
            "specificity": IntervalMethod("share", negative, needs=with_negative),
            "brier": IntervalMethod("mean", known, needs={"": known}),
            "ece": _no_ece(),
        }
        called = known if self.predicted is None else self.predicted[:, column] & known
        none = "" if called.any() else "Nothing is called positive."
        found["precision"] = IntervalMethod(
            "share", called, needs=with_positive | {"called positive": called}, reason=none
        )
        for point in self.operating_points:
            found[f"sensitivity@specificity{point}"] = found["recall"]
            found[f"specificity@specificity{point}"] = found["specificity"]
        return found

    def _defined(self, name: str) -> np.ndarray:
        """(C,) which classes a mean is over: decided by the rows themselves, never by a resample."""
        has_positive, has_negative = self.positive.any(0), (self.known & ~self.positive).any(0)
        if name in ("auroc", "balanced_accuracy"):
            return has_positive & has_negative
        if name in ("auprc", "f1", "precision", "recall") or name.startswith("sensitivity"):
            return has_positive
        return has_negative if name.startswith("specificity") else self.known.any(0)

    def _mean(self, values: np.ndarray, defined: np.ndarray) -> np.ndarray:
        return values[:, defined].mean(1) if defined.any() else np.full(len(values), np.nan)

    def _decisions(self, weights: np.ndarray, predicted: np.ndarray | None) -> dict[str, np.ndarray]:
        """Rates of right and wrong calls, `(B, C)` each."""
        names = ("accuracy", "balanced_accuracy", "f1", "precision", "recall", "specificity")
        if predicted is None:
            return {name: np.full((len(weights), self.num_classes), np.nan) for name in names}
        negative = self.known & ~self.positive
        hits, misses = weights @ (predicted & self.positive), weights @ (~predicted & self.positive)
        alarms, rejections = weights @ (predicted & negative), weights @ (~predicted & negative)
        has_positive = hits + misses > 0
        precision = ratio(hits, hits + alarms, has_positive, empty=0.0)
        recall = ratio(hits, hits + misses, has_positive)
        specificity = ratio(rejections, rejections + alarms, rejections + alarms > 0)
        rates = (
            ratio(hits + rejections, hits + misses + alarms + rejections, True),
            (recall + specificity) / 2,
            ratio(2 * hits, 2 * hits + alarms + misses, has_positive),
            precision,
            recall,
            specificity,
        )
        return dict(zip(names, rates, strict=True))

    def _calibration(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        if not self.probabilities:
            shape = len(weights) if self.exclusive else (len(weights), self.num_classes)
            return {"ece": np.full(shape, np.nan), "brier": np.full(shape, np.nan)}
        squares = (self.scores - np.where(self.known, self.truth, 0)) ** 2
        if self.exclusive:
            right = (self.predicted & self.positive).any(1)
            ece = calibration_error(self.scores.max(1), right, np.ones(len(right), dtype=bool), weights)
            return {"ece": ece, "brier": weights @ squares.sum(1) / weights.sum(1)}
        ece = [
            calibration_error(self.scores[:, column], self.positive[:, column], self.known[:, column], weights)
            for column in range(self.num_classes)
        ]
        totals = weights @ self.known
        return {"ece": np.stack(ece, 1), "brier": ratio(weights @ (squares * self.known), totals, totals > 0)}


def nearly_constant(scores: np.ndarray) -> bool:
    """Whether all scores are equal up to the rounding of float32."""
    return bool(np.ptp(scores) <= 8 * np.finfo(np.float32).eps * np.abs(scores).max())


def _no_ece() -> IntervalMethod:
    return IntervalMethod(
        "none", reason="the calibration error of few rows is biased upwards, and so are its resamples."
    )


__all__ = [
    "Metrics",
    "classification_interval_methods",
    "classification_intervals",
    "classification_metrics",
    "metrics_under_weights",
    "nearly_constant",
]
