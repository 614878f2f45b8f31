"""The study on the real sample: what protocol.yaml says is what its programs do, and no test patient is trained on."""

import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

STUDY = Path(__file__).parents[1] / "benchmarks" / "study"


@pytest.fixture(scope="module", autouse=True)
def programs():
    """The programs import each other as neighbours."""
    sys.path.insert(0, str(STUDY))
    yield
    sys.path.remove(str(STUDY))


@pytest.fixture(scope="module")
def protocol() -> dict:
    return yaml.safe_load((STUDY / "protocol.yaml").read_text(encoding="utf-8"))


def test_thirteen_comparisons_are_planned(protocol):
    from confirm import plan

    against = protocol["comparisons"]["against"]
    tests = [(readout, system) for readout, _, systems in plan(protocol) for system in systems if system in against]
    assert len(tests) == len(set(tests)) == 13
    assert all("adaptor" in systems for _, _, systems in plan(protocol))


def test_every_system_is_trained_or_needs_no_training(protocol):
    from confirm import NAMES, plan

    known = {"tower", "pixels", *protocol["pretraining"]["variants"]}
    for _, _, systems in plan(protocol):
        assert set(systems) <= known & set(NAMES)


def test_seeds_of_readouts_have_a_model(protocol):
    from confirm import expected_seeds, plan, seeds_of

    for readout, _, systems in plan(protocol):
        for system in systems:
            assert set(expected_seeds(protocol, readout, system)) <= set(seeds_of(protocol, system))


def test_report_refuses_a_study_with_missing_runs(protocol, tmp_path):
    from confirm import report

    with pytest.raises(ValueError, match="tuberculosis, adaptor: 0 finished runs, expected 3"):
        report(protocol, tmp_path)


def test_folds_of_the_exploration_share_no_patient():
    from explore import HELD_OUT, patient_folds, phantom_rows

    patients = np.random.default_rng(0).permutation(np.repeat(np.arange(300), 3))
    for inside, outside in [*patient_folds(patients, 3), phantom_rows(patients, 150)]:
        assert min(len(inside), len(outside)) > 0
        assert not set(patients[inside]) & set(patients[outside])
    inside, outside = phantom_rows(np.repeat(np.arange(600), 2), 300)
    assert (len(inside), len(outside)) == (300, HELD_OUT)


def test_parts_of_every_readout_share_no_patient(realbench, protocol, tmp_path):
    from sample import readout_parts, readout_rows

    readouts = protocol["classification"]["readouts"] | {"lungs": {"dataset": protocol["segmentation"]["dataset"]}}
    for name, readout in readouts.items():
        rows = readout_rows(readout)
        parts, _ = readout_parts(name, readout, protocol, tmp_path)
        patients = {part: set(found["patient_id"][:]) for part, found in parts.items()}
        assert patients["test"] == set(rows.loc[rows["split"] == "val", "patient_id"]), name
        assert sum(map(len, patients.values())) == len(set.union(*patients.values())), name
        if "label" in rows:
            assert rows.groupby("split")["label"].nunique().eq(2).all(), name


def test_test_pairs_are_those_of_the_sample_alone(realbench, protocol):
    import pandas as pd
    from sample import pairs_table

    table = pairs_table(protocol)
    patients = {part: set() for part in ("train", "validation", "test")}
    for part, patient in zip(table["split"][:], table["patient_id"][:], strict=True):
        patients[part].add(patient)
    rows = pd.read_csv(realbench / "metadata.csv", dtype=str)
    rows = rows[rows["dataset"] == protocol["pretraining"]["pairs"]]
    assert patients["test"] == set(rows.loc[rows["split"] == "val", "patient_id"])
    assert sum(map(len, patients.values())) == len(set.union(*patients.values()))
