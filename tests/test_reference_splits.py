"""Splits of the reference codes depend on the number of rows and their order alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptor_hf.data.reference_splits import check_size, three_way_split, two_way_split


def by_hand(count, held_out):
    """sklearn's rule, with numpy's generator."""

    def cut(rows, size):
        order = np.random.RandomState(0).permutation(len(rows))
        size = int(np.ceil(size * len(rows))) if isinstance(size, float) else size
        return rows[order[size:]], rows[order[:size]]

    train, rest = cut(np.arange(count), held_out)
    test, validation = cut(rest, 0.5)
    split = np.full(count, "", dtype=object)
    split[train], split[validation], split[test] = "train", "validation", "test"
    return split


@given(st.integers(20, 400), st.sampled_from([0.3, 0.1, 0.5, 6]))
@settings(deadline=None)
def test_three_ways_agree_with_the_rule_by_hand(count, held_out):
    split = three_way_split(count, held_out)
    np.testing.assert_array_equal(split, by_hand(count, held_out))
    assert set(split) == {"train", "validation", "test"}


@pytest.mark.parametrize(
    ("count", "held_out", "sizes"),
    [(26684, 0.3, (18678, 4003, 4003)), (26684, 2 * 5337, (16010, 5337, 5337)), (12954, 0.3, (9067, 1944, 1943))],
)
def test_published_sizes(count, held_out, sizes):
    split = three_way_split(count, held_out)
    assert tuple((split == name).sum() for name in ("train", "validation", "test")) == sizes


def test_two_ways():
    split = two_way_split(30130, 0.2)
    assert ((split == "train").sum(), (split == "validation").sum()) == (24104, 6026)


def test_another_number_of_rows_is_said():
    assert check_size(5, 5, "MGCA") == []
    assert check_size(5, 6, "MGCA") == ["MGCA's split is made of 6 rows, here are 5: this is not the same split."]
