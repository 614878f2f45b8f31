"""COVIDx: every generation of label files, whose lines have three to five words."""

import math

import numpy as np
import pytest
from fixtures.phantom_trees import N, copy_tree, plans, records
from PIL import Image

from adaptor_hf.data.catalog import Request, get_dataset
from adaptor_hf.data.public.covidx import parse_line
from adaptor_hf.data.public_datasets import describe, load_public_dataset
from adaptor_hf.phantom.layout_covidx import class_of
from adaptor_hf.phantom.layout_ids import covidx_file

# Real lines of the label files, training and test, in the places of the tree's own.
TRAIN = {
    "5": ["3 SARS-10.1148rg.242035193-g04mr34g0-Fig8a-day0.jpeg pneumonia cohen"],
    "7A": ["COVID 1 COVID(1).png COVID-19 sirm"],
    "9A": ["A223587 A223587-12-31-1900-NA-CHEST_AP_VIEWONLY-26790-1.000000-AP-81991-1-1.jpg COVID-19 stonybrook"],
    "9B": ["5 ARDSSevere.png negative cohen", "6 pos.png positive ricord"],
    "Sev": ["419639-001863 MIDRC-RICORD-1C-419639-001863-27599-0.png level2 ricord"],
}
TEST = {
    "5": ["47c78742-4998-4878-aec4-37b11b1354ac 47c78742-4998-4878-aec4-37b11b1354ac.png normal"],
    "7A": ["COVID 2 COVID(2).png COVID-19 sirm"],
    "9A": ["419639-003251 MIDRC-RICORD-1C-419639-003251-46647-0.png COVID-19 ricord", "t2 t2.png pneumonia rsna"],
    "9B": ["419639-003251 MIDRC-RICORD-1C-419639-003251-46647-0.png positive ricord", "t1 t1.png negative rsna"],
    "Sev": ["SITE2-000061 MIDRC-RICORD-1C-SITE2-000061-54700-0.png level2 ricord"],
}
NAMES = ["normal", "pneumonia", "COVID-19"]
LABELS = {covidx_file(planned): NAMES.index(class_of(planned)) for planned in plans()}
"""Class numbers by file."""
HELD_OUT = [covidx_file(planned) for planned in plans() if planned.split == "test"]


@pytest.fixture
def root(tmp_path):
    """A tree to be changed."""
    return copy_tree("covidx", tmp_path / "covidx")


def load(root, **options):
    return load_public_dataset("covidx", root, cache_dir=root.parent / "cache", **options)


def read(root, scheme="official", **options):
    dataset = get_dataset("covidx")
    return dataset.read(Request(root, "classification", scheme, {**dataset.options, **options}))


def label_file(root, part="train", version="9A"):
    return root / f"{part}_COVIDx{version}.txt"


def write_labels(root, version, train=None, test=None, keep=False):
    """Label files of a version, of its real lines or those given, in the place of the tree's own."""
    for part, lines in (("train", train or TRAIN[version]), ("test", test or TEST[version])):
        if not keep:
            label_file(root, part).unlink()
        label_file(root, part, version).write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (TRAIN["5"][0], ("3", "SARS-10.1148rg.242035193-g04mr34g0-Fig8a-day0.jpeg", "pneumonia", "cohen")),
        ("p p.png normal", ("p", "p.png", "normal", None)),
        (TRAIN["7A"][0], ("COVID 1", "COVID(1).png", "COVID-19", "sirm")),
        ("normal 1 normal.png normal", ("normal 1", "normal.png", "normal", None)),
        ("x x.png positive rnsa\n", ("x", "x.png", "positive", "rsna")),
        (TRAIN["Sev"][0], ("419639-001863", "MIDRC-RICORD-1C-419639-001863-27599-0.png", "level2", "ricord")),
    ],
)
def test_lines(line, expected):
    assert parse_line(line) == expected


@pytest.mark.parametrize("line", ["a b.png", "normal", "b.png normal", ""])
def test_what_is_no_line(line):
    with pytest.raises(ValueError, match="expected 'patient file class"):
        parse_line(line)


@pytest.mark.parametrize(
    ("version", "names"),
    [("5", NAMES), ("7A", NAMES), ("9A", NAMES), ("9B", ["negative", "positive"]), ("Sev", ["level1", "level2"])],
)
def test_versions_and_their_classes(root, version, names):
    found = read(write_labels(root, version))
    assert found.class_names == names
    assert len(found.rows) == len(TRAIN[version]) + len(TEST[version])
    assert found.rows["split"].tolist() == ["train"] * len(TRAIN[version]) + ["test"] * len(TEST[version])


