"""Differences of two kinds of run over patients and seeds."""

import numpy as np
import pytest

from adaptor_hf.evaluation.compare import compare_all, compare_predictions, mean_interval
from adaptor_hf.evaluation.predictions import Predictions, classification_predictions, segmentation_predictions
from adaptor_hf.evaluation.scoring import score_predictions
from adaptor_hf.evaluation.segmentation import image_dice, segmentation_counts
from adaptor_hf.evaluation.statistics import Difference, delong, paired_bootstrap
from adaptor_hf.evaluation.weighted import weighted_auroc


def run(strength: float, seed: int, rows: int = 120, order=None) -> Predictions:
    shared = np.random.default_rng(99).normal(size=rows)
    labels = np.arange(rows) % 2
    scores = strength * labels + shared + 0.4 * np.random.default_rng(seed).normal(size=rows)
    order = np.arange(rows) if order is None else order
    return classification_predictions(
        [f"i{row}" for row in order], [f"p{row // 2}" for row in order], labels[order], scores[order],
        problem_type="single_label_classification", probabilities=False,
    )  # fmt: skip


def test_one_seed_a_side_has_the_spread_of_delongs_test_whatever_the_order_of_rows():
    first, second = run(1.5, 0), run(1.0, 1)
    for predictions in (first, second):  # DeLong's test needs one image a patient
        predictions.columns["patient_id"] = predictions.columns["image_id"]
    found = compare_predictions([first], [second], "auroc", num_resamples=1000)
    labels = first.columns["target"]
    expected = delong(first.columns["score"], labels, first.patients, second.columns["score"])
    assert found.value == pytest.approx(expected.value)
    assert found.ci_hi - found.ci_lo == pytest.approx(expected.ci_hi - expected.ci_lo, rel=0.25)
    assert found.ci_lo > 0
    assert expected.p_value < found.p_value < 0.01
    shuffled = run(1.0, 1, order=np.random.default_rng(5).permutation(120))
    shuffled.columns["patient_id"] = shuffled.columns["image_id"]
    again = compare_predictions([first], [shuffled], "auroc", num_resamples=1000)
    for name in ("value", "ci_lo", "ci_hi"):
        assert getattr(again, name) == pytest.approx(getattr(found, name), abs=1e-9), name


def test_the_p_value_is_below_a_level_exactly_where_that_interval_leaves_out_zero():
    for strength in (1.05, 1.15, 1.2, 1.3):
        sides = [run(strength, 0)], [run(1.0, 1)]
        p_value = compare_predictions(*sides, "auroc", num_resamples=200).p_value
        for level, leaves_out in ((1 - p_value - 1e-3, True), (1 - p_value + 1e-3, False)):
            if 0 < level < 1:
                found = compare_predictions(*sides, "auroc", num_resamples=200, level=level)
                assert (not found.ci_lo <= 0 <= found.ci_hi) == leaves_out


def test_too_few_positives_give_a_difference_without_interval_and_say_why():
    sides = [run(1.5, 0, rows=40), run(1.0, 1, rows=40)]
    for predictions in sides:
        predictions.columns["target"] = (np.arange(40) < 4).astype(int)
    found = compare_predictions([sides[0]], [sides[1]], "auroc", num_resamples=50)
    assert np.isnan([found.ci_lo, found.ci_hi, found.p_value]).all()
    assert "patients positive, fewer than 5" in found.method


def test_seeds_widen_the_interval_by_their_spread_and_the_value_is_the_difference_of_means():
    first, second = [run(s, seed) for seed, s in enumerate((0.2, 1.0, 1.8))], [run(1.0, seed) for seed in (7, 8, 9)]
    found = compare_predictions(first, second, "auroc", num_resamples=400)
    areas = [
        weighted_auroc(part.columns["score"], part.columns["target"], np.ones((1, 120)))[0]
        for part in (*first, *second)
    ]
    assert found.value == pytest.approx(np.mean(areas[:3]) - np.mean(areas[3:]))
    steady = compare_predictions([run(1.0, seed) for seed in (0, 1, 2)], second, "auroc", num_resamples=400)
    assert found.ci_hi - found.ci_lo > 2 * (steady.ci_hi - steady.ci_lo)
    assert found.ci_lo < found.value < found.ci_hi
    assert found.method == "paired MOVER over patients and seeds"


def test_every_pair_at_once_is_each_pair_alone():
    kinds = [[run(0.5, 0), run(0.6, 1)], [run(1.0, 2)], [run(1.4, 3), run(1.2, 4)]]
    together = compare_all(kinds, "auroc", num_resamples=200)
    assert set(together) == {(0, 1), (0, 2), (1, 2)}
    for (one, other), found in together.items():
        assert found == compare_predictions(kinds[one], kinds[other], "auroc", num_resamples=200)


