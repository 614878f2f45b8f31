"""RSNA: boxes, classes, masks, the splits of the reference codes, and patients by their NIH originals."""

import json
import zipfile
from io import BytesIO

import numpy as np
import pydicom
import pytest
from fixtures.loaded import by_id
from fixtures.lovt import write_lovt_split
from fixtures.phantom_trees import SEED, SIDE, N, copy_tree, phantom_tree, plans, records
from fixtures.real_tables import real_table
from PIL import Image

from adaptor_hf.data.catalog import Request, get_dataset
from adaptor_hf.data.fractions import fraction_mask
from adaptor_hf.data.public.rsna import read_match
from adaptor_hf.data.public_datasets import describe, load_public_dataset
from adaptor_hf.phantom.layout_ids import nih_name, rsna_id

TABLE, MATCH = "stage_2_train_labels.csv", "pneumonia-challenge-dataset-mappings_2018.json"
IDS = [rsna_id(planned, SEED) for planned in plans()]
NOBODY = "0000001e-1111-4222-8333-00000000001e"
"""A patientId that no image of the tree has."""


@pytest.fixture(scope="module")
def boxes():
    """Corners of the boxes of each image, as the lesions were drawn, in pixels of 1024 x 1024."""
    return {
        name: record["boxes"][[label == "consolidation" for label in record["box_labels"]]] * (1024 // SIDE)
        for name, record in zip(IDS, records(), strict=True)
    }


@pytest.fixture(scope="module")
def positive(boxes):
    """The first image with two boxes."""
    return next(name for name in IDS if len(boxes[name]) == 2)


@pytest.fixture(scope="module")
def negative(boxes):
    """The first image without a box."""
    return next(name for name in IDS if not len(boxes[name]))


@pytest.fixture
def root(tmp_path):
    """A tree to be changed."""
    return copy_tree("rsna", tmp_path / "rsna")


@pytest.fixture
def tree(tmp_path):
    """The shared tree behind a link: what is kept lies beside it."""
    (tmp_path / "linked").symlink_to(phantom_tree("rsna"))
    return tmp_path / "linked"


def load(root, **options):
    return load_public_dataset("rsna", root, cache_dir=root.parent / "cache", **options)


def read(root, task="classification", scheme="patient", **options):
    dataset = get_dataset("rsna")
    return dataset.read(Request(root, task, scheme, {**dataset.options, **options}))


def lines_of(root):
    """Header and rows of the table of boxes."""
    header, *rows = (root / TABLE).read_text().splitlines()
    return header, rows


def write_lines(root, header, rows):
    (root / TABLE).write_text("\n".join([header, *rows]) + "\n")
    return root


class TestRows:
    def test_a_row_an_image_with_boxes_as_corners(self, tree, boxes, positive, negative):
        rows = by_id(load(tree, task="detection"))
        assert len(rows) == N
        for name, expected in boxes.items():
            np.testing.assert_array_equal(np.reshape(rows[name]["boxes"], (-1, 4)), expected)
            assert rows[name]["labels"] == (len(expected) > 0)
        assert rows[positive]["box_labels"] == [0, 0]
        assert rows[negative]["boxes"].shape == (0, 4)
        assert rows[IDS[0]]["source"] == "stage_2_train_labels.csv:1"

    def test_images_are_the_compressed_dicom_files(self, tree):
        row = next(iter(load(tree).values()))[0]
        stored = pydicom.dcmread(tree / f"stage_2_train_images/{row['image_id']}.dcm")
        frame = next(pydicom.encaps.generate_frames(stored.PixelData, number_of_frames=1))
        assert row["image"].size == (1024, 1024)
        np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(Image.open(BytesIO(frame))))

    def test_masks_are_the_filled_boxes(self, tree, boxes, positive, negative):
        rows = by_id(load(tree, task="segmentation"))
        expected = np.zeros((1024, 1024), bool)
        for left, top, right, bottom in boxes[positive].astype(int):
            expected[top:bottom, left:right] = True
        np.testing.assert_array_equal(np.asarray(rows[positive]["mask"]) > 0, expected)
        assert not np.asarray(rows[negative]["mask"]).any()

    def test_three_classes_and_a_patient_that_is_there_twice(self, tree, boxes, positive):
        splits = load(tree, classes=3)
        names = splits["train"].features["labels"].names
        assert names == ["Normal", "No Lung Opacity / Not Normal", "Lung Opacity"]
        labels = {name: names[row["labels"]] for name, row in by_id(splits).items()}
        assert sum(row.startswith(positive) for row in lines_of(tree)[1]) == 2
        assert labels == {
            name: "Lung Opacity" if len(boxes[name]) else names[1] if planned.findings else "Normal"
            for name, planned in zip(IDS, plans(), strict=True)
        }
        assert set(labels.values()) == set(names)

    def test_images_may_be_in_the_zip(self, root, positive):
        with zipfile.ZipFile(root / "stage_2_train_images.zip", "w") as archive:
            for path in sorted((root / "stage_2_train_images").iterdir()):
                archive.write(path, path.name)
                path.unlink()
        row = by_id(load(root, task="segmentation"))[positive]
        assert row["image"].size == row["mask"].size == (1024, 1024)


