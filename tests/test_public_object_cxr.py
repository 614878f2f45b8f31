"""object-CXR: three kinds of shapes as boxes and masks, without the exchanges of the reference codes."""

import numpy as np
import pytest
from fixtures.loaded import by_id
from fixtures.lovt import write_lovt_split
from fixtures.object_cxr import TRAIN, write_object_cxr

from adaptor_hf.data.catalog import Request, get_dataset
from adaptor_hf.data.public.object_cxr import parse_annotation
from adaptor_hf.data.public_datasets import describe, load_public_dataset


def load(root, **options):
    return load_public_dataset("object_cxr", root, cache_dir=root.parent / "cache", **options)


def read(root, task="detection", scheme="official", **options):
    dataset = get_dataset("object_cxr")
    return dataset.read(Request(root, task, scheme, {**dataset.options, **options}))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_object_cxr(tmp_path_factory.mktemp("object") / "object-CXR")


def test_boxes_are_corners_of_each_shape(tree):
    rows = by_id(load(tree))
    assert len(rows) == 16
    # LoVT's published file has 539;1036;424;358 for the first: height before width.
    assert rows["00001"]["boxes"].tolist() == [[539, 1036, 897, 1460], [100, 200, 180, 260]]
    assert rows["00003"]["boxes"].tolist() == [[660, 448, 717, 522]]
    assert rows["00002"]["boxes"].shape == (0, 4)
    assert rows["01234"]["boxes"].tolist() == [[10, 20, 50, 120]]
    assert [rows[name]["labels"] for name in ("00001", "00002", "00003")] == [1, 0, 1]


def test_masks_are_the_shapes(tree):
    rows = by_id(load(tree, task="segmentation"))
    mask = np.asarray(rows["00001"]["mask"]) > 0
    assert mask.shape == (1500, 1000)
    assert mask[1036:1460, 539:897].all()
    ellipse = mask[200:260, 100:180]
    assert mask.sum() == (897 - 539) * (1460 - 1036) + ellipse.sum()
    assert ellipse.mean() == pytest.approx(np.pi / 4, abs=0.01)
    polygon = np.asarray(rows["00003"]["mask"]) > 0
    rows_inside, columns_inside = np.nonzero(polygon)
    assert 448 <= rows_inside.min() < rows_inside.max() < 522
    assert 660 <= columns_inside.min() < columns_inside.max() < 717
    # Area by the shoelace formula.
    points = np.array(TRAIN[2][1].split()[1:], float).reshape(-1, 2)
    x, y = points.T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert polygon.sum() == pytest.approx(area, rel=0.02)
    assert not np.asarray(rows["00002"]["mask"]).any()


@pytest.mark.parametrize(("column", "folder"), [("image_path", ""), ("image_name", "input")])
def test_both_columns_and_lovts_folder(tmp_path, column, folder):
    rows = by_id(load(write_object_cxr(tmp_path / "object-CXR", column=column, folder=folder)))
    assert len(rows) == 16
    assert rows["01234"]["image"].size == (1000, 1500)


def test_dev_is_test_and_validation_comes_from_train(tree):
    splits = load(tree)
    assert splits["test"]["image_id"][:] == ["08001", "08002"]
    assert len(splits["train"]) + len(splits["validation"]) == len(TRAIN)


def test_mgca_splits_as_many_rows_as_published(tmp_path):
    root = tmp_path
    for part, numbers in (("train", range(1, 8001)), ("dev", range(8001, 9001))):
        lines = ["image_name,annotation", *(f"{number:05d}.jpg," for number in numbers)]
        (root / f"{part}.csv").write_text("\n".join(lines))
    found = read(root, scheme="mgca")
    assert found.rows["split"].value_counts().to_dict() == {"train": 7200, "validation": 800, "test": 1000}
    assert not found.notes


def test_lovt_gives_ids_only(tree, tmp_path):
    ids = {"train": ["00003", "00001"], "validation": ["00002"], "test": ["08001"]}
    folder = write_lovt_split(tmp_path, ids)
    splits = load(tree, split_scheme="lovt", split_files=str(folder))
    assert {name: part["image_id"][:] for name, part in splits.items()} == ids
    assert splits["test"][0]["boxes"].tolist() == [[539, 1036, 897, 1460]]
    # The published train.csv of the data set is in the root as well: it is not LoVT's.
    with pytest.raises(ValueError, match=r"Expected LoVT's own train\.csv"):
        load(tree, split_scheme="lovt")


@pytest.mark.parametrize(
    "annotation",
    ["3 1 2 3 4", "0 1 2 3", "0 1 2 3 4 5", "2 1 2 3 4", "2 1 2 3 4 5 6 7", "1 a b c d", "0 9 9 5 20", "0 5 5 5 5"],
)
def test_a_malformed_annotation_is_counted_with_its_place(tmp_path, annotation):
    with pytest.raises(ValueError, match="found"):
        parse_annotation(annotation)
    found = read(write_object_cxr(tmp_path / "o", train=[*TRAIN, ("00099.jpg", f"0 1 2 3 4;{annotation}")]))
    assert len(found.faults) == 1
    assert found.faults[0].startswith(f"train.csv:{len(TRAIN) + 1}: ")
    assert found.dropped == {"malformed annotation or no image name": 1}
    assert "00099" not in set(found.rows["image_id"])


def test_no_image_column_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"train.csv: no image names. Expected a column 'image_name' or 'image_path'"):
        read(write_object_cxr(tmp_path / "o", column="file"))


def test_a_name_that_leads_out_of_the_root(tmp_path):
    root = write_object_cxr(tmp_path / "o", train=[*TRAIN, ("../../secret.jpg", "")])
    with pytest.raises(ValueError, match=r"train.csv:15: the path .* leads out"):
        load(root)


def test_report_counts_boxes(tree):
    assert sum(describe(load(tree))["boxes"].values()) == 2 + 1 + 1 + 5 + 1
