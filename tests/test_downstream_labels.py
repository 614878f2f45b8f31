"""Label cells that need a decision, the positive class from cells to results, and subgroup columns of any name."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adaptor_hf.data.catalog import list_datasets
from adaptor_hf.data.positive import choose_positive, is_negative, sure_positive
from adaptor_hf.evaluation.results import read_results, run_key
from adaptor_hf.tasks.arguments import DownstreamArguments, table_options
from adaptor_hf.tasks.data import align_classes, labelled_data, load_table, plain_rows, split_table
from adaptor_hf.tasks.prompts import load_prompts
from adaptor_hf.tasks.summary import summarize

ROWS = 40


def table_of(folder, columns):
    """A table of 40 rows, one a patient; a column is a list that is repeated, or a list of 40."""
    path = folder / "labels.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "patient_id", *columns])
        for row in range(ROWS):
            writer.writerow([f"{row}.png", f"p{row}", *(cells[row % len(cells)] for cells in columns.values())])
    return path


def labelled(path, columns=("label",), *, positive_label=None, **options):
    parts, split_hash = split_table(load_table(path, label_columns=columns, **options))
    return labelled_data("set", parts, split_hash, positive_label=positive_label)


def truth(data):
    """Label by row of the table."""
    found = {}
    for part, labels in data.labels.items():
        rows = data.parts[part]["source_row"][:]
        found |= dict(zip(rows, labels[:, 0].tolist() if labels.ndim == 2 else labels.tolist(), strict=True))
    return [found.get(row) for row in range(ROWS)]


@pytest.mark.parametrize(
    ("names", "positive"),
    [
        (("normal", "abnormal"), "abnormal"), (("benign", "malignant"), "malignant"),
        (("pneumonia", "Normal"), "pneumonia"),
        (("0", "1"), "1"), (("Positive", "negative"), "Positive"), (("effusion", "no effusion"), "effusion"),
        (("No_Finding", "edema"), None), (("no finding", "edema"), "edema"), (("True", "False"), "True"),
        (("non-covid", "covid"), "covid"), (("healthy", "ill"), "ill"), (("nein", "Ja"), "Ja"),
        (("left", "right"), None), (("M", "F"), None), (("1", "2"), None), (("normal", "unclear"), None),
        (("normal", "negative"), None), (("grade a", "grade b"), None), (("level1", "level2"), None),
    ],
)  # fmt: skip
def test_words_decide_only_where_they_leave_no_doubt(names, positive):
    assert sure_positive(names) == positive
    assert sure_positive(names[::-1]) == positive
    if positive is not None:
        assert not is_negative(positive)


def test_the_positive_class_is_not_the_alphabetical_second(tmp_path, caplog):
    path = table_of(tmp_path, {"label": ["normal", "effusion"]})
    with caplog.at_level("INFO"):
        data = labelled(path)
    assert (data.class_names, data.positive_class, data.exclusive) == (["effusion"], "effusion", False)
    assert truth(data) == [0.0, 1.0] * (ROWS // 2)
    assert "the positive class is 'effusion', against 'normal'" in caplog.text
    other = labelled(path, positive_label="Normal")
    assert (other.positive_class, truth(other)) == ("normal", [1.0, 0.0] * (ROWS // 2))


def test_two_classes_without_sure_meaning_stop_and_name_both(tmp_path):
    path = table_of(tmp_path, {"label": ["left", "right"]})
    with pytest.raises(ValueError, match=r"'left' and 'right'.*--positive_label 'left' or --positive_label 'right'"):
        labelled(path)
    with pytest.raises(ValueError, match=r"'middle' is no class of set. Its classes: 'left', 'right'"):
        labelled(path, positive_label="middle")
    assert labelled(path, positive_label="left").positive_class == "left"
    assert truth(labelled(path, positive_label="left")) == [1.0, 0.0] * (ROWS // 2)


@pytest.mark.parametrize(
    "words", [("0", "1"), ("no", "Yes"), ("negative", "POSITIVE"), ("absent", "present"), ("0.0", "1")]
)
def test_a_column_that_says_no_and_yes_is_a_label_of_its_own_name(tmp_path, words):
    path = table_of(tmp_path, {"effusion": words})
    data = labelled(path, ["effusion"])
    assert (data.positive_class, truth(data)) == ("effusion", [0.0, 1.0] * (ROWS // 2))
    inverted = labelled(path, ["effusion"], positive_label=words[0])
    assert (inverted.positive_class, truth(inverted)) == ("effusion = 0", [1.0, 0.0] * (ROWS // 2))
    with pytest.raises(ValueError, match="name one of them"):
        labelled(path, ["effusion"], positive_label="edema")


def test_a_choice_for_several_labels_or_classes_is_refused(tmp_path):
    path = table_of(tmp_path, {"a": [0, 1], "b": [1, 1, 0], "kind": ["x", "y", "z"]})
    for columns in (["a", "b"], ["kind"]):
        assert labelled(path, columns).positive_class is None
        with pytest.raises(ValueError, match="--positive_label is for two classes"):
            labelled(path, columns, positive_label="a")


def test_class_folders_ask_as_columns_do(tmp_path):
    for size, name in ((8, "cat"), (9, "dog")):
        (tmp_path / name).mkdir()
        for number in range(10):
            Image.new("L", (size, size), number).save(tmp_path / name / f"{number}.png")
    parts, split_hash = split_table(load_table(tmp_path))
    with pytest.raises(ValueError, match=r"'cat' and 'dog'.*--positive_label"):
        labelled_data("folders", parts, split_hash)
    data = labelled_data("folders", parts, split_hash, positive_label="cat")
    for part, labels in data.labels.items():
        folders = [Path(value["path"]).parent.name for value in plain(data.parts[part])]
        assert labels[:, 0].tolist() == [float(folder == "cat") for folder in folders]


def plain(dataset):
    return dataset.select_columns(["image"]).with_format("arrow")[:]["image"].to_pylist()


def test_public_data_sets_declare_the_second_class(tmp_path):
    import datasets

    rows = {"image_id": list("abcd"), "labels": [0, 1, 1, 0]}
    features = datasets.Features(
        {"image_id": datasets.Value("string"), "labels": datasets.ClassLabel(names=["level1", "level2"])}
    )
    part = {"test": datasets.Dataset.from_dict(rows, features)}
    with pytest.raises(ValueError, match="'level1' and 'level2'"):
        labelled_data("covidx", part, "0")
    data = labelled_data("covidx", part, "0", declared=True)
    assert (data.positive_class, data.labels["test"][:, 0].tolist()) == ("level2", [0, 1, 1, 0])
    # The pairs that are written in the loaders, against the words.
    for names in (["negative", "pneumonia"], ["negative", "pneumothorax"], ["negative", "foreign object"],
                  ["normal", "tuberculosis"], ["negative", "positive"], ["benign", "malignant"]):  # fmt: skip
        assert choose_positive(names, None, "set") == choose_positive(names, None, "set", declared=True) == 1
    assert {dataset.name for dataset in list_datasets() if "classification" in dataset.tasks} >= {"rsna", "siim"}


def test_external_sets_and_prompts_agree_with_the_positive_class(tmp_path):
    path = table_of(tmp_path, {"label": ["normal", "Pneumonia"]})
    data = labelled(path)
    aligned = align_classes(data, ["pneumonia"], False)
    np.testing.assert_array_equal(aligned.labels["test"], data.labels["test"])
    with pytest.raises(ValueError, match="none of the labels normal"):
        align_classes(data, ["normal"], False)
    prompts = load_prompts("rsna")
    assert list(prompts.for_classes(["Pneumonia"], False).positive) == ["Pneumonia"]
    for absence in ("normal", "negative", "no pneumonia", "pneumonia = 0"):
        with pytest.raises(ValueError, match=r"its absence.*--positive_label"):
            prompts.for_classes([absence], False)


def test_words_for_missing_labels_are_said_with_their_counts(tmp_path, caplog):
    path = table_of(tmp_path, {"grade": ["None", "n/a", "a", "b", "c"], "effusion": ["#N/A", "NULL", "1", "0", "nan"]})
    data = labelled(path, ["grade"])
    assert data.class_names == ["a", "b", "c"]
    assert truth(data)[:5] == [None, None, 0, 1, 2]
    assert "'grade': 16 cells hold a word for a missing value and count as unknown: 'None' 8, 'n/a' 8" in caplog.text
    assert truth(labelled(path, ["effusion"]))[:5] == [None, None, 1, 0, None]
    unknown = table_of(tmp_path, {"label": ["unknown", "normal", "ill", "normal"]})
    assert labelled(unknown, positive_label=None, missing_words=["Unknown"]).positive_class == "ill"
    assert labelled(unknown).class_names == ["ill", "normal", "unknown"]
    caplog.clear()
    labelled(table_of(tmp_path, {"label": ["a", "b", "c", ""]}))
    assert "missing value" not in caplog.text


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["ill", "Ill", "ill", "well", "odd"], ["ill", "odd", "well"]),
        (["ill ", "ill", "ill", "well", "odd"], ["ill", "odd", "well"]),
        (["in  situ", "in situ", "in situ", "x", "y"], ["in situ", "x", "y"]),
        (["\uff21", "A", "A", "x", "y"], ["A", "x", "y"]),
        (["2", "2.0", "2", "3", "4"], ["2", "3", "4"]),
    ],
)
def test_spellings_of_a_class_need_a_decision(tmp_path, cells, names):
    path = table_of(tmp_path, {"label": cells})
    with pytest.raises(ValueError, match=r"1 classes in several spellings.*--label_spelling merge.*exact") as caught:
        labelled(path)
    assert {f"{cells[0]!r} 8", f"{cells[1]!r} 8"} & set(re.findall(r"'[^']*' \d+", str(caught.value)))
    assert "' 16" in str(caught.value)
    merged = labelled(path, label_spelling="merge")
    assert merged.class_names == names
    assert truth(merged)[:3] == [0, 0, 0]
    exact = labelled(path, label_spelling="exact")
    assert exact.class_names == sorted({cell.strip() for cell in cells})


def test_unknown_rules_are_refused_by_name(tmp_path):
    path = table_of(tmp_path, {"label": ["a", "b", "c"]})
    with pytest.raises(ValueError, match="--label_spelling is one of exact, merge"):
        labelled(path, label_spelling="both")
    with pytest.raises(ValueError, match="--label_separator is a character"):
        labelled(path, label_separator=" ")


def test_several_names_in_a_cell_need_a_decision(tmp_path, caplog):
    cells = ["edema|effusion", "effusion|edema", "edema", "", "none"]
    path = table_of(tmp_path, {"label": cells})
    with pytest.raises(ValueError, match=r"16 cells .* joined by '\|'.*--label_separator '\|'.*--label_separator none"):
        labelled(path)
    parts, split_hash = split_table(load_table(path, label_columns=["label"], label_separator="|"))
    data = labelled_data("set", parts, split_hash)
    assert (data.class_names, data.exclusive) == (["edema", "effusion"], False)
    rows = {row: values for part in data.labels for row, values in
            zip(data.parts[part]["source_row"][:], data.labels[part].tolist(), strict=True)}  # fmt: skip
    assert [rows.get(row) for row in range(5)] == [[1, 1], [1, 1], [1, 0], None, None]
    with pytest.raises(ValueError, match=r"several spellings: 'edema\|effusion' 8, 'effusion\|edema' 8"):
        labelled(path, label_separator="none")
    merged = labelled(path, label_separator="none", label_spelling="merge", positive_label="edema")
    assert truth(merged)[:3] == [0, 0, 1]
    spelled = table_of(tmp_path, {"label": ["Edema; effusion", "edema", "effusion"]})
    with pytest.raises(ValueError, match=r"1 classes in several spellings: 'Edema' 14, 'edema' 13"):
        labelled(spelled, label_separator=";", label_spelling=None)


def test_commas_and_slashes_in_names_are_no_separators_unless_all_parts_are_names(tmp_path):
    names = ["No Lung Opacity / Not Normal", "Normal", "tumour, other"]
    assert labelled(table_of(tmp_path, {"label": names})).class_names == sorted(names)
    with pytest.raises(ValueError, match="joined by ','"):
        labelled(table_of(tmp_path, {"label": ["a, b", "a", "b"]}))


@pytest.mark.parametrize("name", ["sex", "age", "view", "PatientSex", "Patient Age", "site"])
def test_any_column_can_be_asked_for_as_subgroup(tmp_path, name):
    values = {"sex": ["M", "f"], "age": ["063Y", "70"], "view": ["PA", "AP"], "PatientSex": ["Male", "W"],
              "Patient Age": ["50", "60,5"], "site": ["a", "NA"]}  # fmt: skip
    path = table_of(tmp_path, {"label": [0, 1], **values})
    loaded = load_table(path, label_columns=["label"], extra_columns=[name, name])
    assert loaded.column_names.count(name) == 1
    rows = plain_rows(loaded)
    assert rows[name].tolist()[:2] == [None if value == "NA" else value for value in values[name]]
    twice = load_table(path, label_columns=["sex"], extra_columns=["sex"])
    assert plain_rows(twice)["sex"].tolist()[:2] == ["M", "f"]
    assert twice.features["labels"].names == ["M", "f"]


def test_a_subgroup_column_that_would_stand_for_something_else_is_refused(tmp_path):
    path = table_of(tmp_path, {"label": [0, 1], "labels": [0, 1]})
    with pytest.raises(ValueError, match="cannot be called 'labels'"):
        load_table(path, label_columns=["label"], extra_columns=["labels"])


def test_ages_with_missing_words_stay_numbers(tmp_path):
    loaded = load_table(table_of(tmp_path, {"age": ["50", "NA", "60"]}))
    assert plain_rows(loaded)["age"].tolist()[0] == 50.0
    assert np.isnan(plain_rows(loaded)["age"].tolist()[1])


def test_options_reach_the_table():
    arguments = DownstreamArguments(
        task="classification", model="m", table="t.csv", label_spelling="merge", label_separator="|",
        missing_word=["unknown"],
    )  # fmt: skip
    options = table_options(arguments)
    chosen = [options[name] for name in ("label_spelling", "label_separator", "missing_words")]
    assert chosen == ["merge", "|", ("unknown",)]


def test_results_of_another_positive_class_are_another_run():
    fields = {"system": "Adaptor", "task": "classification", "dataset": "set", "split_hash": "0", "protocol": "linear",
              "seed": 0, "tower_saw_dataset": "no"}  # fmt: skip
    keys = {run_key(fields | {"positive_class": name}) for name in (None, "ill", "healthy")}
    assert len(keys) == 3
    assert run_key(fields) == run_key(fields | {"positive_class": None})


def test_the_script_names_the_positive_class_in_every_line_and_on_the_console(tmp_path):
    from adaptor_hf.tasks.embedded import EmbeddedData
    from adaptor_hf.tasks.few_shot import run_few_shot
    from adaptor_hf.tasks.frozen_heads import run_classification
    from adaptor_hf.tasks.protocols import PROTOCOLS
    from adaptor_hf.training.systems import System

    data = labelled(table_of(tmp_path, {"label": ["effusion", "normal"]}))
    embeds = {part: torch.randn(len(labels), 8) + 2 * torch.from_numpy(labels) for part, labels in data.labels.items()}
    spec = {"preset": "lite0", "hidden_size": 8}
    embedded = EmbeddedData(data, embeds, spec)
    runs = run_classification(embedded, [System("tower")], PROTOCOLS["rigorous"], tmp_path / "out", num_resamples=10)
    assert not runs.failed
    few = run_few_shot(embedded, [System("tower")], tmp_path / "out", shots=[1], episodes=1, num_resamples=10)
    lines = read_results(tmp_path / "out").lines
    assert {line["positive_class"] for line in lines} == {"effusion"}
    assert {line["task"] for line in lines} == {"classification", "few_shot"}
    assert "Positive class: effusion." in summarize(runs)
    assert "Positive class: effusion." in summarize(few)
