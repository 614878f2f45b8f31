"""Boxes: one form, converted on copies, none is (0, 4)."""

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptor_hf.data.boxes import (
    box_fault,
    boxes_of,
    group_boxes,
    no_boxes,
    reaches_out,
    usable_boxes,
    xywh_to_xyxy,
    xyxy_to_xywh,
)

WHOLE = st.integers(0, 2000)
XYWH = st.lists(st.tuples(WHOLE, WHOLE, WHOLE, WHOLE), max_size=6)


def test_a_real_rsna_box():
    np.testing.assert_array_equal(xywh_to_xyxy([[264.0, 152.0, 213.0, 379.0]]), [[264, 152, 477, 531]])


@given(XYWH)
@settings(deadline=None)
def test_the_two_forms_are_inverse_and_the_argument_is_left_alone(boxes):
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    before = boxes.copy()
    converted = xywh_to_xyxy(boxes)
    np.testing.assert_array_equal(xyxy_to_xywh(converted), before)
    np.testing.assert_array_equal(boxes, before)
    assert converted.shape == (len(before), 4)


def test_no_boxes_has_four_columns_in_every_function():
    for array in (no_boxes(), xywh_to_xyxy([]), xyxy_to_xywh(no_boxes())):
        assert array.shape == (0, 4)
    assert usable_boxes(no_boxes()).shape == (0,)


@pytest.mark.parametrize(
    ("box", "usable"),
    [
        ([0, 0, 1, 1], True),
        ([90, 90, 130, 140], True),  # reaches out of the image
        ([5, 5, 5, 9], False),  # no width
        ([5, 9, 8, 5], False),  # corners swapped
        ([0, 0, 0, 0], False),  # MGCA's box of an image without any
        ([100, 0, 120, 10], False),  # beside the image
        ([-9, -9, -1, -1], False),
        ([0, 0, np.nan, 4], False),
        ([0, 0, np.inf, 4], False),
    ],
)
def test_usable_boxes(box, usable):
    assert usable_boxes([box], 100, 120).tolist() == [usable]


def test_a_flat_list_is_refused():
    with pytest.raises(ValueError, match=r"\(n, 4\), got \(4,\)"):
        xywh_to_xyxy([1, 2, 3, 4])


@given(st.lists(st.tuples(st.sampled_from("abcde"), WHOLE), max_size=12), st.lists(st.sampled_from("abcdefg")))
@settings(deadline=None)
def test_grouping_keeps_each_images_boxes_in_their_order(rows, wanted):
    keys = pd.Series([key for key, _ in rows], dtype=object)
    boxes = np.array([[x, 0, x + 1, 1] for _, x in rows], dtype=np.float64).reshape(-1, 4)
    labels = np.arange(len(rows))
    found = boxes_of(group_boxes(keys, boxes, labels), pd.Series(wanted, dtype=object))
    for key, array, classes in zip(wanted, found["boxes"], found["box_labels"], strict=True):
        mine = [position for position, (name, _) in enumerate(rows) if name == key]
        assert classes == mine
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, boxes[mine])


@pytest.mark.parametrize(
    ("box", "fault"),
    [
        ((10, 10, 20, 20), None),
        ((-5, 10, 20, 120), None),
        ((50, 40, 20, 60), r"corners are exchanged.*width and height"),
        ((10, 10, 10, 20), "no area"),
        ((100, 5, 120, 20), "outside the image of 100 x 90 pixels"),
        ((5, -9, 10, 0), "outside the image"),
        ((np.nan, 0, 1, 1), "not finite"),
    ],
)
def test_what_is_wrong_with_a_box_is_named(box, fault):
    found = box_fault(np.array(box, float), (100, 90))
    assert (found is None) if fault is None else re.search(fault, found)


def test_boxes_that_leave_the_image_by_more_than_a_pixel():
    boxes = [[0, 0, 101, 91], [-1, 0, 9, 9], [-2, 0, 9, 9], [0, 0, 102, 9], [0, 0, 9, 92]]
    assert reaches_out(boxes, (100, 90)).tolist() == [False, False, True, True, True]
