"""The label rules hold for every reader: tables, folders, data sets with any feature, and the public sets."""

import ast
import csv
import json
import logging
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from PIL import Image

import adaptor_hf.data.public
from adaptor_hf.data.captions import term_labels
from adaptor_hf.data.label_columns import check_class_names
from adaptor_hf.data.target_features import MultiLabel
from adaptor_hf.tasks.data import labelled_data, load_table, split_table

ROWS = 40
PUBLIC = Path(adaptor_hf.data.public.__file__).parent


def rows_of(cells):
    """Forty rows, one a patient; the cells are repeated."""
    return [{"image": f"{row}.png", "patient_id": f"p{row}", "label": cells[row % len(cells)]} for row in range(ROWS)]


def csv_table(folder, cells):
    with open(folder / "t.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["image", "patient_id", "label"])
        writer.writeheader()
        writer.writerows(rows_of(["" if cell is None else cell for cell in cells]))
    return folder / "t.csv"


def json_lines(folder, cells):
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows_of(cells))), encoding="utf-8")
    return folder / "t.jsonl"


def parquet(folder, cells):
    pd.DataFrame(rows_of(cells)).to_parquet(folder / "t.parquet")
    return folder / "t.parquet"


def saved_dataset(folder, cells):
    Dataset.from_list(rows_of(cells)).save_to_disk(folder / "saved")
    return folder / "saved"


def dataset_dict(folder, cells):
    rows = Dataset.from_list(rows_of(cells))
    return DatasetDict({"train": rows.select(range(24)), "validation": rows.select(range(24, 32)),
                        "test": rows.select(range(32, ROWS))})  # fmt: skip


def class_labels(folder, cells):
    names = sorted({cell for cell in cells if cell is not None})
    features = Features({"image": Value("string"), "patient_id": Value("string"), "label": ClassLabel(names=names)})
    codes = [-1 if cell is None else names.index(cell) for cell in cells]
    return Dataset.from_list(rows_of(codes), features=features)


