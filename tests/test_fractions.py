"""Fractions of the training rows, and splits by patient, both stratified."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptor_hf.data.fractions import FRACTION_RULES, fraction_mask
from adaptor_hf.data.splits import split_groups
from adaptor_hf.data.stratified import nested_fraction, patient_groups


def numbered(count: int, strata: list[str] | None = None) -> tuple[pd.DataFrame, pd.Series]:
    rows = pd.DataFrame({"image_id": [f"{number:06}" for number in range(count)]})
    return rows, pd.Series(strata if strata is not None else [""] * count, index=rows.index, dtype=object)


class TestRulesOfTheReferences:
    @pytest.mark.parametrize(
        ("rule", "rows", "expected"),
        [
            ("mgca", 18_678, (187, 1868, 18_678)),  # RSNA classification
            ("mgca", 24_104, (241, 2410, 24_104)),  # COVIDx 9A
            ("mgca", 185_771, (1858, 18_577, 185_771)),  # CheXpert, as the code runs
            ("mgca_detection", 16_010, (160, 1601, 16_010)),  # RSNA detection and segmentation
            ("lovt", 16_010, (160, 1601, 16_010)),
        ],
    )
    def test_published_sizes(self, rule, rows, expected):
        frame, strata = numbered(rows)
        assert tuple(fraction_mask(frame, strata, share, rule, 0).sum() for share in (0.01, 0.1, 1.0)) == expected

    def test_siim_is_balanced_before_it_is_thinned(self):
        frame, strata = numbered(8578, ["positive"] * 2002 + ["negative"] * 6576)
        sizes = [fraction_mask(frame, strata, share, "mgca_balanced", 0).sum() for share in (0.01, 0.1, 1.0)]
        assert sizes == [40, 400, 4004]
        whole = fraction_mask(frame, strata, 1.0, "mgca_balanced", 0)
        assert whole[:2002].all()
        assert whole[2002:].sum() == 2002

    def test_mgca_takes_the_rows_of_pandas_sample_42_whatever_the_seed(self):
        frame, strata = numbered(1000)
        expected = sorted(frame.sample(frac=0.1, random_state=42).index)
        for seed in (0, 7):
            assert np.flatnonzero(fraction_mask(frame, strata, 0.1, "mgca", seed)).tolist() == expected

    def test_lovt_takes_the_first_rows(self):
        frame, strata = numbered(534 * 10)
        assert np.flatnonzero(fraction_mask(frame, strata, 0.1, "lovt", 0)).tolist() == list(range(534))

    def test_gloria_depends_on_the_seed(self):
        frame, strata = numbered(1000)
        first, second = (fraction_mask(frame, strata, 0.1, "gloria", seed) for seed in (0, 1))
        assert first.sum() == second.sum() == 100
        assert (first != second).any()

    @pytest.mark.parametrize("rule", sorted(set(FRACTION_RULES) - {"mgca_balanced"}))
    def test_all_is_all(self, rule):
        frame, strata = numbered(10)
        assert fraction_mask(frame, strata, 1.0, rule, 0).all()


class TestErrors:
    @pytest.mark.parametrize("fraction", [0, -0.1, 1.5])
    def test_an_impossible_share(self, fraction):
        with pytest.raises(ValueError, match=r"in \(0, 1\]"):
            fraction_mask(*numbered(10), fraction, "nested", 0)

    def test_an_unknown_rule(self):
        with pytest.raises(ValueError, match="Unknown fraction rule 'x'"):
            fraction_mask(*numbered(10), 0.1, "x", 0)

    def test_a_share_of_nothing(self):
        with pytest.raises(ValueError, match=r"A fraction of 0.01 of 10 training rows is no row under the rule 'lovt'"):
            fraction_mask(*numbered(10), 0.01, "lovt", 0)

    def test_balancing_needs_both_kinds(self):
        with pytest.raises(ValueError, match="found 0 and 10"):
            fraction_mask(*numbered(10), 0.5, "mgca_balanced", 0)


patients = st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["", "edema", "nodule"])), min_size=3, max_size=120)


def grouped(drawn: list[tuple[int, str]]) -> tuple[pd.Series, pd.Series]:
    groups = pd.Series([f"patient:{number}" for number, _ in drawn], dtype=object)
    return groups, pd.Series([stratum for _, stratum in drawn], dtype=object)


class TestNested:
    @settings(deadline=None)
    @given(patients, st.integers(0, 5))
    def test_a_smaller_share_lies_inside_a_larger_and_takes_whole_patients(self, drawn, seed):
        groups, strata = grouped(drawn)
        before = np.zeros(len(groups), bool)
        for share in (0.01, 0.1, 0.3, 0.5, 1.0):
            kept = nested_fraction(groups, strata, share, seed).to_numpy()
            assert (kept | ~before).all()
            assert set(groups[kept]).isdisjoint(groups[~kept])
            assert len(set(groups[kept])) == max(1, round(share * groups.nunique()))
            before = kept
        assert before.all()

    def test_every_stratum_keeps_its_share(self):
        frame, strata = numbered(1000, ["rare"] * 100 + ["often"] * 900)
        for seed in range(5):
            kept = fraction_mask(frame, strata, 0.1, "nested", seed)
            assert abs(kept[:100].sum() - 10) <= 1
            assert kept.sum() == 100

    def test_many_small_strata_keep_their_share_too(self):
        frame, strata = numbered(1000, [str(number) for number in range(1000)])
        kept = fraction_mask(frame, strata, 0.1, "nested", 3)
        assert kept.sum() == 100
        assert 20 < kept[:500].sum() < 80

    def test_the_seed_and_nothing_else_chooses(self):
        frame, strata = numbered(200)
        kept = set(frame["image_id"][fraction_mask(frame, strata, 0.1, "nested", 0)])
        mixed = frame.sample(frac=1, random_state=1)
        assert set(mixed["image_id"][fraction_mask(mixed, strata[mixed.index], 0.1, "nested", 0)]) == kept
        assert set(frame["image_id"][fraction_mask(frame, strata, 0.1, "nested", 1)]) != kept


class TestSplitGroups:
    @settings(deadline=None)
    @given(patients, st.integers(0, 5), st.sampled_from([(0.1, 0.1), (0.2, 0.0), (0.0, 0.3), (0.3, 0.3)]))
    def test_no_patient_is_in_two_splits_and_no_wanted_split_is_empty(self, drawn, seed, shares):
        groups = grouped(drawn)[0].tolist()
        validation, test = shares
        split = split_groups(groups, validation_fraction=validation, test_fraction=test, seed=seed)
        by_group = pd.DataFrame({"group": groups, "split": split}).drop_duplicates()
        assert by_group["group"].is_unique
        if len(by_group) >= 3:
            for name, share in (("validation", validation), ("test", test)):
                assert (name in split) == (share > 0)
        assert "train" in split

    def test_the_split_of_a_patient_hangs_on_no_other_row(self):
        groups = [f"patient:{number}" for number in range(1000)]
        shares = {"validation_fraction": 0.1, "test_fraction": 0.1, "seed": 0}
        whole = dict(zip(groups, split_groups(groups, **shares), strict=True))
        few = groups[::7]
        assert split_groups(few, **shares) == [whole[group] for group in few]

    def test_shares_that_leave_no_training_are_refused(self):
        with pytest.raises(ValueError, match=r"with a sum under 1, got 0.5 and 0.5"):
            split_groups(["1", "2", "3"], validation_fraction=0.5, test_fraction=0.5, seed=0)

    def test_a_row_goes_by_patient_then_study_then_image(self):
        rows = pd.DataFrame(
            {"patient_id": ["7", None, None], "study_id": ["1", "7", None], "image_id": ["a", "b", "7"]}, dtype=object
        )
        assert patient_groups(rows).tolist() == ["patient:7", "study:7", "image:7"]
