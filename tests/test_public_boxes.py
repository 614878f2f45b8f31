"""Boxes on resized copies of the published images: they follow the copy, or the load stops."""

import numpy as np
import pytest
from fixtures.nih_chestxray14 import write_nih
from fixtures.rsna import POSITIVE, write_rsna
from PIL import Image

from adaptor_hf.data.public_datasets import describe, load_public_dataset

LEFT, TOP, WIDTH, HEIGHT = 225.084745762712, 547.019216763771, 86.7796610169491, 79.1864406779661
NIH_BOX = np.array([LEFT, TOP, LEFT + WIDTH, TOP + HEIGHT])


def by_id(parts):
    return {row["image_id"]: row for part in parts.values() for row in part}


def resize_all(folder, size):
    for path in folder.glob("*.png"):
        Image.open(path).resize(size).save(path)


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_boxes_are_in_pixels_of_a_resized_copy(tmp_path, task):
    root = write_nih(tmp_path / "NIH")
    resize_all(root / "images", (224, 224))
    parts = load_public_dataset("nih_chestxray14", root, task, "patient", cache_dir=tmp_path / "cache")
    row = by_id(parts)["00013118_008"]
    np.testing.assert_allclose(row["boxes"][0], NIH_BOX * 224 / 1024, rtol=1e-5)
    assert any("resized copies" in note for note in describe(parts)["notes"])
    if task == "segmentation":
        top, left = np.argwhere(np.asarray(row["mask"]) > 0).min(axis=0)
        assert (left, top) == pytest.approx((49, 22), abs=1)


def test_one_copy_among_originals_counts_alone(tmp_path):
    root = write_rsna(tmp_path / "rsna")
    (root / f"stage_2_train_images/{POSITIVE}.dcm").unlink()
    Image.new("L", (512, 512)).save(root / f"stage_2_train_images/{POSITIVE}.png")
    parts = load_public_dataset("rsna", root, "detection", cache_dir=tmp_path / "cache")
    rows = by_id(parts)
    assert rows[POSITIVE]["boxes"].tolist() == [[132.0, 76.0, 238.5, 265.5], [281.0, 76.0, 409.0, 302.5]]
    others = [row["boxes"] for name, row in rows.items() if name != POSITIVE and len(row["boxes"])]
    assert len(others) == 6
    assert all(boxes[0, 1] == 200 for boxes in others)


def test_boxes_of_published_images_stay_exact(tmp_path):
    root = write_nih(tmp_path / "NIH")
    parts = load_public_dataset("nih_chestxray14", root, "detection", "patient", cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(by_id(parts)["00013118_008"]["boxes"][1], [600, 100, 800, 400])
    assert not any("resized" in note for note in describe(parts)["notes"])


def test_a_copy_of_another_shape_is_refused(tmp_path):
    root = write_nih(tmp_path / "NIH")
    resize_all(root / "images", (224, 200))
    with pytest.raises(ValueError, match=r"png: 224 x 200 pixels, expected 1024 x 1024 or a resized copy"):
        load_public_dataset("nih_chestxray14", root, "detection", "patient", cache_dir=tmp_path / "cache")