class TestPatients:
    @pytest.fixture
    def match(self):
        """The NIH originals; some patients have several images."""
        return {name: nih_name(planned) for name, planned in zip(IDS, plans(), strict=True)}

    def test_without_the_table_the_user_is_told(self, tree):
        splits = load(tree)
        assert {row["patient_id"] for row in by_id(splits).values()} == {None}
        assert "patientId names an image, not a patient" in describe(splits)["notes"][0]

    @pytest.mark.parametrize("form", ["csv", "json"])
    def test_splits_go_by_nih_patient_when_the_table_is_given(self, tree, tmp_path, match, form):
        file = tree / MATCH
        if form == "csv":
            file = tmp_path / "match.csv"
            lines = ["n,rsna,nih,mse", *(f"{n},{rsna},{nih},0.5" for n, (rsna, nih) in enumerate(match.items()))]
            file.write_text("\n".join(lines))
        splits = load(tree, nih_match=str(file), test_fraction=0.2, validation_fraction=0.2)
        parts = {name: set(part["patient_id"]) for name, part in splits.items()}
        patients = {nih[:8] for nih in match.values()}
        assert len(patients) < N
        assert parts["train"] | parts["validation"] | parts["test"] == patients
        assert sum(map(len, parts.values())) == len(patients)

    def test_a_leak_of_the_reference_split_is_counted_and_allowed(self, tree):
        report = describe(load(tree, split_scheme="mgca", nih_match=MATCH))
        assert report["overlaps"]["train and test"] > 0
        assert "2,749 of 4,003" in report["leak"]

    def test_an_image_without_an_original_is_a_patient_of_its_own(self, root, positive):
        entries = json.loads((root / MATCH).read_text())
        (root / MATCH).write_text(json.dumps([entry for entry in entries if entry["subset_img_id"] != positive]))
        found = read(root, nih_match=MATCH)
        assert found.rows.set_index("image_id").loc[positive, "patient_id"] == f"rsna-{positive}"
        assert found.notes == ["1 images are not in the table of NIH originals and count as a patient each."]

    def test_of_two_matches_the_first_is_taken(self, tmp_path):
        file = tmp_path / "match.csv"
        file.write_text(f"a,b\n{NOBODY},00000001_000.png\n{NOBODY},00000002_000.png\n")
        assert read_match(tmp_path, "match.csv") == {NOBODY: "00000001_000.png"}

    def test_a_table_of_something_else_is_refused(self, tree, tmp_path):
        file = tmp_path / "match.csv"
        file.write_text("a,b\n1,2\n")
        with pytest.raises(ValueError, match=r"no column of RSNA patientIds. Found: 'a', 'b'"):
            read(tree, nih_match=file)


class TestRealTable:
    @pytest.fixture(scope="class")
    def real(self, tmp_path_factory):
        root = tmp_path_factory.mktemp("real")
        real_table("kaggle_stage_2_train_labels.csv.zip", root / "stage_2_train_labels.csv")
        return root

    def test_counts(self, real):
        found = read(real)
        assert found.table_rows == 30227
        assert found.rows["labels"].value_counts().to_dict() == {0: 20672, 1: 6012}
        assert found.rows["boxes"].map(len).value_counts().to_dict() == {0: 20672, 1: 2614, 2: 3266, 3: 119, 4: 13}
        assert not found.faults
        assert not found.dropped

    @pytest.mark.parametrize(
        ("task", "scheme", "sizes", "positives"),
        [
            ("classification", "mgca", (18678, 4003, 4003), (4162, 928, 922)),
            ("classification", "gloria", (18678, 4003, 4003), (4162, 928, 922)),
            ("detection", "mgca", (16010, 5337, 5337), (3579, 1182, 1251)),
            ("segmentation", "mgca", (16010, 5337, 5337), (3579, 1182, 1251)),
        ],
    )
    def test_the_splits_of_mgca_and_gloria(self, real, task, scheme, sizes, positives):
        parts = read(real, task, scheme).rows.groupby("split")["labels"]
        order = ["train", "validation", "test"]
        assert tuple(parts.size()[order]) == sizes
        assert tuple(parts.sum()[order]) == positives

    @pytest.mark.parametrize(
        ("task", "rule", "sizes"),
        [("classification", "mgca", (187, 1868, 18678)), ("detection", "mgca_detection", (160, 1601, 16010))],
    )
    def test_the_fractions_of_mgca(self, real, task, rule, sizes):
        rows = read(real, task, "mgca").rows
        train = rows[rows["split"] == "train"]
        kept = [fraction_mask(train, train["labels"].astype(str), share, rule, 0).sum() for share in (0.01, 0.1, 1)]
        assert tuple(kept) == sizes

    def test_gloria_has_no_detection(self, real):
        with pytest.raises(ValueError, match="GLoRIA has no split"):
            read(real, "detection", "gloria")