def test_loaded_with_images_of_all_kinds(root):
    assert {Image.open(path).mode for path in (root / "train").iterdir()} == {"L", "RGB", "RGBA"}
    splits = load(root)
    rows = {row["image_id"]: row for part in splits.values() for row in part}
    assert {name: row["labels"] for name, row in rows.items()} == LABELS
    assert {row["image"].mode for row in rows.values()} == {"L"}
    assert splits["test"]["image_id"][:] == HELD_OUT
    for planned, record in zip(plans(), records(), strict=True):
        picture = np.asarray(rows[covidx_file(planned)]["image"], dtype=float)
        assert np.abs(picture - np.asarray(record["image"])).mean() < 4


def test_validation_is_by_patient_unless_mgca_is_asked_for(root):
    splits = load(root)
    assert not set(splits["train"]["patient_id"]) & set(splits["validation"]["patient_id"])
    mgca = load(root, split_scheme="mgca")
    training = N - len(HELD_OUT)
    part = math.ceil(0.2 * training)
    assert {name: len(rows) for name, rows in mgca.items()} == {
        "train": training - part,
        "validation": part,
        "test": len(HELD_OUT),
    }
    assert "3,036 of its 6,026" in describe(mgca)["leak"]


def test_mgca_splits_as_many_rows_as_in_9a(root):
    """The rule depends on the number of rows and their order alone."""
    lines = [f"p{number} f{number}.png normal rsna" for number in range(30130)]
    found = read(write_labels(root, "9A", lines), "mgca")
    assert found.rows["split"].value_counts().to_dict() == {"train": 24104, "validation": 6026, "test": len(TEST["9A"])}
    assert not [note for note in found.notes if "not the same split" in note]


def test_files_of_the_kaggle_release(root):
    for part in ("train", "test"):
        lines = label_file(root, part).read_text().replace(" COVID-19 ", " positive ")
        (root / f"{part}.txt").write_text(lines.replace(" normal ", " negative ").replace(" pneumonia ", " negative "))
        label_file(root, part).unlink()
    (root / "test").rename(root / "competition_test")
    splits = load(root)
    assert splits["test"].features["labels"].names == ["negative", "positive"]
    assert splits["test"]["labels"][:] == [int(LABELS[name] == 2) for name in HELD_OUT]
    assert splits["test"][0]["image"].size == records()[0]["image"].size


def test_several_versions_need_a_choice(root):
    write_labels(root, "9B", keep=True)
    with pytest.raises(ValueError, match=r"label files of several versions. Pass version=, one of '9A', '9B'"):
        read(root)
    assert read(root, version="9B").class_names == ["negative", "positive"]


def test_the_number_of_the_kaggle_release_is_explained(root):
    with pytest.raises(ValueError, match="Kaggle's version 5 is 9A and 9B"):
        read(root, version="9")


def test_files_of_two_kinds_are_refused(root):
    """MGCA would call every line of a B file COVID-19."""
    label_file(root, "test").write_text("\n".join(TEST["9B"]) + "\n")
    with pytest.raises(ValueError, match="different kinds of label files"):
        read(root)


def test_a_line_without_class_is_counted_with_its_place(root):
    (root / "labels").mkdir()
    for part in ("train", "test"):
        label_file(root, part).rename(label_file(root / "labels", part))
    with open(label_file(root / "labels"), "a") as lines:
        lines.write("x x.png healthy rsna\n")
    found = read(root)
    assert len(found.faults) == 1
    place = N - len(HELD_OUT) + 1
    assert found.faults[0].startswith(f"labels/train_COVIDx9A.txt:{place}: expected 'patient file class")
    assert len(found.rows) == N


def test_repeated_lines_of_version_1_are_counted(root):
    lines = label_file(root).read_text().splitlines(keepends=True)
    # Version 1 has no sources.
    label_file(root).write_text("".join(" ".join(line.split()[:3]) + "\n" for line in [*lines, *lines[:2]]))
    assert describe(load(root))["dropped"] == {"repeats an earlier row": 2}


def test_an_image_under_two_patient_ids_is_one_image_of_one_patient(root):
    lines = label_file(root).read_text().splitlines(keepends=True)
    patient, file, word, *_ = lines[0].split()
    with open(label_file(root), "a") as file_of_labels:
        file_of_labels.write(f"other {file} {word} cohen\n")
    found = load(root)
    assert describe(found)["dropped"] == {"the image has these labels in an earlier row": 1}
    rows = {row["image_id"]: row for part in found.values() for row in part}
    assert (len(rows), rows[file]["patient_id"]) == (N, patient)


def test_a_missing_test_file(root):
    label_file(root, "test").unlink()
    with pytest.raises(FileNotFoundError, match=r"No label file test_COVIDx9A\.txt"):
        read(root)
