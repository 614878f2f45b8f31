"""Labels and masks of tables: what each cell means, what is refused, and that no patient is in two parts."""

import csv

import numpy as np
import pytest

from adaptor_hf.tasks.data import align_classes, labelled_data, load_table, split_table, training_subset


@pytest.fixture(scope="module")
def table(labelled_table):
    return labelled_table(60)


def labelled(table, columns=("effusion", "edema"), name="set", **options):
    parts, split_hash = split_table(load_table(table, label_columns=columns))
    return labelled_data(name, parts, split_hash, **options)


def rewritten(table, tmp_path, change):
    """A copy of the table with `change(row number, row)` applied; images stay where they are."""
    with open(table, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["image"] = str(table.parent / row["image"])
        change(number, row)
    with open(tmp_path / "changed.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path / "changed.csv"


def test_columns_of_zero_and_one_are_labels_of_their_own(table):
    data = labelled(table)
    assert (data.class_names, data.exclusive, data.num_logits) == (["effusion", "edema"], False, 2)
    for part, labels in data.labels.items():
        with open(table, encoding="utf-8") as file:
            expected = [(float(r["effusion"]), float(r["edema"])) for r in csv.DictReader(file) if r["split"] == part]
        np.testing.assert_array_equal(labels, np.array(expected, np.float32))
    assert set(data.rows("test")["sex"]) <= {"F", "M"}
    assert data.rows("test")["age"].tolist()[0] == 24


def test_a_column_of_names_is_classes_and_two_of_them_one_label(table, tmp_path):
    data = labelled(table, ["kind"])
    assert (data.class_names, data.exclusive) == (["both", "normal", "one"], True)
    assert data.labels["train"].dtype == np.int64

    def two(number, row):
        row["kind"] = "ill" if row["kind"] != "normal" else "healthy"

    binary = labelled(rewritten(table, tmp_path, two), ["kind"])
    assert (binary.class_names, binary.exclusive) == (["ill"], False)
    np.testing.assert_array_equal(binary.labels["test"][:, 0], labelled(table).labels["test"].max(1))


def test_empty_cells_are_unknown_and_rows_without_any_label_are_left_out(table, tmp_path, caplog):
    def empty(number, row):
        row["effusion"] = "" if number < 4 else row["effusion"]
        row["edema"] = "" if number < 2 else row["edema"]

    with caplog.at_level("INFO"):
        data = labelled(rewritten(table, tmp_path, empty))
    assert len(data.labels["train"]) == len(labelled(table).labels["train"]) - 2
    assert np.isnan(data.labels["train"][:2, 0]).all()
    assert "2 of 36 rows have no label" in caplog.text


def test_uncertain_labels_need_a_policy(table, tmp_path):
    changed = rewritten(table, tmp_path, lambda number, row: row.update(edema="-1" if number < 3 else row["edema"]))
    with pytest.raises(ValueError, match=r"edema 3.*--label_policy"):
        labelled(changed)
    assert (labelled(changed, label_policy="ones").labels["train"][:3, 1] == 1).all()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["efusion"], "no column 'efusion'"),
        (["age"], "free text or ids|expected 1, 0, -1"),
        (["effusion", "kind"], r"data row 0 .*'kind' is"),
    ],
)
def test_a_wrong_label_column_gets_a_clear_answer(table, columns, message):
    with pytest.raises(ValueError, match=message):
        labelled(table, columns)


def test_no_patient_is_in_two_parts_and_the_split_has_a_name(table, tmp_path):
    changed = rewritten(table, tmp_path, lambda number, row: row.pop("split"))
    one, two = labelled(changed), labelled(changed)
    patients = [set(one.rows(part)["patient_id"]) for part in ("train", "validation", "test")]
    assert all(patients)
    assert sum(map(len, patients)) == len(set().union(*patients))
    assert one.split_hash == two.split_hash != labelled(table).split_hash
    torn = rewritten(table, tmp_path, lambda number, row: row.update(split="test" if number % 2 else "train"))
    with pytest.raises(ValueError, match="several splits"):
        labelled(torn)


def test_a_table_without_validation_takes_it_from_training_patients(table, tmp_path):
    without = rewritten(table, tmp_path, lambda n, row: row.update(split=row["split"].replace("validation", "train")))
    data = labelled(without)
    assert set(data.parts) == {"train", "validation", "test"}
    np.testing.assert_array_equal(data.labels["test"], labelled(table).labels["test"])


def test_fractions_are_nested_whole_patients_and_depend_on_the_seed(table):
    data = labelled(table)
    small, large = (set(training_subset(data, share, "nested", 0)) for share in (0.2, 0.5))
    assert small < large
    assert small != set(training_subset(data, 0.2, "nested", 1))
    fixed = [training_subset(data, 0.5, "mgca", seed).tolist() for seed in (0, 1)]
    assert fixed[0] == fixed[1]
    assert len(fixed[0]) == round(0.5 * len(data.labels["train"]))


def test_external_labels_come_in_the_order_of_the_model(table):
    external = labelled(table, ["edema"], name="other")
    aligned = align_classes(external, ["effusion", "edema"], False)
    assert np.isnan(aligned.labels["test"][:, 0]).all()
    np.testing.assert_array_equal(aligned.labels["test"][:, 1], external.labels["test"][:, 0])
    with pytest.raises(ValueError, match="none of the labels"):
        align_classes(external, ["nodule"], False)
    with pytest.raises(ValueError, match="must be the same"):
        align_classes(external, ["a", "b", "c"], True)


def test_masks_are_read_at_the_size_of_the_image(table):
    dataset = load_table(table, mask_column="mask")
    row = dataset[0]
    assert row["mask"].size == row["image"].size
    with open(table, encoding="utf-8") as file:
        effusion = [int(r["effusion"]) for r in csv.DictReader(file)]
    assert [bool(np.asarray(dataset[n]["mask"]).any()) for n in range(8)] == [bool(value) for value in effusion[:8]]


def test_a_folder_of_class_folders_is_a_table(table, tmp_path):
    from PIL import Image

    for name in ("healthy", "ill"):
        (tmp_path / name).mkdir()
        for number in range(10):
            shade = 40 if name == "ill" else 200
            Image.new("L", (20, 20), shade + number).save(tmp_path / name / f"{number}.png")
    parts, split_hash = split_table(load_table(tmp_path))
    data = labelled_data("folders", parts, split_hash)
    assert data.class_names == ["ill"]
    assert sum(len(values) for values in data.labels.values()) == 20
    for part in data.parts:
        bright = [np.asarray(row["image"]).mean() > 120 for row in data.parts[part]]
        np.testing.assert_array_equal(data.labels[part][:, 0] == 0, bright)
