"""Intervals that cover, or a reason why there is none; the AUPRC of random scores; scores from `evaluate.Metric`."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score

from adaptor_hf.evaluation import classification_intervals, classification_predictions, write_run
from adaptor_hf.evaluation.intervals import Recipe, hanley_mcneil, make_intervals
from adaptor_hf.evaluation.scoring import expected_average_precision, score_predictions
from adaptor_hf.evaluation.verify import verify_run

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def binary(rows: int = 60, positives: int = 12, patients=None, scores=None):
    labels = (np.arange(rows) < positives).astype(float)
    generator = np.random.default_rng(0)
    scores = 1 / (1 + np.exp(-generator.normal(labels, 1))) if scores is None else scores
    patients = [f"p{row}" for row in range(rows)] if patients is None else patients
    return classification_predictions(
        [f"i{row}" for row in range(rows)], patients, labels, scores, problem_type=SINGLE, num_resamples=200
    )


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    import bench_coverage

    yield bench_coverage
    sys.path.pop(0)


def test_few_positives_are_covered_where_percentiles_are_not(bench):
    found = bench.classification_coverage(bench.Cell(50, 5, 1, 1.8), 200, 150, seed=1)
    for name, of in found.items():  # 200 sets: two standard errors are 3 %
        assert of["package"] >= 0.92, name
    assert found["auroc"]["percentile"] < 0.88
    assert found["recall"]["percentile"] < 0.88


def test_differences_of_equal_models_are_covered(bench):
    found = bench.difference_coverage(bench.Cell(60, 10, 1, 0.74), 40, 60, seed=1)
    assert all(of["package"] >= 0.87 for of in found.values())
    assert any(of["package"] < 1 for of in found.values())


def test_a_share_of_one_image_a_patient_is_wilsons():
    hits = np.arange(40) < 31
    recipe = {"share": Recipe("share", np.ones(40, dtype=bool))}
    draws = {"share": np.random.default_rng(0).binomial(40, 31 / 40, 500) / 40}
    found = make_intervals(recipe, {"share": hits.mean()}, draws, np.arange(40))["share"]
    expected = binomtest(31, 40).proportion_ci(method="wilson")
    np.testing.assert_allclose(found, (expected.low, expected.high), atol=1e-9)


def test_hanley_and_mcneils_variance_is_that_of_exponential_scores():
    generator = np.random.default_rng(0)
    positive, negative = generator.exponential(3, (20000, 8, 1)), generator.exponential(1, (20000, 1, 12))
    areas = (positive > negative).mean((1, 2))  # of exponential scores the area is 3 / (3 + 1)
    assert areas.mean() == pytest.approx(0.75, abs=0.005)
    # Their approximation for the positives is of this family, exactly.
    assert hanley_mcneil(0.75, 8, 12) == pytest.approx(areas.var(), rel=0.04)


@pytest.mark.parametrize(
    ("predictions", "metric", "words"),
    [
        (binary(positives=4), "auroc", "4 patients positive, fewer than 5"),
        (binary(positives=57), "specificity", "3 patients negative, fewer than 5"),
        (binary(patients=["p"] * 60), "accuracy", "one patient"),
        (binary(scores=0.3 + 1e-9 * np.arange(60)), "auprc", "equal up to rounding"),
        (binary(positives=4, patients=[None] * 60), "auprc", "4 images positive"),
    ],
)
def test_where_none_can_be_had_there_is_a_reason_and_all_else_works(tmp_path, predictions, metric, words):
    write_run(tmp_path, predictions, {
        "system": "s", "task": "classification", "dataset": "d", "split_hash": "h", "protocol": "linear", "seed": 0,
        "tower_saw_dataset": "no",
    })  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    (line,) = [line for line in lines if line["metric"] == metric]
    assert line["value"] is not None
    assert line["ci_lo"] is line["ci_hi"] is line["ci_method"] is None
    assert words in line["interval_note"]
    assert verify_run(tmp_path) == []
    from adaptor_hf.evaluation.report import write_report

    page = write_report(tmp_path, tmp_path / "report", figures=False)[0].read_text()
    assert "[n/a]" in page
    assert words in page


def test_without_patients_results_say_images_and_count_none():
    predictions = binary(patients=[None] * 60)
    assert (predictions.interval_over, predictions.num_patients) == ("images", None)
    methods = [score.ci_method for score in score_predictions(predictions) if score.ci_method]
    assert methods
    assert all("images" in method and "patients" not in method for method in methods)
    some = binary(patients=["p", *[None] * 59])
    assert (some.interval_over, some.num_patients) == ("patients", 60)


def test_a_mean_over_classes_with_a_rare_one_has_a_caution():
    generator = np.random.default_rng(0)
    labels = np.stack([np.arange(60) < 20, np.arange(60) < 3], 1).astype(float)
    found = classification_intervals(
        generator.random((60, 2)), labels, np.arange(60), problem_type=MULTI, num_resamples=200
    )
    assert "1 of 2 classes" in found.cautions["auroc"]
    assert np.isfinite(found["auroc"]).all()
    assert np.isnan(found["auroc/1"]).all()


@pytest.mark.parametrize(("positives", "rows"), [(1, 1), (1, 5), (2, 6), (3, 7), (6, 6)])
def test_the_auprc_of_random_scores_is_the_mean_over_all_orders(positives, rows):
    scores = -np.arange(rows, dtype=float)
    orders = [
        average_precision_score([row in chosen for row in range(rows)], scores)
        for chosen in itertools.combinations(range(rows), positives)
    ]
    assert expected_average_precision(positives, rows) == pytest.approx(np.mean(orders), abs=1e-12)


def test_the_auprc_of_random_scores_nears_the_prevalence_and_needs_positives():
    assert expected_average_precision(20000, 100000) == pytest.approx(0.2, abs=2e-4)
    assert np.isnan(expected_average_precision(0, 5))
    with pytest.raises(ValueError, match="from 0 to 5"):
        expected_average_precision(6, 5)
