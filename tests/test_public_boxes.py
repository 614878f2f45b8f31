"""Boxes on resized copies of the published images: they follow the copy, or the load stops."""

import numpy as np
import pytest
from fixtures.loaded import by_id
from fixtures.nih_chestxray14 import write_nih
from fixtures.phantom_trees import SEED, SIDE, copy_tree, plans, records
from PIL import Image

from adaptor_hf.data.public_datasets import describe, load_public_dataset
from adaptor_hf.phantom.layout_ids import rsna_id

LEFT, TOP, WIDTH, HEIGHT = 225.084745762712, 547.019216763771, 86.7796610169491, 79.1864406779661
NIH_BOX = np.array([LEFT, TOP, LEFT + WIDTH, TOP + HEIGHT])


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
    root = copy_tree("rsna", tmp_path / "rsna")
    # Corners in pixels of the drawing.
    drawn = {
        rsna_id(planned, SEED): record["boxes"][[label == "consolidation" for label in record["box_labels"]]]
        for planned, record in zip(plans(), records(), strict=True)
    }
    copy = next(name for name, boxes in drawn.items() if len(boxes) == 2)
    (root / f"stage_2_train_images/{copy}.dcm").unlink()
    Image.new("L", (512, 512)).save(root / f"stage_2_train_images/{copy}.png")
    rows = by_id(load_public_dataset("rsna", root, "detection", cache_dir=tmp_path / "cache"))
    assert sum(len(boxes) > 0 for boxes in drawn.values()) > 3
    for name, boxes in drawn.items():
        expected = boxes * ((512 if name == copy else 1024) / SIDE)
        np.testing.assert_array_equal(np.reshape(rows[name]["boxes"], (-1, 4)), expected)


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


class TestWithoutAFrame:
    """object-CXR's images have sizes of their own: its boxes are compared with a sample of the images."""

    ROWS = [(f"{number:05d}.jpg", "0 539 1036 897 1460") for number in range(12)]

    def load(self, tmp_path, rows=None):
        from fixtures.object_cxr import write_object_cxr

        root = write_object_cxr(tmp_path / "set", train=rows or self.ROWS)
        return root, lambda: load_public_dataset("object_cxr", root, "detection", cache_dir=tmp_path / "cache")

    def test_boxes_of_the_published_images_are_taken(self, tmp_path):
        _, load = self.load(tmp_path)
        assert not any("leave their image" in note for note in describe(load())["notes"])

    def test_boxes_of_resized_copies_are_refused(self, tmp_path):
        root, load = self.load(tmp_path)
        for path in root.glob("*/*.jpg"):
            Image.open(path).resize((500, 750)).save(path)
        with pytest.raises(ValueError, match=r"csv:\d+: the box .* lies outside the image of 500 x 750.* of 13 images"):
            load()

    def test_one_box_that_leaves_its_image_is_said(self, tmp_path):
        _, load = self.load(tmp_path, [*self.ROWS, ("00099.jpg", "0 900 1036 1400 1460")])
        assert any("boxes of 1 of 14 images that were looked at leave" in note for note in describe(load())["notes"])