def test_the_detectable_difference_is_the_one_a_test_finds_four_times_of_five():
    """Against the test itself: paired differences with a true mean of that size, drawn anew many times."""
    rng, rows = np.random.default_rng(0), 150
    noise = rng.normal(size=rows)
    one = paired_bootstrap(noise, np.zeros(rows), np.arange(rows), num_resamples=2000)
    assert np.isnan(one.standard_error)
    error = noise.std(ddof=1) / np.sqrt(rows)
    found = Difference(0.0, -1.0, 1.0, 1.0, "", error)
    effect = found.detectable()
    draws = rng.normal(effect, noise.std(ddof=1), size=(20_000, rows))
    statistic = draws.mean(1) / (draws.std(axis=1, ddof=1) / np.sqrt(rows))
    assert np.mean(np.abs(statistic) > 1.96) == pytest.approx(0.8, abs=0.02)
    assert found.detectable(alpha=0.005) > effect


def test_the_standard_error_is_that_of_many_samples():
    """One pair's bootstrap against the spread of the difference over fresh draws of patients."""

    def draw(seed):
        rng = np.random.default_rng(seed)
        labels, shared = np.arange(200) % 2, rng.normal(size=200)
        sides = [s * labels + shared + 0.5 * rng.normal(size=200) for s in (1.0, 1.0)]
        ids = [f"i{row}" for row in range(200)]
        return [
            classification_predictions(ids, [None] * 200, labels, scores, problem_type="single_label_classification",
                                       probabilities=False) for scores in sides
        ]  # fmt: skip

    def difference(sides):
        areas = [weighted_auroc(side.columns["score"], side.columns["target"], np.ones((1, 200)))[0] for side in sides]
        return areas[0] - areas[1]

    true = np.std([difference(draw(seed)) for seed in range(300)], ddof=1)
    errors = [compare_predictions([one], [other], "auroc", num_resamples=300).standard_error
              for one, other in (draw(seed) for seed in range(1000, 1010))]  # fmt: skip
    assert np.mean(errors) == pytest.approx(true, rel=0.15)


def test_a_run_does_not_differ_from_itself_and_a_better_one_does():
    same = compare_predictions([run(1.0, 0)], [run(1.0, 0)], "auroc", num_resamples=100)
    assert (same.value, same.ci_lo, same.ci_hi, same.p_value) == (0, 0, 0, 1)
    better = compare_predictions(
        [run(3.0, s) for s in (0, 1)], [run(0.5, s) for s in (2, 3)], "auroc", num_resamples=200
    )
    assert better.ci_lo > 0
    assert better.p_value < 0.01


def test_masks_are_compared_by_any_of_their_metrics():
    generator = np.random.default_rng(0)
    targets = generator.random((20, 6, 6)) > 0.6
    runs = [
        segmentation_predictions(
            map(str, range(20)), [None] * 20,
            segmentation_counts(np.clip(strength * targets + generator.random(targets.shape) * 0.6, 0, 1), targets),
        )
        for strength in (0.4, 0.1)
    ]  # fmt: skip
    found = compare_predictions([runs[0]], [runs[1]], "dice_reference", num_resamples=100)
    expected = [image_dice(part.columns).mean() for part in runs]
    assert found.value == pytest.approx(expected[0] - expected[1])
    assert found.ci_lo > 0


def test_other_images_targets_or_metrics_are_refused():
    with pytest.raises(ValueError, match="differ in image_id"):
        compare_predictions([run(1, 0)], [run(1, 0, rows=118)], "auroc")
    other = run(1, 0)
    other.columns["target"] = 1 - other.columns["target"]
    with pytest.raises(ValueError, match="differ in target"):
        compare_predictions([run(1, 0)], [other], "auroc")
    with pytest.raises(ValueError, match="No metric 'auc' here"):
        compare_predictions([run(1, 0)], [run(1, 1)], "auc")
    with pytest.raises(ValueError, match="accuracy is not defined"):
        compare_predictions([run(1, 0)], [run(1, 1)], "accuracy")
    twice = run(1, 0)
    twice.columns["image_id"][1] = "i0"
    with pytest.raises(ValueError, match="more than once"):
        compare_predictions([twice], [twice], "auroc")


def test_the_interval_of_a_mean_over_seeds_is_that_of_one_run_and_seeds_widen_it():
    one = run(1.0, 0)
    value, low, high = mean_interval([one], "auroc", num_resamples=400)
    scores = {score.metric: score for score in score_predictions(one)}["auroc"]
    assert value == pytest.approx(scores.value)
    np.testing.assert_allclose((low, high), (scores.ci_lo, scores.ci_hi), atol=0.02)
    several = mean_interval(
        [run(strength, seed) for seed, strength in enumerate((0.2, 1.0, 2.0))], "auroc", num_resamples=400
    )
    steady = mean_interval([run(1.0, seed) for seed in (0, 1, 2)], "auroc", num_resamples=400)
    assert several[2] - several[1] > 1.3 * (steady[2] - steady[1])
