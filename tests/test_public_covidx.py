"""COVIDx: every generation of label files, whose lines have three to five words."""

import pytest
from fixtures.covidx import TEST, TRAIN, write_covidx

from adaptor_hf.data.catalog import Request, get_dataset
from adaptor_hf.data.public.covidx import parse_line
from adaptor_hf.data.public_datasets import describe, load_public_dataset


def load(root, **options):
    return load_public_dataset("covidx", root, cache_dir=root.parent / "cache", **options)


def read(root, scheme="official", **options):
    dataset = get_dataset("covidx")
    return dataset.read(Request(root, "classification", scheme, {**dataset.options, **options}))


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
    [
        ("5", ["normal", "pneumonia", "COVID-19"]),
        ("7A", ["normal", "pneumonia", "COVID-19"]),
        ("9B", ["negative", "positive"]),
        ("Sev", ["level1", "level2"]),
    ],
)
def test_versions_and_their_classes(tmp_path, version, names):
    found = read(write_covidx(tmp_path / "covidx", version))
    assert found.class_names == names
    assert len(found.rows) == len(TRAIN[version]) + len(TEST[version])
    assert found.rows["split"].tolist() == ["train"] * len(TRAIN[version]) + ["test"] * len(TEST[version])


def test_loaded_with_images_of_all_kinds(tmp_path):
    splits = load(write_covidx(tmp_path / "covidx"))
    assert {name: len(part) for name, part in splits.items()}["test"] == 3
    rows = [row for part in splits.values() for row in part]
    assert len(rows) == 34
    assert {row["image"].mode for row in rows} == {"L"}
    assert [row["labels"] for row in splits["test"]] == [2, 0, 1]


def test_validation_is_by_patient_unless_mgca_is_asked_for(tmp_path):
    root = write_covidx(tmp_path / "covidx")
    splits = load(root)
    assert not set(splits["train"]["patient_id"]) & set(splits["validation"]["patient_id"])
    mgca = load(root, split_scheme="mgca")
    assert {name: len(part) for name, part in mgca.items()} == {"train": 24, "validation": 7, "test": 3}
    assert "3,036 of its 6,026" in describe(mgca)["leak"]


def test_mgca_splits_as_many_rows_as_in_9a(tmp_path):
    """The rule depends on the number of rows and their order alone."""
    lines = [f"p{number} f{number}.png normal rsna" for number in range(30130)]
    root = tmp_path / "covidx"
    root.mkdir()
    (root / "train_COVIDx9A.txt").write_text("\n".join(lines))
    (root / "test_COVIDx9A.txt").write_text("\n".join(TEST["9A"]))
    found = read(root, "mgca")
    assert found.rows["split"].value_counts().to_dict() == {"train": 24104, "validation": 6026, "test": 3}
    assert not [note for note in found.notes if "not the same split" in note]


def test_files_of_the_kaggle_release(tmp_path):
    root = write_covidx(tmp_path / "covidx", "", folder="")
    (root / "test").rename(root / "competition_test")
    splits = load(root)
    assert splits["test"].features["labels"].names == ["negative", "positive"]
    assert splits["test"][0]["image"].size == (40, 30)


def test_several_versions_need_a_choice(tmp_path):
    root = write_covidx(tmp_path / "covidx", "9A")
    write_covidx(root, "9B")
    with pytest.raises(ValueError, match=r"label files of several versions. Pass version=, one of '9A', '9B'"):
        read(root)
    assert read(root, version="9B").class_names == ["negative", "positive"]


def test_the_number_of_the_kaggle_release_is_explained(tmp_path):
    with pytest.raises(ValueError, match="Kaggle's version 5 is 9A and 9B"):
        read(write_covidx(tmp_path / "covidx"), version="9")


def test_files_of_two_kinds_are_refused(tmp_path):
    """MGCA would call every line of a B file COVID-19."""
    with pytest.raises(ValueError, match="different kinds of label files"):
        read(write_covidx(tmp_path / "covidx", "9A", test=TEST["9B"]))


def test_a_line_without_class_is_counted_with_its_place(tmp_path):
    found = read(write_covidx(tmp_path / "covidx", "9A", train=[*TRAIN["9A"], "x x.png healthy rsna"]))
    assert len(found.faults) == 1
    assert found.faults[0].startswith("labels/train_COVIDx9A.txt:32: expected 'patient file class")


def test_repeated_lines_of_version_1_are_counted(tmp_path):
    lines = [f"p{number} f{number}.png normal" for number in range(5)]
    root = write_covidx(tmp_path / "covidx", "9A", train=[*lines, *lines[:2]], test=["t t.png normal"])
    assert describe(load(root))["dropped"] == {"repeats an earlier row": 2}


def test_a_missing_test_file(tmp_path):
    root = write_covidx(tmp_path / "covidx", "9A")
    (root / "labels" / "test_COVIDx9A.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"No label file test_COVIDx9A\.txt"):
        read(root)
