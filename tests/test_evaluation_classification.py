"""Classification metrics: against scikit-learn, under weights, with unknown labels and missing classes."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import norm
from sklearn import metrics as sk

from adaptor_hf.evaluation import (
    classification_intervals,
    classification_metrics,
    f1_thresholds,
    reliability_curve,
    specificity_thresholds,
)
from adaptor_hf.evaluation.weighted import weighted_areas

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def softmax_case(rows: int = 200, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, rows)
    logits = generator.normal(size=(rows, classes)) + 1.5 * (labels[:, None] == np.arange(classes))
    odds = np.exp(logits)
    return odds / odds.sum(1, keepdims=True), labels


def label_case(rows: int = 200, classes: int = 3, seed: int = 0, unknown: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, (rows, classes)).astype(float)
    scores = 1 / (1 + np.exp(-generator.normal(size=labels.shape) - 2 * labels + 1))
    labels[generator.random(labels.shape) < unknown] = np.nan
    return scores, labels


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 3)), min_size=1, max_size=40))
def test_weighted_areas_are_those_of_sklearn_with_ties(rows):
    scores, labels, weights = (np.array([row[place] for row in rows], dtype=float) for place in range(3))
    area, precision = (values[0] for values in weighted_areas(scores, labels, weights[None]))
    if (weights * labels).sum() == 0:
        assert np.isnan(area)
        assert np.isnan(precision)
        return
    assert precision == pytest.approx(sk.average_precision_score(labels, scores, sample_weight=weights))
    if (weights * (1 - labels)).sum() == 0:
        assert np.isnan(area)
    else:
        assert area == pytest.approx(sk.roc_auc_score(labels, scores, sample_weight=weights))


def test_exclusive_classes_agree_with_sklearn():
    scores, labels = softmax_case()
    found = classification_metrics(scores, labels, problem_type=SINGLE, class_names=["a", "b", "c"])
    predicted = scores.argmax(1)
    precision, recall, f1, _ = sk.precision_recall_fscore_support(labels, predicted)
    areas = [sk.roc_auc_score(labels == number, scores[:, number]) for number in range(3)]
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "auroc": sk.roc_auc_score(labels, scores, multi_class="ovr"),
        "auprc": np.mean([sk.average_precision_score(labels == number, scores[:, number]) for number in range(3)]),
        "f1": sk.f1_score(labels, predicted, average="macro"),
        "brier": ((scores - np.eye(3)[labels]) ** 2).sum(1).mean(),
    }
    for number, name in enumerate("abc"):
        expected |= {f"auroc/{name}": areas[number], f"f1/{name}": f1[number]}
        expected |= {f"precision/{name}": precision[number], f"recall/{name}": recall[number]}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name
    assert found.notes == []


def test_labels_with_unknowns_agree_with_sklearn_on_the_known_rows():
    scores, labels = label_case()
    thresholds = [0.3, 0.5, 0.6]
    found = classification_metrics(scores, labels, problem_type=MULTI, thresholds=thresholds)
    means = {}
    for column in range(3):
        known = ~np.isnan(labels[:, column])
        truth, score = labels[known, column], scores[known, column]
        decided = score > thresholds[column]
        expected = {
            "auroc": sk.roc_auc_score(truth, score),
            "auprc": sk.average_precision_score(truth, score),
            "accuracy": sk.accuracy_score(truth, decided),
            "balanced_accuracy": sk.balanced_accuracy_score(truth, decided),
            "f1": sk.f1_score(truth, decided),
            "precision": sk.precision_score(truth, decided),
            "recall": sk.recall_score(truth, decided),
            "specificity": sk.recall_score(1 - truth, ~decided),
            "brier": sk.brier_score_loss(truth, score),
        }
        for name, value in expected.items():
            assert found[f"{name}/{column}"] == pytest.approx(value, abs=1e-12), name
            means.setdefault(name, []).append(value)
    for name, values in means.items():
        assert found[name] == pytest.approx(np.mean(values), abs=1e-12), name


def test_one_column_is_binary_whatever_the_problem_type():
    scores, labels = label_case(classes=1, unknown=0)
    first = classification_metrics(scores, labels, problem_type=MULTI)
    assert first == classification_metrics(scores[:, 0], labels[:, 0].astype(int), problem_type=SINGLE)
    assert not any("/" in name for name in first)


@pytest.mark.parametrize("classes", [1, 3])
def test_calibration_error_is_its_definition(classes):
    scores, labels = softmax_case() if classes == 3 else label_case(classes=1, unknown=0)
    found = classification_metrics(scores, labels, problem_type=SINGLE)["ece"]
    confidence = scores.max(1) if classes == 3 else scores[:, 0]
    right = scores.argmax(1) == labels if classes == 3 else labels[:, 0]
    expected = 0.0
    for lower in np.arange(15) / 15:
        rows = (confidence > lower) & (confidence <= lower + 1 / 15)
        if rows.any():
            expected += rows.mean() * abs(confidence[rows].mean() - right[rows].mean())
    assert found == pytest.approx(expected)


def test_calibrated_scores_have_a_small_error_and_confident_wrong_ones_a_large_one():
    generator = np.random.default_rng(0)
    scores = generator.random(20000)
    labels = (generator.random(20000) < scores).astype(int)
    assert classification_metrics(scores, labels, problem_type=SINGLE)["ece"] < 0.02
    assert classification_metrics(1 - scores, labels, problem_type=SINGLE)["ece"] > 0.4


def test_intervals_have_the_spread_of_sklearn_on_the_drawn_rows():
    scores, labels = softmax_case(rows=90, seed=1)
    patients = np.arange(90) // 3
    intervals = classification_intervals(scores, labels, patients, problem_type=SINGLE, num_resamples=200, seed=4)
    drawn = np.random.default_rng(4).multinomial(30, np.full(30, 1 / 30), size=200)[:, patients]
    rows = [np.repeat(np.arange(90), counts) for counts in drawn]
    point = classification_metrics(scores, labels, problem_type=SINGLE)
    accuracy = np.var([sk.accuracy_score(labels[row], scores[row].argmax(1)) for row in rows], ddof=1)
    spread = point["accuracy"] * (1 - point["accuracy"])
    # Beside it the variance of a share, of three images a patient that correlate by .75.
    variance = (30 * accuracy + 2 * (0.75 + 0.25 / 3) * spread / 30) / 32
    square = norm.ppf(0.975) ** 2 / min(90, spread / variance)
    roots = np.roots([1 + square, -2 * point["accuracy"] - square, point["accuracy"] ** 2])
    np.testing.assert_allclose(intervals["accuracy"], np.sort(roots.real), atol=1e-9)
    precision = np.array([sk.average_precision_score(labels[row] == 1, scores[row, 1]) for row in rows])
    odds = np.log([(labels[row] == 1).sum() / (labels[row] != 1).sum() for row in rows])
    observed = np.var(precision - np.polyval(np.polyfit(odds, precision, 1), odds), ddof=1)
    holders, images = len(set(patients[labels == 1])), (labels == 1).sum()
    spread = point["auprc/1"] * (1 - point["auprc/1"])
    assumed = spread / holders * (0.75 + 0.25 * holders / images)
    half = norm.ppf(0.975) * np.sqrt((holders * observed + 2 * assumed) / (holders + 2)) / spread
    np.testing.assert_allclose(
        intervals["auprc/1"], expit(logit(point["auprc/1"]) + np.array([-half, half])), atol=1e-9
    )
    assert set(intervals) == set(point)
    assert np.isnan(intervals["ece"]).all()
    assert all(low <= point[name] <= high for name, (low, high) in intervals.items() if name != "ece")


def test_intervals_of_many_rows_come_in_blocks_with_the_same_result(monkeypatch):
    scores, labels = label_case(rows=60)
    arguments = {"problem_type": MULTI, "num_resamples": 50}
    whole = classification_intervals(scores, labels, np.arange(60), **arguments)
    monkeypatch.setattr("adaptor_hf.evaluation.statistics.BLOCK_ELEMENTS", 200)
    blocks = classification_intervals(scores, labels, np.arange(60), **arguments)
    for name, interval in whole.items():
        np.testing.assert_allclose(blocks[name], interval, atol=1e-12)


def test_a_class_absent_from_the_test_rows_is_nan_with_a_note_and_no_part_of_the_mean():
    scores, labels = softmax_case(rows=80)
    scores, labels = scores[labels != 2], labels[labels != 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = classification_metrics(scores, labels, problem_type=SINGLE, class_names=["a", "b", "gone"])
        intervals = classification_intervals(
            scores, labels, np.arange(len(labels)), problem_type=SINGLE, num_resamples=50
        )
    for name in ("auroc", "auprc", "f1", "recall", "precision"):
        assert np.isnan(found[f"{name}/gone"])
        assert found[name] == pytest.approx((found[f"{name}/a"] + found[f"{name}/b"]) / 2)
    assert np.isnan(intervals["auroc/2"]).all()
    assert len(found.notes) == 1
    assert "'gone' has no positive among" in found.notes[0]


@pytest.mark.parametrize(("label", "words"), [(0, "no positive among 9"), (1, "no negative among 9")])
def test_one_class_test_data_gets_a_clear_answer(label, words):
    found = classification_metrics(np.linspace(0, 1, 9), np.full(9, label), problem_type=SINGLE)
    assert np.isnan(found["auroc"])
    assert found["accuracy"] == pytest.approx(4 / 9 if label else 5 / 9)
    assert words in found.notes[0]


def test_a_label_that_is_never_known_is_noted():
    scores, labels = label_case()
    labels[:, 1] = np.nan
    found = classification_metrics(scores, labels, problem_type=MULTI, class_names=["x", "y", "z"])
    assert np.isnan(found["accuracy/y"])
    assert np.isfinite(found["accuracy"])
    assert "'y' has no known label" in found.notes[0]


def test_scores_that_are_no_probabilities_have_no_calibration_and_no_decisions():
    scores, labels = label_case(classes=1)
    with pytest.raises(ValueError, match="probabilities=False"):
        classification_metrics(scores * 3, labels, problem_type=MULTI)
    found = classification_metrics(scores * 3, labels, problem_type=MULTI, probabilities=False)
    assert found["auroc"] == classification_metrics(scores, labels, problem_type=MULTI)["auroc"]
    assert np.isnan([found[name] for name in ("ece", "brier", "accuracy", "f1", "recall")]).all()
    decided = classification_metrics(scores * 3, labels, problem_type=MULTI, probabilities=False, thresholds=1.5)
    assert decided["accuracy"] == classification_metrics(scores, labels, problem_type=MULTI)["accuracy"]


@pytest.mark.parametrize(
    ("scores", "labels", "arguments", "message"),
    [
        (np.zeros((0, 2)), np.zeros(0), {}, "no row"),
        (np.full((2, 2), 0.5), [0, 2], {}, "row 1 is 2, expected a class number from 0 to 1"),
        (np.full((2, 2), 0.5), [[0, 1], [1, 0]], {}, "class numbers"),
        (np.full((2, 2), 0.4), [0, 1], {}, "sum to 0.8"),
        ([[0.5, np.nan], [1, 0]], [0, 1], {}, "row 0, column 1 is nan"),
        (np.full(2, 0.5), [0, -1], {"problem_type": MULTI}, "row 1, column 0 is -1.*uncertain"),
        (np.full((2, 2), 0.5), [0, 1], {"problem_type": MULTI}, "same shape"),
        (np.full((2, 2), 0.5), [0, 1], {"problem_type": "regression"}, "problem_type"),
        (np.full((2, 2), 0.5), [0, 1], {"class_names": ["a", "a"]}, "different class names"),
        (np.full((2, 2), 0.5), [0, 1], {"thresholds": 0.5}, "top score wins"),
        (np.full(2, 0.5), [0, 1], {"thresholds": np.nan}, "threshold is NaN"),
    ],
)
def test_impossible_input_raises(scores, labels, arguments, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(np.asarray(scores), np.asarray(labels), **{"problem_type": SINGLE} | arguments)


class TestOperatingPoints:
    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.sampled_from([0.5, 0.9, 0.95, 1.0]))
    def test_validation_reaches_the_specificity_and_no_lower_threshold_does(self, negatives, specificity):
        scores = np.array([*negatives, 3.0])
        labels = np.array([0] * len(negatives) + [1])
        (threshold,) = specificity_thresholds(scores, labels, specificity)
        negatives = np.array(negatives)
        assert (negatives <= threshold).mean() >= specificity - 1e-9
        lower = negatives[negatives < threshold]
        assert len(lower) == 0 or (negatives <= lower.max()).mean() < specificity

    def test_sensitivity_and_specificity_of_test_rows_are_shares_above_the_point_of_validation(self):
        generator = np.random.default_rng(0)
        labels = generator.integers(0, 2, 400)
        scores = labels + generator.normal(0, 0.7, 400)
        points = {"0.90": specificity_thresholds(scores[:200], labels[:200], 0.9)}
        rows, truth = scores[200:], labels[200:]
        # The test rows do not move the threshold.
        for moved in (rows, rows + 9):
            found = classification_metrics(
                moved, truth, problem_type=MULTI, probabilities=False, operating_points=points
            )
            assert found["sensitivity@specificity0.90"] == (moved[truth == 1] > points["0.90"]).mean()
            assert found["specificity@specificity0.90"] == (moved[truth == 0] <= points["0.90"]).mean()

    def test_unknown_labels_are_left_out_and_a_label_without_negatives_has_no_threshold(self):
        scores = np.array([[0.1, 0.4], [0.9, 0.5], [0.2, 0.6]])
        labels = np.array([[0, 1], [np.nan, 1], [0, np.nan]])
        np.testing.assert_array_equal(specificity_thresholds(scores, labels, 1.0), [0.2, np.nan])
        found = classification_metrics(
            scores, labels, problem_type=MULTI, operating_points={"1.00": specificity_thresholds(scores, labels, 1.0)}
        )
        assert np.isnan(found["sensitivity@specificity1.00/1"])

    def test_the_threshold_of_the_best_f1_is_the_best_of_all(self):
        scores, labels = label_case(rows=60)
        for column, threshold in enumerate(f1_thresholds(scores, labels)):
            known = ~np.isnan(labels[:, column])
            truth, score = labels[known, column], scores[known, column]
            of_all = [sk.f1_score(truth, score > cut, zero_division=0) for cut in [-1, *score]]
            assert sk.f1_score(truth, score > threshold) == pytest.approx(max(of_all))


def test_the_reliability_curve_counts_every_known_row_once():
    scores, labels = label_case(classes=1)
    curve = reliability_curve(scores[:, 0], labels[:, 0])
    known = ~np.isnan(labels[:, 0])
    assert curve["count"].sum() == known.sum()
    filled = curve["count"] > 0
    assert (curve["confidence"][filled] * curve["count"][filled]).sum() == pytest.approx(scores[known, 0].sum())
    assert (curve["frequency"][filled] * curve["count"][filled]).sum() == pytest.approx(labels[known, 0].sum())
    edges = reliability_curve(np.array([0.0, 1.0, 1 / 15]), np.array([0, 1, 1]))["count"]
    assert edges[0] == 2
    assert edges[-1] == 1
