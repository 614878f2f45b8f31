"""Bootstrap over patients of any metric, paired differences, DeLong, Holm, intervals over seeds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from adaptor_hf.evaluation import auroc_interval
from adaptor_hf.evaluation.statistics import (
    bootstrap_draws,
    bootstrap_interval,
    delong,
    holm,
    paired_bootstrap,
    seed_interval,
)
from adaptor_hf.evaluation.weighted import weighted_auroc


def two_models(rows: int, gap: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, and scores of two models on the same rows that share most of their noise."""
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % 2
    shared = generator.normal(0, 1, rows)
    first = labels * (1 + gap) + shared + generator.normal(0, 0.3, rows)
    return labels, first, labels + shared + generator.normal(0, 0.3, rows)


class TestAnyMetric:
    def test_the_form_with_weights_and_the_form_with_rows_agree(self):
        labels, scores, _ = two_models(60, 0)
        patients = np.arange(60) // 2
        rows = bootstrap_interval(
            [labels, scores], patients, metric=lambda y, s: roc_auc_score(y, s), num_resamples=100
        )
        weights = bootstrap_interval(
            [scores, labels], patients, metric=weighted_auroc, weighted=True, num_resamples=100
        )
        assert rows == pytest.approx(weights)

    def test_patients_are_drawn_whole(self):
        patients = np.repeat(np.arange(8), 5)
        draws = bootstrap_draws([patients], patients, lambda drawn: len(drawn) % 5, num_resamples=50)
        assert (draws == 0).all()

    def test_undefined_in_most_resamples_is_no_interval(self):
        patients = np.arange(3)

        def needs_all(drawn):  # in 6 of 27 resamples
            return drawn.mean() if len(set(drawn)) == 3 else float("nan")

        low, high = bootstrap_interval([patients], patients, metric=needs_all, num_resamples=100)
        assert np.isnan(low)
        assert np.isnan(high)

    def test_lengths_must_agree(self):
        with pytest.raises(ValueError, match="3 groups for values of"):
            bootstrap_interval([np.ones(2)], np.arange(3), metric=np.mean)
        with pytest.raises(ValueError, match="level"):
            bootstrap_interval(np.ones(3), np.arange(3), level=95)


class TestPaired:
    def test_pairing_narrows_the_interval_of_a_difference(self):
        labels, first, second = two_models(400, 0.4)
        patients = np.arange(400)
        found = paired_bootstrap((first, labels), (second, labels), patients, metric=weighted_auroc, weighted=True)
        assert found.value == pytest.approx(roc_auc_score(labels, first) - roc_auc_score(labels, second))
        assert found.ci_lo < found.value < found.ci_hi
        alone = auroc_interval(first, labels, patients)
        assert found.ci_hi - found.ci_lo < 0.7 * (alone[2] - alone[1])
        assert found.p_value < 0.01

    def test_a_model_does_not_differ_from_itself(self):
        values = np.random.default_rng(0).random(50)
        found = paired_bootstrap(values, values, np.arange(50))
        assert (found.value, found.ci_lo, found.ci_hi, found.p_value) == (0, 0, 0, 1)

    def test_equal_models_are_rarely_called_different(self):
        called = 0
        for run in range(100):
            labels, first, second = two_models(100, 0, seed=run)
            found = paired_bootstrap(
                (first, labels), (second, labels), np.arange(100), metric=weighted_auroc, weighted=True,
                num_resamples=200, seed=run,
            )  # fmt: skip
            called += found.p_value < 0.05
            assert (found.p_value < 0.04) <= (not found.ci_lo < 0 < found.ci_hi)
        assert called <= 12

    def test_swapping_the_models_mirrors_the_result(self):
        generator = np.random.default_rng(0)
        first, second, patients = generator.random(40), generator.random(40), np.arange(40) // 4
        one, other = paired_bootstrap(first, second, patients), paired_bootstrap(second, first, patients)
        assert one.value == -other.value
        assert one.ci_lo == pytest.approx(-other.ci_hi)
        assert one.p_value == other.p_value

    def test_nothing_to_compare_raises(self):
        with pytest.raises(ValueError, match="NaN on all rows"):
            paired_bootstrap(
                (np.ones(3), np.ones(3)), (np.ones(3), np.ones(3)), np.arange(3), metric=weighted_auroc, weighted=True
            )


