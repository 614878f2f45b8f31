"""SIIM: both layouts and markers, run lengths joined with OR, and the leaking split of MGCA and GLoRIA."""

import shutil

import numpy as np
import pytest
from fixtures.real_tables import real_table
from fixtures.rsna import write_lovt_split
from fixtures.siim import OVERLAPPING, REAL_RUNS, ROWS, uid, write_siim

from adaptor_hf.data.catalog import Request, get_dataset
from adaptor_hf.data.fractions import fraction_mask
from adaptor_hf.data.public_datasets import describe, load_public_dataset


def load(root, **options):
    return load_public_dataset("siim", root, cache_dir=root.parent / "cache", **options)


def by_id(splits):
    return {row["image_id"]: row for part in splits.values() for row in part}


def read(root, task="segmentation", scheme="patient", **options):
    dataset = get_dataset("siim")
    return dataset.read(Request(root, task, scheme, {**dataset.options, **options}))


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


@pytest.mark.parametrize(("stage", "blank"), [(1, True), (1, False), (2, False), (2, True)])
def test_layouts_and_markers(tmp_path, stage, blank):
    """With the marker that MGCA does not know every image would be positive."""
    splits = load(write_siim(tmp_path / "siim", stage=stage, blank=blank))
    rows = by_id(splits)
    assert len(rows) == 15
    assert sorted(name for name, row in rows.items() if row["labels"]) == sorted(
        uid(number) for number in (2, 3, 12, 13, 14, 15)
    )
    assert splits["train"].features["labels"].names == ["negative", "pneumothorax"]
    assert not np.asarray(rows[uid(1)]["mask"]).any()
    assert rows[uid(1)]["image"].size == rows[uid(1)]["mask"].size == (1024, 1024)
    assert describe(splits)["notes"][0].startswith("1 image files have no row in the table")


def test_masks_of_an_image_are_joined(tmp_path):
    mask = np.asarray(by_id(load(write_siim(tmp_path / "siim")))[uid(2)]["mask"])
    np.testing.assert_array_equal(mask > 0, reference_mask(REAL_RUNS, OVERLAPPING))
    parts = [reference_mask(runs) for runs in (REAL_RUNS, OVERLAPPING)]
    assert (parts[0] & parts[1]).any()
    assert (parts[1] & ~parts[0]).any()


def test_resized_copies_get_masks_of_their_size(tmp_path):
    from PIL import Image

    root = write_siim(tmp_path / "siim", stage=2)
    # In a folder of their own name: without the published ones all are searched.
    (root / "pngs").mkdir()
    for path in (root / "stage_2_images").iterdir():
        Image.new("L", (256, 256)).save(root / "pngs" / f"{path.stem}.png")
    shutil.rmtree(root / "stage_2_images")
    row = by_id(load(root))[uid(2)]
    assert row["image"].size == row["mask"].size == (256, 256)
    assert np.asarray(row["mask"]).any()


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
    def test_mgca_is_loaded_with_its_leak_named(self, tmp_path):
        splits = load(write_siim(tmp_path / "siim"), split_scheme="mgca")
        assert sum(len(part) for part in splits.values()) in (15, 16)
        assert "161 images are in train and validation" in describe(splits)["leak"]

    def test_balanced_training_rows_of_mgca(self, tmp_path):
        splits = load(write_siim(tmp_path / "siim"), split_scheme="mgca", fraction_rule="mgca_balanced")
        labels = splits["train"]["labels"]
        assert sum(labels) * 2 == len(labels)

    def test_another_number_of_rows_is_another_split_and_said_so(self, tmp_path):
        found = read(write_siim(tmp_path / "siim"), scheme="mgca")
        assert found.notes[0] == (
            f"MGCA's split is made of 12,954 rows, here are {len(ROWS)}: this is not the same split."
        )

    def test_lovt_from_its_files(self, tmp_path):
        ids = {"train": [uid(5), uid(2)], "validation": [uid(1)], "test": [uid(3), uid(77)]}
        folder = write_lovt_split(tmp_path / "lovt", ids, header="ID")
        splits = load(write_siim(tmp_path / "siim"), split_scheme="lovt", split_files=str(folder))
        assert splits["train"]["image_id"][:] == [uid(5), uid(2)]
        assert splits["test"]["image_id"][:] == [uid(3)]
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
    def test_malformed_run_lengths_are_counted_with_their_place(self, tmp_path, runs, reason):
        found = read(write_siim(tmp_path / "siim", [*ROWS, (uid(30), runs)]))
        assert len(found.faults) == 1
        assert found.faults[0].startswith(f"train-rle.csv:{len(ROWS) + 1}: ")
        assert reason in found.faults[0]
        assert uid(30) not in set(found.rows["image_id"])

    def test_a_mask_and_the_mark_of_none(self, tmp_path):
        found = read(write_siim(tmp_path / "siim", [*ROWS, (uid(3), "-1")]))
        assert found.faults == [
            f"train-rle.csv:{len(ROWS) + 1}: the image has masks and is marked -1, which means none"
        ]
        assert uid(3) not in set(found.rows["image_id"])
