"""SIIM: both layouts and markers, run lengths joined with OR, and the leaking split of MGCA and GLoRIA."""

import shutil

import numpy as np
import pytest
from fixtures.loaded import by_id
from fixtures.lovt import write_lovt_split
from fixtures.phantom_trees import SEED, SIDE, N, copy_tree, plans, records
from fixtures.real_tables import real_table
from PIL import Image

from adaptor_hf.data.catalog import Request, get_dataset
from adaptor_hf.data.fractions import fraction_mask
from adaptor_hf.data.public_datasets import describe, load_public_dataset
from adaptor_hf.phantom.layout_ids import siim_id

TABLE = "stage_2_train.csv"
# The first mask of the real table, cut to five of its runs, and one that overlaps it.
REAL_RUNS = "557374 2 1015 8 1009 14 1002 20 997 26"
OVERLAPPING = "557370 10 1014 10"
IDS = [siim_id(planned, SEED) for planned in plans()]
POSITIVE = [name for name, planned in zip(IDS, plans(), strict=True) if planned.row()["pneumothorax"]]
NEGATIVE = [name for name in IDS if name not in POSITIVE]
NOBODY = "1.2.276.0.7230010.3.1.4.8323329.99.1517875099.99"
"""An ImageId that no image of the tree has."""


@pytest.fixture
def root(tmp_path):
    """A tree to be changed."""
    return copy_tree("siim", tmp_path / "siim")


def load(root, **options):
    return load_public_dataset("siim", root, cache_dir=root.parent / "cache", **options)


def read(root, task="segmentation", scheme="patient", **options):
    dataset = get_dataset("siim")
    return dataset.read(Request(root, task, scheme, {**dataset.options, **options}))


def add_rows(root, *rows):
    """Appends rows to the table; gives the number of the last."""
    with open(root / TABLE, "a") as table:
        table.write("".join(f"{name},{runs}\n" for name, runs in rows))
    return len((root / TABLE).read_text().splitlines()) - 1


def arrange(root, stage, blank):
    """The tree as a stage has it. `blank`: header and mark begin with one, "ImageId, EncodedPixels" and " -1"."""
    path = root / TABLE
    if blank:
        path.write_text(path.read_text().replace(",", ", "))
    if stage == 1:
        path.rename(root / "train-rle.csv")
        for number, image in enumerate(sorted((root / "stage_2_images").iterdir())):
            folder = root / "dicom-images-train" / f"1.2.{number}" / f"1.2.{number}.3"
            folder.mkdir(parents=True)
            image.rename(folder / image.name)
    return root


def reference_mask(*masks):
    """The decoder that the format's description quotes, the masks joined with OR."""
    joined = np.zeros((1024, 1024), bool)
    for runs in masks:
        flat, position = np.zeros(1024 * 1024, bool), 0
        for start, length in np.array(runs.split(), int).reshape(-1, 2):
            position += start
            flat[position : position + length] = True
            position += length
        joined |= flat.reshape(1024, 1024).T
    return joined


