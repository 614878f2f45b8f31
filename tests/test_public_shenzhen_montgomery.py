"""Shenzhen and Montgomery: labels from names, lung masks of one or two files, tolerant readings."""

import csv
import json
import os

import numpy as np
import pytest
from fixtures.loaded import by_id
from fixtures.shenzhen_montgomery import lungs, write_montgomery, write_shenzhen
from PIL import Image, ImageOps

from adaptor_hf.data.check import check_dataset, format_check
from adaptor_hf.data.public.shenzhen_montgomery import _reading
from adaptor_hf.data.public_datasets import describe, load_public_dataset


def load(name, root, **options):
    return load_public_dataset(name, root, cache_dir=root.parent / "cache", **options)


@pytest.mark.parametrize("folder", ["MontgomerySet", "."])
def test_montgomery(tmp_path, folder):
    rows = by_id(load("montgomery", write_montgomery(tmp_path / "m", folder), task="segmentation"))
    assert len(rows) == 10
    row = rows["MCUCXR_0002_1"]
    np.testing.assert_array_equal(np.asarray(row["mask"]) > 0, np.logical_or(*lungs(1)))
    assert (row["labels"], row["sex"], row["age"]) == (1, "M", pytest.approx(8 / 12))
    assert rows["MCUCXR_0001_0"]["age"] == 45


def test_half_a_mask_is_none(tmp_path):
    root = write_montgomery(tmp_path / "m", count=30)
    (root / "MontgomerySet" / "ManualMask" / "leftMask" / "MCUCXR_0003_0.png").unlink()
    splits = load("montgomery", root, task="segmentation")
    assert "MCUCXR_0003_0" not in by_id(splits)
    assert describe(splits)["dropped"] == {"mask of one lung only": 1}
    assert describe(splits)["faults"] == 1


def test_the_check_counts_masks_that_are_read_with_reserve(tmp_path):
    root = write_shenzhen(tmp_path / "s")
    masks = sorted(root.glob("**/*mask*.png"))
    soft = np.array(Image.open(masks[0]).convert("L"))
    soft[tuple(np.argwhere(soft)[0])] = 200  # one edge pixel that the shape covers in part
    Image.fromarray(soft).save(masks[0])
    ImageOps.invert(Image.open(masks[1]).convert("L")).save(masks[1])
    result = check_dataset("shenzhen", root, "segmentation", cache_dir=tmp_path / "check")
    assert (result["masks_grey"], result["masks_inverted"], result["masks_cut"], result["unreadable"]) == (1, 1, 0, 0)
    said = format_check(result)
    assert "masks with grey edges, cut at half of their maximum: 1" in said
    assert "most likely inverted: 1" in said
    assert "a shape that leaves" not in said


def test_shenzhen(tmp_path):
    root = write_shenzhen(tmp_path / "s")
    splits = load("shenzhen", root)
    rows = by_id(splits)
    assert len(rows) == 10
    assert splits["train"].features["labels"].names == ["normal", "tuberculosis"]
    assert [rows[f"CHNCXR_{number:04d}_{(number - 1) % 2}"]["labels"] for number in (1, 2)] == [0, 1]
    assert {row["image"].mode for row in rows.values()} == {"L"}
    segmented = load("shenzhen", root, task="segmentation")
    masks = by_id(segmented)
    assert len(masks) == 8
    np.testing.assert_array_equal(np.asarray(masks["CHNCXR_0005_0"]["mask"]) > 0, np.logical_or(*lungs(4)))
    assert describe(segmented)["dropped"] == {"not annotated": 2}
    assert "1 images have no clinical reading" in describe(segmented)["notes"][0]


@pytest.mark.parametrize(
    ("text", "sex", "age"),
    [
        ("Patient's Sex: F\nPatient's Age: 045Y\n", "F", 45),
        ("Patient's Sex: M \nPatient's Age: 008M", "M", 8 / 12),
        ("male 45yrs\nnormal", "M", 45),
        ("Female , 24yrs", "F", 24),
        ("femal3 12 months", "F", 1),
        ("male, 30 days", "M", 30 / 365.25),
        ("normal", None, None),
    ],
)
def test_readings(text, sex, age):
    found = _reading(text)
    assert found.get("sex") == sex
    assert found.get("age") == (None if age is None else pytest.approx(age))


def test_a_wrong_root_says_what_is_there(tmp_path):
    write_shenzhen(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"No image called MCUCXR_0001_0.png .* has: ChinaSet_AllFiles, mask"):
        load("montgomery", tmp_path)


def test_real_images_and_masks(realbench, tmp_path):
    """Real files in the published layout: Shenzhen's masks are files of their own."""
    with open(realbench / "metadata.csv", newline="", encoding="utf-8") as table:
        real = [row for row in csv.DictReader(table) if row["dataset"] == "tbmask" and row["patient_id"][:3] == "CHN"]
    root = tmp_path / "s"
    for row in real:
        name = row["patient_id"]
        for source, target in ((row["image"], f"CXR_png/{name}.jpg"), (row["mask"], f"mask/{name}_mask.png")):
            if source:
                (root / target).parent.mkdir(parents=True, exist_ok=True)
                os.symlink(realbench / source, root / target)
    splits = load("shenzhen", root, task="segmentation")
    rows = by_id(splits)
    assert len(rows) == sum(bool(row["mask"]) for row in real) > 100
    labels = {row["patient_id"]: json.loads(row["labels"])["tuberculosis"] for row in real}
    for name, row in rows.items():
        assert row["labels"] == labels[name]
        assert row["mask"].size == row["image"].size
        # Two lungs fill about a quarter of a chest radiograph.
        assert 0.05 < (np.asarray(row["mask"]) > 0).mean() < 0.6
