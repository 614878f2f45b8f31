"""Ages and sexes as DICOM, spreadsheets and public sets write them, and what is said of those that are none."""

import math

import numpy as np
import pandas as pd
import pytest

from adaptor_hf.audit.table1 import describe_data
from adaptor_hf.data.demographics import (
    age_column,
    age_years,
    is_age_column,
    is_sex_column,
    lowest_age,
    read_ages,
    sex_code,
    sex_column,
    sex_groups,
)
from adaptor_hf.evaluation.groups import group_columns, group_notes, subgroup_tables
from adaptor_hf.evaluation.predictions import classification_predictions
from adaptor_hf.evaluation.results import read_results, write_run


@pytest.mark.parametrize(
    ("value", "years"),
    [
        ("063Y", 63), ("018M", 1.5), ("012W", 84 / 365.25), ("030D", 30 / 365.25), ("063y", 63), (" 63 ", 63),
        ("63.5", 63.5), ("63,5", 63.5), (63, 63), (np.float32(7), 7), ("18 months", 1.5), ("63 yrs", 63), ("0", 0),
        ("130", 130),
        ("90+", None), (">89", None), ("-1", None), ("131", None), ("999", None), ("1500M", 125), ("1600M", None),
        ("abc", None), ("40-59", None), ("6 3", None), ("N/A", None), ("", None), (None, None), (math.nan, None),
        (math.inf, None), (True, None),
    ],
)  # fmt: skip
def test_an_age_in_years(value, years):
    assert age_years(value) == (None if years is None else pytest.approx(years))


@pytest.mark.parametrize(
    ("value", "years"),
    [("90+", 90), (">89", 90), ("> 89", 90), (">=90", 90), ("≥ 90", 90), ("90 and over", 90), ("90 or older", 90),
     ("90Y+", 90), ("over 89", 90), ("90", None), ("<1", None), (None, None), (90.0, None)],
)  # fmt: skip
def test_an_age_without_upper_end(value, years):
    assert lowest_age(value) == years


def test_every_age_that_is_none_is_counted_once():
    ages = read_ages(["063Y", "90+", "-1", "999", "abc", "", None, "NA", "unknown", 40])
    assert ages.years == [63, None, None, None, None, None, None, None, None, 40]
    assert (ages.open, ages.impossible) == (1, 3)
    assert ages.notes("x") == [
        "3 ages are none (negative, over 130 years, or no age at all) and count as missing.",
        "1 ages have no upper end, such as 90+: x.",
    ]
    assert read_ages([1, 2.5, "3"]).notes("x") == []
    notes = []
    column = age_column(pd.Series(["058Y", "414", None], index=[5, 6, 7]), notes)
    assert (column.index.tolist(), column.iloc[0], len(notes)) == ([5, 6, 7], 58, 1)


@pytest.mark.parametrize(
    ("values", "code"),
    [(("M", "m", "Male", "männlich", "Homme"), "M"), (("F", " f", "FEMALE", "W", "weiblich", "Femme"), "F"),
     (("O", "Other", "divers"), "O"), (("U", "Unknown", "", None, "N/A", "1", "2", 1, "table"), None)],
)  # fmt: skip
def test_a_sex_has_one_code_whatever_its_spelling(values, code):
    assert [sex_code(value) for value in values] == [code] * len(values)


def test_groups_by_sex_keep_what_is_no_word_for_one():
    assert sex_groups(["m", "Female", "U", None, "1", 2.0]) == ["M", "F", None, None, "1", "2.0"]
    assert sex_column(pd.Series(["Female", "Unknown", None])).tolist() == ["F", None, None]


def test_columns_are_known_by_name_and_others_are_not():
    assert all(map(is_age_column, ("age", "PatientAge", "age_at_study", "Patient Age")))
    assert not any(map(is_age_column, ("image", "stage", "age_group", "dosage")))
    assert all(map(is_sex_column, ("sex", "PatientSex", "gender")))
    assert not any(map(is_sex_column, ("sextant", "essex")))


ROWS = 60


def predictions_of(**columns):
    generator = np.random.default_rng(0)
    return classification_predictions(
        [f"i{row}" for row in range(ROWS)], [f"p{row}" for row in range(ROWS)], np.arange(ROWS) % 2,
        generator.random(ROWS), class_names=["effusion"], problem_type="multi_label_classification",
        num_resamples=20, columns=columns,
    )  # fmt: skip


def test_groups_of_ages_and_sexes_in_every_spelling(tmp_path):
    ages = ["063Y", "018M", "90+", ">49", "-3", "41,5"] * 10
    sexes = ["M", "female", "U", "m", "F", "Male"] * 10
    predictions = predictions_of(PatientAge=ages, gender=sexes, age=["40-59", "60+"] * 30, site=["none", "a", "b"] * 20)
    groups = group_columns(predictions)
    assert groups["PatientAge"] == ["60-79", "00-17", "80+", None, None, "40-59"] * 10
    assert groups["gender"] == ["M", "F", None, "M", "F", "M"] * 10
    assert groups["age"] == ["40-59", "60+"] * 30
    assert group_notes(predictions) == [
        "PatientAge: 10 ages are none (negative, over 130 years, or no age at all) and count as missing.",
        "PatientAge: 20 ages have no upper end, such as 90+: those from 80 on are in the band 80+, the others unknown.",
    ]
    fields = {"system": "Adaptor", "task": "classification", "dataset": "set", "split_hash": "0", "protocol": "linear",
              "seed": 0, "tower_saw_dataset": "no"}  # fmt: skip
    write_run(tmp_path / "run", predictions, fields)
    (table,) = subgroup_tables(read_results(tmp_path).lines)
    assert [row[3] for row in table.rows] == ["PatientAge", "gender", "age", "site"]
    assert "unknown" in table.rows[3][4]
    assert group_notes(predictions)[0] in table.notes


def test_table_1_reads_the_same_ages_and_sexes():
    rows = pd.DataFrame({
        "patient_id": list("abcdef"), "split": ["train"] * 6, "sex": ["M", "m", "Male", "weiblich", "U", None],
        "age": ["063Y", "018M", "90+", "-1", "40", "n/a"],
    })  # fmt: skip
    found = describe_data(rows)
    levels = found["levels"]["sex (patients)"]
    assert {level: counts["all"] for level, counts in levels.items()} == {"F": 1, "M": 3, "missing": 2}
    assert (found["age"]["all"]["median"], found["age"]["all"]["known"], found["age"]["all"]["missing"]) == (40, 3, 3)
    assert [note for note in found["notes"] if "ages" in note] == [
        "Of all rows, 1 ages are none (negative, over 130 years, or no age at all) and count as missing.",
        "Of all rows, 1 ages have no upper end, such as 90+: they count as missing.",
    ]
    assert not [note for note in describe_data(rows, min_count=2)["notes"] if "ages" in note]