def drawn_mask(name):
    """The pneumothorax as it was drawn, at 1024 x 1024."""
    mask = np.asarray(records()[IDS.index(name)]["masks"]["pneumothorax"]) > 0
    return mask.repeat(1024 // SIDE, axis=0).repeat(1024 // SIDE, axis=1)


@pytest.mark.parametrize(("stage", "blank"), [(1, True), (1, False), (2, False), (2, True)])
def test_layouts_and_markers(root, stage, blank):
    """With the marker that MGCA does not know every image would be positive."""
    shutil.copy(root / f"stage_2_images/{IDS[0]}.dcm", root / f"stage_2_images/{NOBODY}.dcm")
    splits = load(arrange(root, stage, blank))
    rows = by_id(splits)
    assert sorted(rows) == sorted(IDS)
    assert sorted(name for name, row in rows.items() if row["labels"]) == sorted(POSITIVE)
    assert splits["train"].features["labels"].names == ["negative", "pneumothorax"]
    assert not np.asarray(rows[NEGATIVE[0]]["mask"]).any()
    np.testing.assert_array_equal(np.asarray(rows[POSITIVE[0]]["mask"]) > 0, drawn_mask(POSITIVE[0]))
    assert rows[IDS[0]]["image"].size == rows[IDS[0]]["mask"].size == (1024, 1024)
    assert describe(splits)["notes"][0].startswith("1 image files have no row in the table")


def test_masks_of_an_image_are_joined(root):
    add_rows(root, (POSITIVE[1], REAL_RUNS), (POSITIVE[1], OVERLAPPING))
    mask = np.asarray(by_id(load(root))[POSITIVE[1]]["mask"])
    np.testing.assert_array_equal(mask > 0, drawn_mask(POSITIVE[1]) | reference_mask(REAL_RUNS, OVERLAPPING))
    parts = [reference_mask(runs) for runs in (REAL_RUNS, OVERLAPPING)]
    assert (parts[0] & parts[1]).any()
    assert (parts[1] & ~parts[0]).any()


def test_resized_copies_get_masks_of_their_size(root):
    # In a folder of their own name: without the published ones all are searched.
    (root / "pngs").mkdir()
    for path in (root / "stage_2_images").iterdir():
        Image.new("L", (256, 256)).save(root / "pngs" / f"{path.stem}.png")
    shutil.rmtree(root / "stage_2_images")
    row = by_id(load(root))[POSITIVE[0]]
    assert row["image"].size == row["mask"].size == (256, 256)
    # The drawing has whole pixels of 4 x 4 at this size.
    np.testing.assert_array_equal(np.asarray(row["mask"]) > 0, drawn_mask(POSITIVE[0])[::4, ::4])


class TestRealTable:
    @pytest.fixture(scope="class")
    def real(self, tmp_path_factory):
        root = tmp_path_factory.mktemp("real")
        real_table("siim-pneumothorax-train-rle.csv.gz", root / "train-rle.csv")
        return root

    def test_counts(self, real):
        found = read(real)
        assert found.table_rows == 12954
        assert found.rows["labels"].value_counts().to_dict() == {0: 9378, 1: 2669}
        masks = found.rows["mask"].map(lambda mask: len(mask["data"]))
        assert masks.sum() == 12954 - 9378
        assert masks.max() == 10
        assert not found.faults

    @pytest.mark.parametrize("scheme", ["mgca", "gloria"])
    def test_the_split_by_table_row(self, real, scheme):
        rows = read(real, scheme=scheme).rows
        parts = {name: set(part["image_id"]) for name, part in rows.groupby("split")}
        assert {name: len(ids) for name, ids in parts.items()} == {"train": 8578, "validation": 1910, "test": 1903}
        assert len(parts["train"] & parts["validation"]) == 161
        assert len(parts["train"] & parts["test"]) == 154
        assert len(parts["validation"] & parts["test"]) == 62
        assert rows[rows["split"] == "train"]["labels"].sum() == 2002
        empty = 1 - rows.groupby("split")["labels"].mean()
        assert empty["test"] == pytest.approx(0.750, abs=5e-4)
        assert empty["validation"] == pytest.approx(0.720, abs=5e-4)
        # A part of an image's masks is on each side.
        masks = rows.groupby("image_id")["mask"].agg(lambda column: sum(len(mask["data"]) for mask in column))
        assert masks.sum() == 12954 - 9378

    def test_the_balanced_fractions_of_mgca(self, real):
        rows = read(real, scheme="mgca").rows
        train = rows[rows["split"] == "train"]
        strata = train["labels"].map({0: "negative", 1: "pneumothorax"})
        kept = [fraction_mask(train, strata, share, "mgca_balanced", 0) for share in (0.01, 0.1, 1)]
        assert [mask.sum() for mask in kept] == [40, 400, 4004]
        assert train["labels"][kept[2]].sum() == 2002


class TestSplits:
    def test_mgca_is_loaded_with_its_leak_named(self, root):
        add_rows(root, (POSITIVE[0], REAL_RUNS))
        splits = load(root, split_scheme="mgca")
        assert sum(len(part) for part in splits.values()) in (N, N + 1)
        assert "161 images are in train and validation" in describe(splits)["leak"]

    def test_balanced_training_rows_of_mgca(self, root):
        labels = load(root, split_scheme="mgca", fraction_rule="mgca_balanced")["train"]["labels"]
        assert 0 < sum(labels) * 2 == len(labels)

    def test_another_number_of_rows_is_another_split_and_said_so(self, root):
        count = add_rows(root, (POSITIVE[0], REAL_RUNS))
        assert count == N + 1
        assert read(root, scheme="mgca").notes[0] == (
            f"MGCA's split is made of 12,954 rows, here are {count}: this is not the same split."
        )

    def test_lovt_from_its_files(self, root, tmp_path):
        ids = {"train": [IDS[5], POSITIVE[0]], "validation": [NEGATIVE[0]], "test": [POSITIVE[1], NOBODY]}
        folder = write_lovt_split(tmp_path / "lovt", ids, header="ID")
        splits = load(root, split_scheme="lovt", split_files=str(folder))
        assert splits["train"]["image_id"][:] == [IDS[5], POSITIVE[0]]
        assert splits["test"]["image_id"][:] == [POSITIVE[1]]
        assert describe(splits)["dropped"]["in the split's files, not in the tables"] == 1


class TestFaults:
    @pytest.mark.parametrize(
        ("runs", "reason"),
        [
            ("1 2 3", "pairs of start and length"),
            ("-5 3", "none negative"),
            ("one 2", "whole numbers"),
            ("1048570 7", "run lengths end at pixel 1048577, outside 1024 x 1024"),
            ("", "no run lengths and no -1"),
        ],
    )
    def test_malformed_run_lengths_are_counted_with_their_place(self, root, runs, reason):
        place = add_rows(root, (NOBODY, runs))
        found = read(root)
        assert len(found.faults) == 1
        assert found.faults[0].startswith(f"{TABLE}:{place}: ")
        assert reason in found.faults[0]
        assert set(found.rows["image_id"]) == set(IDS)

    def test_a_mask_and_the_mark_of_none(self, root):
        place = add_rows(root, (POSITIVE[0], "-1"))
        found = read(root)
        assert found.faults == [f"{TABLE}:{place}: the image has masks and is marked -1, which means none"]
        assert set(found.rows["image_id"]) == set(IDS) - {POSITIVE[0]}
