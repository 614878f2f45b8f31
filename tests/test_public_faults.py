"""What is wrong with downloads of any set: missing, empty, truncated and huge files, other headers, a wrong root."""

import shutil
from functools import partial
from pathlib import Path

import pytest
from fixtures.cbis_ddsm import write_cbis
from fixtures.covid_rural import write_covid_rural
from fixtures.nih_chestxray14 import write_nih
from fixtures.object_cxr import write_object_cxr
from fixtures.phantom_trees import copy_tree
from fixtures.shenzhen_montgomery import write_montgomery, write_shenzhen
from PIL import Image

from adaptor_hf.data import images
from adaptor_hf.data.catalog import ROW_TASKS, get_dataset
from adaptor_hf.data.public_datasets import describe, load_public_dataset

# Writer, glob of the images that the tables name, table and a column of it.
SETS = {
    "rsna": (partial(copy_tree, "rsna"), "stage_2_train_images/*.dcm", "stage_2_train_labels.csv", "Target"),
    "siim": (partial(copy_tree, "siim"), "stage_2_images/*.dcm", "stage_2_train.csv", "EncodedPixels"),
    "covidx": (partial(copy_tree, "covidx"), "train/*", None, None),
    "object_cxr": (write_object_cxr, "train/*.jpg", "train.csv", "annotation"),
    "nih_chestxray14": (write_nih, "images/*.png", "Data_Entry_2017_v2020.csv", "Finding Labels"),
    "covid_rural": (write_covid_rural, "covid_rural_annot/jpgs/COVID-19-AR-164*[0-9]-XR.jpg", None, None),
    "cbis_ddsm": (
        write_cbis,
        "CBIS-DDSM/Mass-Training_P_0001*CC/*/*/*.dcm",
        "mass_case_description_train_set.csv",
        "pathology",
    ),
    "montgomery": (write_montgomery, "MontgomerySet/CXR_png/*.png", None, None),
    "shenzhen": (write_shenzhen, "ChinaSet_AllFiles/CXR_png/*.png", None, None),
}
LISTED = [name for name in SETS if name not in ("covid_rural", "montgomery", "shenzhen")]
"""Sets whose tables say which images there are."""

TABLES = [name for name in SETS if SETS[name][2]]


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """A function that gives the tree of a set, written once."""
    folder = tmp_path_factory.mktemp("trees")
    written = {}

    def tree(name: str) -> Path:
        if name not in written:
            written[name] = SETS[name][0](folder / name)
        return written[name]

    return tree


@pytest.fixture
def copy(trees, tmp_path):
    """A function that gives a copy of a tree, to be broken, and one of its images."""

    def copy(name: str) -> tuple[Path, Path]:
        root = tmp_path / "root"
        shutil.copytree(trees(name), root)
        # The second: the first may be shared by several tables.
        return root, sorted(root.glob(SETS[name][1]))[1]

    return copy


def load(name, root, **options):
    # NIH's boxes are all in the official test list.
    options.setdefault("split_scheme", "patient")
    return load_public_dataset(name, root, cache_dir=root.parent / "cache", **options)


@pytest.mark.parametrize("name", SETS)
def test_every_task_gives_its_column(name, trees):
    column = {"classification": "labels", "detection": "boxes", "segmentation": "mask"}
    for task in get_dataset(name).tasks:
        splits = load(name, trees(name), task=task)
        row = splits["train"][0]
        assert task in ROW_TASKS
        assert row[column[task]] is not None
        assert row["image"].mode == "L"
        if task == "segmentation":
            assert row["mask"].size == row["image"].size
        report = describe(splits)
        assert report["faults"] == 0
        assert report["rows"] == sum(len(part) for part in splits.values())
        assert not report["overlaps"]


@pytest.mark.parametrize("name", LISTED)
@pytest.mark.parametrize("state", ["missing", "empty"])
def test_a_file_that_is_missing_or_empty_is_counted(name, state, copy):
    root, image = copy(name)
    whole = sum(len(part) for part in load(name, root).values())
    image.unlink()
    if state == "empty":
        image.touch()
    splits = load(name, root, max_fault_share=0.5)
    report = describe(splits)
    assert report["missing_files" if state == "missing" else "empty_files"] == 1
    assert sum(len(part) for part in splits.values()) == whole - 1


@pytest.mark.parametrize("name", LISTED)
def test_half_a_download_stops_with_counts_and_an_example(name, copy):
    root, _ = copy(name)
    files = sorted(root.glob(SETS[name][1]))
    for path in files[::2]:
        path.unlink()
    with pytest.raises(ValueError, match=r"rows are faulty \(\d+ files missing(.|\n)*expected the image"):
        load(name, root)


@pytest.mark.parametrize("name", SETS)
def test_a_truncated_image_is_named_when_it_is_read(name, copy):
    root, image = copy(name)
    image.write_bytes(image.read_bytes()[: image.stat().st_size * 2 // 3])
    errors = []
    for part in load(name, root).values():
        for place in range(len(part)):
            try:
                part[place]
            except ValueError as error:
                errors.append(str(error))
    assert len(errors) == 1
    assert image.name in errors[0]


@pytest.mark.parametrize("name", ["object_cxr", "covid_rural", "montgomery"])
def test_a_bomb_is_refused_from_its_header(name, copy, monkeypatch):
    root, image = copy(name)
    Image.new("L", (3000, 2000)).save(image)
    monkeypatch.setattr(images, "MAX_PIXELS", 5_000_000)
    errors = []
    for part in load(name, root, task="segmentation").values():
        for place in range(len(part)):
            try:
                part[place]
            except ValueError as error:
                errors.append(str(error))
    assert len(errors) == 1
    assert "3000 x 2000 pixels is over the limit of 5,000,000" in errors[0]


@pytest.mark.parametrize("name", TABLES)
def test_a_changed_header_names_file_expected_and_found(name, copy):
    root, _ = copy(name)
    table, column = root / SETS[name][2], SETS[name][3]
    table.write_text(table.read_text().replace(column, "Other", 1))
    with pytest.raises(ValueError, match=rf"{table.name}: no column '{column}'. Expected: .* Found: .*Other"):
        load(name, root)


@pytest.mark.parametrize("name", SETS)
def test_a_wrong_root_says_what_was_looked_for_and_what_is_there(name, tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "holiday.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"Is this the right root.*holiday\.txt"):
        load(name, tmp_path / "root")


@pytest.mark.parametrize("name", SETS)
def test_columns_are_found_whatever_their_order_and_blanks(name, copy):
    import pandas as pd

    root, _ = copy(name)
    for path in root.glob("*.csv"):
        if path.name.startswith("BBox"):
            continue
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
        frame = frame[frame.columns[::-1]].rename(columns=lambda column: f" {column} ")
        path.unlink()
        frame.to_csv(f"{path}.gz", index=False)
    assert describe(load(name, root))["faults"] == 0


@pytest.mark.parametrize("name", TABLES)
def test_a_row_twice_is_one_row(name, copy):
    root, _ = copy(name)
    whole = sum(len(part) for part in load(name, root).values())
    table = root / SETS[name][2]
    lines = table.read_text().rstrip("\n").split("\n")
    # The last field of CBIS ends in a line feed: its rows are two lines.
    last = lines[-2:] if name == "cbis_ddsm" else lines[-1:]
    table.write_text("\n".join(lines + last) + "\n")
    splits = load(name, root)
    assert sum(len(part) for part in splits.values()) == whole
    assert any("twice" in rule or "repeats" in rule for rule in describe(splits)["dropped"])