def image_folder(folder, cells):
    rows = rows_of(["" if cell is None else cell for cell in cells])
    (folder / "set").mkdir()
    with open(folder / "set/metadata.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["file_name", "patient_id", "label"])
        writer.writeheader()
        writer.writerows({"file_name": row["image"]} | {k: row[k] for k in ("patient_id", "label")} for row in rows)
    return folder / "set"


READERS = [csv_table, json_lines, parquet, saved_dataset, dataset_dict, class_labels, image_folder]


def labelled(source, column="label", *, positive_label=None, **options):
    parts, split_hash = split_table(load_table(source, label_columns=[column], **options))
    return labelled_data("set", parts, split_hash, positive_label=positive_label)


def by_row(data):
    found = {}
    for part, labels in data.labels.items():
        found |= dict(zip(data.parts[part]["source_row"][:], labels.tolist(), strict=True))
    return [found.get(row) for row in range(ROWS)]


@pytest.mark.parametrize("reader", READERS)
def test_missing_words_and_nothing_are_unknown(tmp_path, reader, caplog):
    data = labelled(reader(tmp_path, ["n/a", None, "well", "ill", "#N/A"]), positive_label="ill")
    assert by_row(data)[:5] == [None, None, [0.0], [1.0], None]
    assert "hold a word for a missing value" in caplog.text


@pytest.mark.parametrize("reader", READERS)
def test_a_word_of_the_users_is_unknown(tmp_path, reader):
    source = reader(tmp_path, ["Unknown", "well", "ill", "well"])
    assert labelled(source, positive_label="ill", missing_words=["unknown"]).class_names == ["ill"]


@pytest.mark.parametrize("reader", READERS)
def test_spellings_are_reported_with_their_counts(tmp_path, reader):
    source = reader(tmp_path, ["ill", "Ill", "well", "ill", "odd"])
    with pytest.raises(ValueError, match=r"several spellings: 'Ill' 8, 'ill' 16"):
        labelled(source)
    assert labelled(source, label_spelling="merge").class_names == ["ill", "odd", "well"]


@pytest.mark.parametrize("reader", READERS)
def test_the_positive_class_is_named_or_asked_for(tmp_path, reader, caplog):
    with caplog.at_level(logging.INFO):
        assert labelled(reader(tmp_path, ["normal", "pneumonia"])).positive_class == "pneumonia"
    assert "the positive class is 'pneumonia'" in caplog.text


@pytest.mark.parametrize("reader", READERS)
def test_two_classes_without_a_sure_one_are_asked_about(tmp_path, reader):
    with pytest.raises(ValueError, match="--positive_label 'left'"):
        labelled(reader(tmp_path, ["left", "right"]))


def test_class_folders_by_the_same_rules(tmp_path):
    for place, name in enumerate(("ill", "Ill", "n-a")):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.new("L", (8, 8), 4 * place + number).save(tmp_path / name / f"{number}.png")
    with pytest.raises(ValueError, match=r"several spellings: 'Ill' 4, 'ill' 4"):
        load_table(tmp_path)


class TestFeatures:
    """Columns that only data sets have."""

    def of(self, cells, feature):
        features = Features({"image": Value("string"), "patient_id": Value("string"), "label": feature})
        return Dataset.from_list(rows_of(cells), features=features)

    def test_booleans(self):
        data = labelled(self.of([True, False, None], Value("bool")))
        assert by_row(data)[:3] == [[1.0], [0.0], None]

    @pytest.mark.parametrize("feature", ["int64", "float32", "float64"])
    def test_numbers_of_0_and_1(self, feature):
        assert by_row(labelled(self.of([1, 0, None], Value(feature))))[:3] == [[1.0], [0.0], None]

    def test_numbers_of_classes_lose_the_point_of_a_float_column(self):
        floats, integers = (labelled(self.of([0, 1, 2, None], Value(kind))) for kind in ("float64", "int64"))
        assert floats.class_names == integers.class_names == ["0", "1", "2"]
        assert by_row(floats)[:4] == [0, 1, 2, None]

    def test_lists_of_class_labels(self):
        feature = List(ClassLabel(names=["edema", "effusion", "nodule"]))
        data = labelled(self.of([[0, 1], [], [2], None], feature))
        assert data.class_names == ["edema", "effusion", "nodule"]
        assert by_row(data)[:4] == [[1, 1, 0], [0, 0, 0], [0, 0, 1], None]

    def test_lists_of_names_and_their_spellings(self):
        data = labelled(self.of([["edema", "effusion"], ["edema"], []], List(Value("string"))))
        assert by_row(data)[:3] == [[1, 1], [1, 0], [0, 0]]
        with pytest.raises(ValueError, match="several spellings: 'Edema' 20, 'edema' 20"):
            labelled(self.of([["edema"], ["Edema"]], List(Value("string"))))

    def test_several_labels_of_a_public_set_that_was_saved(self, tmp_path):
        dataset = self.of([[1, 0], [0, float("nan")]], MultiLabel(names=["edema", "effusion"]))
        dataset.save_to_disk(tmp_path / "saved")
        data = labelled(tmp_path / "saved")
        np.testing.assert_array_equal(by_row(data)[:2], [[1, 0], [0, np.nan]])
        assert data.class_names == ["edema", "effusion"]

    def test_lists_of_bare_numbers_are_refused(self):
        with pytest.raises(ValueError, match="'label' holds lists of float32, and nothing says what each number is"):
            labelled(self.of([[0.0, 1.0]], List(Value("float32"))))


@pytest.mark.parametrize("reader", [csv_table, json_lines, parquet, saved_dataset])
@pytest.mark.parametrize("cells", [[0.25, 0.5, 1.0, 0.0], [0.5, 1.0], [1.0, 0.0, 0.3]])
def test_decimals_are_refused_with_their_row(tmp_path, reader, cells):
    wrong = next(row for row, cell in enumerate(cells) if cell % 1)
    with pytest.raises(ValueError, match=rf"data row {wrong} .*'label' is '{cells[wrong]}' .*a number with decimals"):
        labelled(reader(tmp_path, cells))


@pytest.mark.parametrize("reader", [csv_table, json_lines, parquet])
def test_a_code_for_missing_among_class_numbers_is_asked_about(tmp_path, reader):
    source = reader(tmp_path, [0, 1, 2, -1])
    with pytest.raises(ValueError, match=r"data row 3 .*'-1' \(10 such rows\), beside numbers.*--missing_word=-1"):
        labelled(source)
    assert by_row(labelled(source, missing_words=["-1"]))[:4] == [0, 1, 2, None]


@pytest.mark.parametrize("cells", [["0", "1", "unclear"], ["True", "False", "maybe"], ["1", "yes", "no"]])
def test_words_among_0_and_1_are_asked_about(tmp_path, cells):
    with pytest.raises(ValueError, match=r"data row \d .*in a column that also holds .*--missing_word"):
        labelled(csv_table(tmp_path, cells))


def test_classes_with_numbers_in_their_names_stay_classes(tmp_path):
    assert labelled(csv_table(tmp_path, ["0", "1", "2", "4A", "4B"])).class_names == ["0", "1", "2", "4A", "4B"]
    assert labelled(csv_table(tmp_path, ["1.0", "2.0", "3.0", ""])).class_names == ["1", "2", "3"]
    assert by_row(labelled(csv_table(tmp_path, [" 1", "0 ", "1.0", "0.0", " "])))[:5] == [[1], [0], [1], [0], None]


def test_declared_names_in_several_spellings_stop_a_public_set():
    check_class_names(["Edema", "Effusion"], "set")
    with pytest.raises(ValueError, match=r"set: .*several spellings: 'Edema' 1, 'edema' 1"):
        check_class_names(["Edema", "edema"], "set")


def test_terms_of_a_report_in_several_spellings_are_one_label(caplog):
    terms = [["Edema"], ["edema", "Opacity"], ["Edema", "opacity "], ["Opacity"], []]
    with caplog.at_level(logging.INFO):
        labels, names = term_labels(terms, [True] * 5, 1)
    assert names == ["Edema", "Opacity"]
    assert labels.to_numpy().tolist() == [[1, 0], [1, 1], [1, 1], [0, 1], [0, 0]]
    assert "2 terms have several spellings" in caplog.text


@pytest.mark.parametrize("path", sorted(PUBLIC.glob("*.py")), ids=lambda path: path.stem)
def test_every_public_set_reads_tables_ages_and_sexes_by_the_common_functions(path):
    """Found in the code: a loader that parses ages, sexes or whole tables itself has rules of its own."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names}
    keys = {key.value for node in ast.walk(tree) if isinstance(node, ast.Dict) for key in node.keys
            if isinstance(key, ast.Constant)}  # fmt: skip
    if "age" in keys:
        assert imported & {"age_column", "age_years"}
    if "sex" in keys:
        assert imported & {"sex_column", "sex_code"}
    called = {
        node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    readers = called & {"read_csv", "read_table", "read_excel", "DictReader"}
    # RSNA's table of matches is of ids alone.
    assert not readers or path.stem == "rsna"


def test_masks_in_a_data_set_are_read_by_the_rule_of_mask_files():
    from adaptor_hf.data.features import RadiographImage

    inside = np.zeros((20, 30), np.uint8)
    inside[5:12, 8:20] = 255
    soft = inside.copy()
    soft[4, 8:20] = 90
    picture = Image.new("L", (30, 20), 60)
    columns = {"image": [picture] * 3, "lungs": [Image.fromarray(inside), Image.fromarray(soft), None]}
    features = Features({"image": RadiographImage(), "lungs": datasets.Image()})
    loaded = load_table(Dataset.from_dict(columns, features=features), mask_column="lungs", image_mode="L")
    for row in range(2):
        np.testing.assert_array_equal(np.asarray(loaded[row]["mask"]) > 0, inside > 0)
    assert loaded[2]["mask"] is None