class TestDeLong:
    def test_variance_is_that_of_its_definition(self):
        labels, first, second = two_models(40, 0.5)
        first = first.round(0)  # with ties
        found = delong(first, labels, np.arange(40), second)
        structural = []
        for scores in (first, second):
            positive, negative = scores[labels == 1], scores[labels == 0]
            wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
            structural.append((wins.mean(1), wins.mean(0)))
        of_positive, of_negative = (structural[0][side] - structural[1][side] for side in (0, 1))
        error = np.sqrt(of_positive.var(ddof=1) / 20 + of_negative.var(ddof=1) / 20)
        assert found.value == pytest.approx(roc_auc_score(labels, first) - roc_auc_score(labels, second))
        assert found.ci_hi - found.ci_lo == pytest.approx(2 * 1.959963985 * error)

    def test_it_agrees_with_the_bootstrap_at_one_image_a_patient(self):
        labels, first, second = two_models(600, 0.3)
        patients = np.arange(600)
        area, low, high = delong(first, labels, patients)
        assert area == pytest.approx(roc_auc_score(labels, first))
        np.testing.assert_allclose((low, high), auroc_interval(first, labels, patients)[1:], atol=0.008)
        exact = delong(first, labels, patients, second)
        resampled = paired_bootstrap((first, labels), (second, labels), patients, metric=weighted_auroc, weighted=True)
        np.testing.assert_allclose((exact.ci_lo, exact.ci_hi), (resampled.ci_lo, resampled.ci_hi), atol=0.004)

    def test_several_images_of_a_patient_are_refused(self):
        labels, first, second = two_models(10, 0)
        with pytest.raises(ValueError, match="10 rows are of 5 patients"):
            delong(first, labels, np.arange(10) // 2, second)

    def test_a_model_against_itself_and_bad_input(self):
        labels, first, _ = two_models(10, 0)
        assert delong(first, labels, np.arange(10), first).p_value == 1
        with pytest.raises(ValueError, match="two rows of each class"):
            delong(first, np.eye(10)[0], np.arange(10))
        with pytest.raises(ValueError, match="9 labels"):
            delong(first, labels[:9], np.arange(10))


class TestHolm:
    def test_it_is_the_worked_example(self):
        np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])

    @settings(deadline=None, max_examples=40)
    @given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
    def test_it_rejects_what_the_stepwise_procedure_rejects(self, p_values):
        adjusted, order = holm(p_values), np.argsort(p_values, kind="stable")
        rejected = set()
        for step, index in enumerate(order):
            if p_values[index] * (len(p_values) - step) > 0.05:
                break
            rejected.add(int(index))
        assert {int(index) for index in np.flatnonzero(adjusted <= 0.05)} == rejected

    @pytest.mark.parametrize("bad", [float("nan"), 1.2, -0.1])
    def test_what_is_no_p_value_raises(self, bad):
        with pytest.raises(ValueError, match="p-values"):
            holm([0.1, bad])


def test_the_interval_over_seeds_is_students():
    mean, low, high = seed_interval([0.7, 0.72, 0.71, 0.69, 0.73])
    assert mean == pytest.approx(0.71)
    assert (
        high - mean
        == pytest.approx(mean - low)
        == pytest.approx(2.776445 * np.std([1, 2, 3, 4, 5], ddof=1) / 100 / 5**0.5)
    )
    assert np.isnan(seed_interval([0.5])[1:]).all()
    with pytest.raises(ValueError, match="NaN"):
        seed_interval([0.5, float("nan")])
