"""Label policies."""

import numpy as np
import pandas as pd
import pytest

from adaptor_hf.data.labels import CHEXPERT_LABELS, LABEL_POLICIES, apply_policy, label_strata

NAN = np.nan


def frame(**columns: list[float]) -> pd.DataFrame:
    return pd.DataFrame(columns, dtype=float)


LABELS = {
    "Atelectasis": [1, 0, -1, NAN],
    "Cardiomegaly": [1, 0, -1, NAN],
    "Fracture": [1, 0, -1, NAN],
}


@pytest.mark.parametrize(
    ("policy", "atelectasis", "cardiomegaly", "fracture"),
    [
        ("raw", [1, 0, -1, NAN], [1, 0, -1, NAN], [1, 0, -1, NAN]),
        ("mgca", [1, 0, 1, 0], [1, 0, 0, 0], [1, 0, NAN, 0]),
        ("ones", [1, 0, 1, 0], [1, 0, 1, 0], [1, 0, 1, 0]),
        ("zeros", [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]),
        ("ignore", [1, 0, NAN, 0], [1, 0, NAN, 0], [1, 0, NAN, 0]),
        ("trx", [1, 0, NAN, NAN], [1, 0, NAN, NAN], [1, 0, NAN, NAN]),
    ],
)
def test_what_each_policy_makes_of_positive_negative_uncertain_and_blank(policy, atelectasis, cardiomegaly, fracture):
    done = apply_policy(frame(**LABELS), policy)
    expected = {"Atelectasis": atelectasis, "Cardiomegaly": cardiomegaly, "Fracture": fracture}
    pd.testing.assert_frame_equal(done, frame(**expected))


def test_each_policy_is_tested_and_described():
    assert set(LABEL_POLICIES) == {"raw", "mgca", "ones", "zeros", "ignore", "trx"}


def test_a_healthy_study_has_no_finding_under_trx():
    labels = frame(**{"No Finding": [1], "Edema": [NAN], "Support Devices": [NAN]})
    done = apply_policy(labels, "trx")
    assert done["Edema"][0] == 0
    assert np.isnan(done["Support Devices"][0])


@pytest.mark.parametrize("policy", sorted(LABEL_POLICIES))
def test_the_given_frame_stays_as_it_is(policy):
    labels = frame(**LABELS)
    apply_policy(labels, policy)
    pd.testing.assert_frame_equal(labels, frame(**LABELS))


def test_other_values_and_names_are_refused():
    with pytest.raises(ValueError, match="'Edema' has the value 2, expected 1, 0, -1 or nothing"):
        apply_policy(frame(Edema=[0, 2]), "ones")
    with pytest.raises(ValueError, match="Unknown label policy 'x'"):
        apply_policy(frame(Edema=[0]), "x")


def test_a_row_goes_by_its_rarest_positive_label():
    labels = frame(Edema=[1, 1, 1, 0, NAN], Fracture=[0, 0, 1, 0, -1])
    assert label_strata(labels).tolist() == ["Edema", "Edema", "Fracture", "", ""]


def test_the_labels_are_those_of_the_table():
    assert len(set(CHEXPERT_LABELS)) == 14
