"""Finished runs by group and by study, from their files to what the commands print."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from adaptor_hf.evaluation.__main__ import main
from adaptor_hf.evaluation.groups import (
    group_columns,
    seed_subgroups,
    study_lines,
    study_predictions,
    subgroup_tables,
)
from adaptor_hf.evaluation.predictions import classification_predictions
from adaptor_hf.evaluation.report import write_report
from adaptor_hf.evaluation.results import read_results, write_run

ROWS = 240
FIELDS = {
    "system": "Adaptor", "module": "adaptor", "task": "classification", "dataset": "rsna", "split_hash": "0123456789ab",
    "protocol": "linear", "fraction": 1.0, "tower_saw_dataset": "no",
}  # fmt: skip


def predictions_of(seed: int = 0, labels: int = 2, **columns):
    """Three images a study, two studies a patient; women are told apart well, men badly."""
    generator = np.random.default_rng(seed)
    studies = np.arange(ROWS) // 3
    patients = studies // 2
    sex = np.where(patients % 2, "F", "M").astype(object)
    truth = (np.random.default_rng(5).random((ROWS // 3, labels)) < 0.4)[studies].astype(float)
    logits = (truth - 0.5) * np.where(sex == "F", 4.0, 0.5)[:, None] + generator.normal(size=truth.shape)
    return classification_predictions(
        [f"i{row}" for row in range(ROWS)], [f"p{patient}" for patient in patients], truth, 1 / (1 + np.exp(-logits)),
        problem_type="multi_label_classification", class_names=["effusion", "edema"][:labels], num_resamples=60,
        columns={"sex": sex, "age": 30 + patients, "study_id": [f"s{study}" for study in studies],
                 "noise": generator.normal(size=ROWS)} | columns,
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups") / "runs"
    for seed in range(2):
        write_run(folder / f"all-{seed}", predictions_of(seed), FIELDS | {"seed": seed})
        write_run(folder / f"part-{seed}", predictions_of(seed + 9), FIELDS | {"seed": seed, "fraction": 0.1})
    return folder


def test_ages_become_bands_and_ids_and_measurements_make_no_groups():
    groups = group_columns(predictions_of(site=["a"] * ROWS))
    assert groups.keys() == {"sex", "age"}
    assert set(groups["age"]) == {"18-39", "40-59", "60-79"}


def test_a_group_has_the_mean_auroc_over_seeds():
    several = [predictions_of(0), predictions_of(1)]
    found = seed_subgroups(several, "sex", 1)
    women = several[0].columns["sex"] == "F"
    values = [roc_auc_score(one.columns["target"][women, 1], one.columns["score"][women, 1]) for one in several]
    assert found.groups[0].name == "F"
    assert found.groups[0].value == pytest.approx(np.mean(values))
    assert found.worst == "M"
    assert 0 < found.gap_lo < found.gap < found.gap_hi


def test_classes_that_exclude_each_other_are_each_against_the_others():
    one = predictions_of()
    classes = np.arange(ROWS) // 3 % 3
    scores = np.random.default_rng(0).dirichlet([1, 1, 1], ROWS)
    exclusive = classification_predictions(
        one.columns["image_id"], one.columns["patient_id"], classes, scores,
        problem_type="single_label_classification", columns={"sex": one.columns["sex"]}, num_resamples=20,
    )  # fmt: skip
    found = seed_subgroups([exclusive], "sex", 2)
    men = exclusive.columns["sex"] == "M"
    assert found.groups[1].value == pytest.approx(roc_auc_score(classes[men] == 2, scores[men, 2]))


def test_other_images_and_columns_without_groups_are_refused():
    with pytest.raises(ValueError, match="'noise' makes no groups here"):
        seed_subgroups([predictions_of()], "noise")
    other = predictions_of()
    other.columns["image_id"] = other.columns["image_id"][::-1]
    with pytest.raises(ValueError, match="not of the same test images"):
        seed_subgroups([predictions_of(), other], "sex")


def test_a_table_has_a_row_a_label_and_column_at_the_largest_fraction(runs):
    (table,) = subgroup_tables(read_results(runs).lines)
    assert [row[1:4] for row in table.rows] == [
        ["2", "effusion", "sex"], ["2", "edema", "sex"], ["2", "effusion", "age"], ["2", "edema", "age"],
    ]  # fmt: skip
    expected = seed_subgroups([predictions_of(0), predictions_of(1)], "sex")
    assert f"{expected.gap:.3f} [{expected.gap_lo:.3f}, {expected.gap_hi:.3f}]" == table.rows[0][5]
    with pytest.raises(ValueError, match="No run has groups by site"):
        subgroup_tables(read_results(runs).lines, ["site"])


def test_a_study_is_scored_once_by_the_mean_of_its_images(runs):
    images = predictions_of()
    studies = study_predictions(images)
    assert len(studies) == ROWS // 3
    rows = images.columns["study_id"] == "s7"
    place = studies.columns["image_id"].tolist().index("s7")
    np.testing.assert_allclose(studies.columns["score"][place], images.columns["score"][rows].mean(0))
    assert studies.columns["patient_id"][place] == "p3"
    lines = [line for line in study_lines(read_results(runs).lines) if line["metric"] == "auroc/effusion"]
    assert {line["n_test"] for line in lines} == {ROWS // 3}
    assert {line["n_patients"] for line in lines} == {ROWS // 6}
    value = roc_auc_score(studies.columns["target"][:, 0], studies.columns["score"][:, 0])
    assert lines[0]["value"] == pytest.approx(value)
    assert lines[0]["ci_lo"] < value < lines[0]["ci_hi"]


def test_a_study_of_two_patients_and_rows_without_studies_are_refused(tmp_path):
    wrong = predictions_of()
    wrong.columns["patient_id"][4] = "somebody else"
    with pytest.raises(ValueError, match="1 images have a study of another patient, the first in row 4"):
        study_predictions(wrong)
    without = predictions_of()
    del without.columns["study_id"]
    write_run(tmp_path / "run", without, FIELDS | {"seed": 0})
    with pytest.raises(ValueError, match="nothing can be scored by study"):
        study_lines(read_results(tmp_path).lines)


def test_commands_print_tables_and_the_report_holds_the_gaps(runs, tmp_path, capsys):
    assert main(["subgroups", str(runs), "--column", "sex"]) == 0
    shown = capsys.readouterr().out
    assert "## rsna: classification by group" in shown
    assert "| age |" not in shown
    assert main(["studies", str(runs), "--how", "max"]) == 0
    shown = capsys.readouterr().out
    assert "by study (max of its images' scores)" in shown
    assert f"| {ROWS // 3} ({ROWS // 6}) |" in shown
    assert main(["subgroups", str(runs), "--column", "site"]) == 1
    assert "error: No run has groups by site" in capsys.readouterr().err
    write_report(runs, tmp_path / "out", figures=False)
    assert "classification by group" in (tmp_path / "out/report.md").read_text()
    assert (tmp_path / "out/tables/subgroups_rsna_classification.tex").is_file()


def test_phantoms_say_what_they_are(tmp_path, capsys):
    write_run(tmp_path / "run", predictions_of(), FIELDS | {"seed": 0, "dataset": "phantom"})
    assert main(["studies", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("**Phantom data: drawn by a program")
