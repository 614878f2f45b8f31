"""Metrics by group with gap and worst group, and images of a study as one."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from adaptor_hf.evaluation import auroc_interval
from adaptor_hf.evaluation.subgroups import age_bands, aggregate_rows, subgroup_metrics


def by_sex(rows: int = 400, weak: float = 0.3, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Scores that separate women well and men badly; a patient has two images."""
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % 2
    patients = np.arange(rows) // 2
    sex = np.where(patients % 2, "F", "M").astype(object)
    return labels * np.where(sex == "F", 2.0, weak) + generator.normal(size=rows), labels, sex, patients


def test_groups_gap_and_worst_are_those_of_the_rows():
    scores, labels, sex, patients = by_sex()
    found = subgroup_metrics(scores, labels, sex, patients, num_resamples=300)
    for group in found.groups:
        rows = sex == group.name
        assert group.value == pytest.approx(roc_auc_score(labels[rows], scores[rows]))
        assert (group.rows, group.patients, group.positives) == (200, 100, 100)
        np.testing.assert_allclose(
            (group.ci_lo, group.ci_hi), auroc_interval(scores[rows], labels[rows], patients[rows])[1:], atol=0.02
        )
    assert (found.worst, found.best) == ("M", "F")
    values = {group.name: group.value for group in found.groups}
    assert found.gap == pytest.approx(values["F"] - values["M"])
    assert 0 < found.gap_lo < found.gap < found.gap_hi


def test_the_interval_of_no_gap_holds_zero_nearly_always():
    missed = 0
    for seed in range(60):
        found = subgroup_metrics(*by_sex(200, weak=2.0, seed=seed), num_resamples=100)
        missed += found.gap_lo > 0
    assert missed <= 7  # one side of 95 %, for the better of two groups


def test_unknown_small_and_one_class_groups_are_listed_but_no_part_of_the_gap():
    scores, labels, sex, patients = by_sex(80)
    column = sex.copy()
    column[:4], column[4:8], column[8:12] = None, float("nan"), ""
    column[12:16] = "X"
    column[16:40] = np.where(labels[16:40] == 1, "positives", column[16:40])
    scores[:12] = -labels[:12]  # the worst of all, were it a group
    found = subgroup_metrics(scores, labels, column, patients, num_resamples=50)
    assert [group.name for group in found.groups] == ["F", "M", "X", "positives", "unknown"]
    assert found.groups[-1].value == 0
    assert found.groups[-1].rows == 12
    assert {found.worst, found.best} == {"F", "M"}
    assert any("X: 4 rows, fewer than 10" in note for note in found.notes)
    assert any("positives: 12 positives among 12 rows" in note for note in found.notes)


def test_rows_with_unknown_label_are_left_out():
    scores, labels, sex, patients = by_sex(80)
    with_unknown = labels.astype(float)
    with_unknown[:40] = np.nan
    found = subgroup_metrics(scores, with_unknown, sex, patients, num_resamples=50)
    assert found == subgroup_metrics(scores[40:], labels[40:], sex[40:], patients[40:], num_resamples=50)


def test_one_group_has_no_gap_and_bad_input_raises():
    scores, labels, _, patients = by_sex(40)
    found = subgroup_metrics(scores, labels, ["all"] * 40, patients, num_resamples=20)
    assert found.worst is None
    assert np.isnan(found.gap)
    assert "no gap" in found.notes[0]
    with pytest.raises(ValueError, match="as many rows each"):
        subgroup_metrics(scores, labels, ["all"] * 39, patients)
    with pytest.raises(ValueError, match="0, 1 or NaN"):
        subgroup_metrics(scores, labels - 1, ["all"] * 40, patients)


def test_age_bands_hold_their_lower_edge():
    ages = [0, 17.9, 18, 59, 60, 80, 104, None, float("nan"), -1, 999]
    bands = ["00-17", "00-17", "18-39", "40-59", "60-79", "80+", "80+"]
    assert age_bands(ages) == [*bands, None, None, None, None]


class TestStudies:
    @pytest.mark.parametrize("how", ["mean", "max"])
    @pytest.mark.parametrize("shape", [(6,), (6, 2)])
    def test_scores_of_a_study_become_one(self, how, shape):
        scores = np.random.default_rng(0).random(shape)
        ids = ["b", "a", "b", "c", "a", "b"]
        labels = np.zeros(shape)
        labels[[1, 4]] = 1
        combined, of_study, names = aggregate_rows(scores, labels, ids, how=how)
        assert names.tolist() == ["a", "b", "c"]
        for row, rows in enumerate(([1, 4], [0, 2, 5], [3])):
            np.testing.assert_allclose(combined[row], getattr(scores[rows], how)(axis=0))
        expected = np.array([1, 0, 0]) if len(shape) == 1 else np.array([[1, 1], [0, 0], [0, 0]])
        np.testing.assert_array_equal(of_study, expected)

    def test_an_unknown_label_gives_way_to_a_known_one(self):
        labels = np.array([np.nan, 1, np.nan, np.nan])
        np.testing.assert_array_equal(aggregate_rows(np.ones(4), labels, list("aabb"))[1], [1, np.nan])

    def test_labels_that_differ_within_a_study_raise_with_its_rows(self):
        with pytest.raises(ValueError, match="rows 1, 3"):
            aggregate_rows(np.ones(4), np.array([0, 1, 1, 0]), list("abcb"))

    def test_missing_ids_and_other_lengths_raise(self):
        with pytest.raises(ValueError, match="Row 1 has no study id"):
            aggregate_rows(np.ones(2), np.ones(2), ["a", None])
        with pytest.raises(ValueError, match="3 ids"):
            aggregate_rows(np.ones(2), np.ones(2), list("abc"))