class TestLovt:
    def test_rows_in_the_order_of_its_files_and_boxes_of_the_table(self, tree, tmp_path, boxes, positive, negative):
        others = [name for name in IDS if name not in (positive, negative)]
        ids = {"train": [others[9], positive, others[3]], "validation": [others[4]], "test": [negative]}
        folder = write_lovt_split(tmp_path / "lovt", ids)
        splits = load(tree, task="detection", split_scheme="lovt", split_files=str(folder))
        assert {name: part["image_id"] for name, part in splits.items()} == ids
        np.testing.assert_array_equal(splits["train"][1]["boxes"], boxes[positive])
        assert describe(splits)["dropped"] == {"not in the split's files": N - 5}

    def test_without_its_files_the_error_says_where_they_are(self, tree):
        with pytest.raises(FileNotFoundError, match=r"philip-mueller/lovt\) and pass split_files=FOLDER"):
            load(tree, split_scheme="lovt")

    def test_an_id_in_two_parts_is_refused(self, tree, tmp_path, positive, negative):
        folder = write_lovt_split(tmp_path, {"train": [positive], "validation": [positive], "test": [negative]})
        with pytest.raises(ValueError, match="1 ids are in the split files twice"):
            load(tree, split_scheme="lovt", split_files=str(folder))


class TestFaults:
    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            (f"{NOBODY},,,,,1", "Target 1 without a box"),
            (f"{NOBODY},1.0,2.0,3.0,,1", "Target 1 without a box"),
            (f"{NOBODY},1.0,2.0,3.0,4.0,0", "Target 0 with a box"),
            (f"{NOBODY},1000.0,2.0,30.0,4.0,1", "the box is not inside 1024 x 1024 pixels"),
            (f"{NOBODY},1.0,2.0,0.0,4.0,1", "the box is not inside 1024 x 1024 pixels"),
            (f"{NOBODY},,,,,", "no Target"),
            (",,,,,0", "no patientId"),
        ],
    )
    def test_a_malformed_row_is_counted_with_its_place(self, root, row, reason):
        header, rows = lines_of(root)
        place = 7 if row[0] == "," else 0
        found = read(write_lines(root, header, [*rows[:place], row, *rows[place:]]))
        assert found.faults == [f"stage_2_train_labels.csv:{place + 1}: {reason}"]
        assert found.dropped == {"image with a malformed row": 1}
        assert set(found.rows["image_id"]) == set(IDS)
        assert len(found.rows) == N

    def test_an_image_is_left_out_with_all_its_rows(self, root, positive):
        header, rows = lines_of(root)
        found = read(write_lines(root, header, [*rows, f"{positive},9.0,9.0,-1.0,5.0,1"]))
        assert set(found.rows["image_id"]) == set(IDS) - {positive}
        assert found.dropped == {"image with a malformed row": 3}

    def test_two_targets_for_one_image(self, root, positive):
        header, rows = lines_of(root)
        found = read(write_lines(root, header, [*rows, f"{positive},,,,,0"]))
        assert set(found.rows["image_id"]) == set(IDS) - {positive}
        assert found.faults
        assert all("another Target" in fault for fault in found.faults)

    def test_a_row_twice_is_one_box(self, root, boxes, positive, negative):
        header, rows = lines_of(root)
        again = [[row for row in rows if row.startswith(name)][-1] for name in (positive, negative)]
        found = read(write_lines(root, header, [*rows, *again]))
        counts = dict(zip(found.rows["image_id"], found.rows["boxes"].map(len), strict=True))
        assert counts == {name: len(corners) for name, corners in boxes.items()}
        assert found.dropped == {"the same row twice": 2}

    def test_a_target_that_is_none_names_file_and_row(self, root):
        header, rows = lines_of(root)
        with pytest.raises(ValueError, match=r"stage_2_train_labels.csv, row 1, column 'Target': found '2'"):
            read(write_lines(root, header, [f"{NOBODY},,,,,2", *rows]))

    def test_classes_of_another_stage(self, root, positive):
        (root / "stage_2_detailed_class_info.csv").write_text(f"patientId,class\n{positive},Normal\n")
        with pytest.raises(ValueError, match="'Lung Opacity' is not Target 1 there"):
            read(root, classes=3)

    def test_a_name_that_leads_out_of_the_root(self, root):
        header, rows = lines_of(root)
        write_lines(root, header, [*rows, "../../secret,,,,,0"])
        with pytest.raises(ValueError, match=rf"stage_2_train_labels.csv:{len(rows) + 1}: the path .* leads out"):
            load(root)
