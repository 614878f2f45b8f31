"""RSNA: boxes, classes, masks, the splits of the reference codes, and patients by their NIH originals."""

import json

import numpy as np
import pytest
from fixtures.real_tables import real_table
from fixtures.rsna import NEGATIVE, POSITIVE, ROWS, patient, write_lovt_split, write_rsna

from adaptor_hf.data.catalog import Request, get_dataset
from adaptor_hf.data.fractions import fraction_mask
from adaptor_hf.data.public.rsna import read_match
from adaptor_hf.data.public_datasets import describe, load_public_dataset


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_rsna(tmp_path_factory.mktemp("rsna"))


def load(root, **options):
    return load_public_dataset("rsna", root, cache_dir=root.parent / "cache", **options)


def by_id(splits):
    return {row["image_id"]: row for part in splits.values() for row in part}


def read(root, task="classification", scheme="patient", **options):
    dataset = get_dataset("rsna")
    return dataset.read(Request(root, task, scheme, {**dataset.options, **options}))


class TestRows:
    def test_a_row_an_image_with_boxes_as_corners(self, tree):
        rows = by_id(load(tree, task="detection"))
        assert len(rows) == 20
        assert rows[POSITIVE]["boxes"].tolist() == [[264.0, 152.0, 477.0, 531.0], [562.0, 152.0, 818.0, 605.0]]
        assert rows[POSITIVE]["box_labels"] == [0, 0]
        assert rows[NEGATIVE]["boxes"].shape == (0, 4)
        assert rows[NEGATIVE]["labels"] == 0
        assert rows[POSITIVE]["labels"] == 1
        assert rows[NEGATIVE]["source"] == "stage_2_train_labels.csv:1"

    def test_images_are_the_compressed_dicom_files(self, tree):
        picture = next(iter(load(tree).values()))[0]["image"]
        assert picture.size == (1024, 1024)
        assert np.unique(np.asarray(picture)).tolist() == [77]

    def test_masks_are_the_filled_boxes(self, tree):
        rows = by_id(load(tree, task="segmentation"))
        expected = np.zeros((1024, 1024), bool)
        expected[152:531, 264:477] = expected[152:605, 562:818] = True
        np.testing.assert_array_equal(np.asarray(rows[POSITIVE]["mask"]) > 0, expected)
        assert not np.asarray(rows[NEGATIVE]["mask"]).any()

    def test_three_classes_and_a_patient_that_is_there_twice(self, tree):
        splits = load(tree, classes=3)
        names = splits["train"].features["labels"].names
        assert names == ["Normal", "No Lung Opacity / Not Normal", "Lung Opacity"]
        labels = {name: names[row["labels"]] for name, row in by_id(splits).items()}
        assert len(labels) == 20
        assert labels[POSITIVE] == "Lung Opacity"
        assert labels[NEGATIVE] == "No Lung Opacity / Not Normal"

    def test_images_may_be_in_the_zip(self, tmp_path):
        import zipfile

        root = write_rsna(tmp_path / "rsna")
        with zipfile.ZipFile(root / "stage_2_train_images.zip", "w") as archive:
            for path in sorted((root / "stage_2_train_images").iterdir()):
                archive.write(path, path.name)
                path.unlink()
        row = by_id(load(root, task="segmentation"))[POSITIVE]
        assert row["image"].size == row["mask"].size == (1024, 1024)


class TestPatients:
    @pytest.fixture
    def match(self):
        # Six NIH patients; the images of one are neighbours in the table.
        ids = sorted({row.split(",")[0] for row in ROWS})
        return {name: f"{place // 4 + 13:08d}_{place % 4:03d}.png" for place, name in enumerate(ids)}

    def test_without_the_table_the_user_is_told(self, tree):
        splits = load(tree)
        assert {row["patient_id"] for row in by_id(splits).values()} == {None}
        assert "patientId names an image, not a patient" in describe(splits)["notes"][0]

    @pytest.mark.parametrize("form", ["csv", "json"])
    def test_splits_go_by_nih_patient_when_the_table_is_given(self, tree, tmp_path, match, form):
        file = tmp_path / f"match.{form}"
        if form == "csv":
            lines = ["n,rsna,nih,mse", *(f"{n},{rsna},{nih},0.5" for n, (rsna, nih) in enumerate(match.items()))]
            file.write_text("\n".join(lines))
        else:
            entries = [{"subset_img_id": rsna, "img_id": nih, "SOPInstanceUID": "1"} for rsna, nih in match.items()]
            file.write_text(json.dumps(entries))
        splits = load(tree, nih_match=str(file), test_fraction=0.2, validation_fraction=0.2)
        parts = {name: set(part["patient_id"]) for name, part in splits.items()}
        assert parts["train"] | parts["validation"] | parts["test"] == {f"{number:08d}" for number in range(13, 18)}
        assert sum(map(len, parts.values())) == 5

    def test_a_leak_of_the_reference_split_is_counted_and_allowed(self, tree, tmp_path, match):
        file = tmp_path / "match.csv"
        file.write_text("a,b\n" + "\n".join(f"{rsna},{nih}" for rsna, nih in match.items()))
        report = describe(load(tree, split_scheme="mgca", nih_match=str(file)))
        assert report["overlaps"]["train and test"] > 0
        assert "2,749 of 4,003" in report["leak"]

    def test_an_image_without_an_original_is_a_patient_of_its_own(self, tree, tmp_path, match):
        del match[POSITIVE]
        file = tmp_path / "match.csv"
        file.write_text("a,b\n" + "\n".join(f"{rsna},{nih}" for rsna, nih in match.items()))
        found = read(tree, nih_match=file)
        assert found.rows.set_index("image_id").loc[POSITIVE, "patient_id"] == f"rsna-{POSITIVE}"
        assert found.notes == ["1 images are not in the table of NIH originals and count as a patient each."]

    def test_of_two_matches_the_first_is_taken(self, tmp_path):
        file = tmp_path / "match.csv"
        file.write_text(f"a,b\n{POSITIVE},00000001_000.png\n{POSITIVE},00000002_000.png\n")
        assert read_match(tmp_path, "match.csv") == {POSITIVE: "00000001_000.png"}

    def test_a_table_of_something_else_is_refused(self, tree, tmp_path):
        file = tmp_path / "match.csv"
        file.write_text("a,b\n1,2\n")
        with pytest.raises(ValueError, match=r"no column of RSNA patientIds. Found: a, b"):
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
    def test_rows_in_the_order_of_its_files_and_boxes_of_the_table(self, tree, tmp_path):
        ids = {"train": [patient(18), POSITIVE, patient(3)], "validation": [patient(4)], "test": [NEGATIVE]}
        folder = write_lovt_split(tmp_path / "lovt", ids)
        splits = load(tree, task="detection", split_scheme="lovt", split_files=str(folder))
        assert {name: part["image_id"] for name, part in splits.items()} == ids
        assert splits["train"][1]["boxes"][0].tolist() == [264.0, 152.0, 477.0, 531.0]
        assert describe(splits)["dropped"] == {"not in the split's files": 15}

    def test_without_its_files_the_error_says_where_they_are(self, tree):
        with pytest.raises(FileNotFoundError, match=r"philip-mueller/lovt\) and pass split_files=FOLDER"):
            load(tree, split_scheme="lovt")

    def test_an_id_in_two_parts_is_refused(self, tree, tmp_path):
        folder = write_lovt_split(tmp_path, {"train": [POSITIVE], "validation": [POSITIVE], "test": [NEGATIVE]})
        with pytest.raises(ValueError, match="1 ids are in the split files twice"):
            load(tree, split_scheme="lovt", split_files=str(folder))


class TestFaults:
    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            (f"{patient(30)},,,,,1", "Target 1 without a box"),
            (f"{patient(30)},1.0,2.0,3.0,,1", "Target 1 without a box"),
            (f"{patient(30)},1.0,2.0,3.0,4.0,0", "Target 0 with a box"),
            (f"{patient(30)},1000.0,2.0,30.0,4.0,1", "the box is not inside 1024 x 1024 pixels"),
            (f"{patient(30)},1.0,2.0,0.0,4.0,1", "the box is not inside 1024 x 1024 pixels"),
            (f"{patient(30)},,,,,", "no Target"),
            (",,,,,0", "no patientId"),
        ],
    )
    def test_a_malformed_row_is_counted_with_its_place(self, tmp_path, row, reason):
        found = read(write_rsna(tmp_path / "rsna", [*ROWS[:4], row] if row[0] == "," else [row, *ROWS[:4]]))
        place = 5 if row[0] == "," else 1
        assert found.faults == [f"stage_2_train_labels.csv:{place}: {reason}"]
        assert found.dropped == {"image with a malformed row": 1}
        assert len(found.rows) == 3

    def test_an_image_is_left_out_with_all_its_rows(self, tmp_path):
        found = read(write_rsna(tmp_path / "rsna", [*ROWS[:3], f"{POSITIVE},9.0,9.0,-1.0,5.0,1"]))
        assert found.rows["image_id"].tolist() == [NEGATIVE]
        assert found.dropped == {"image with a malformed row": 3}

    def test_two_targets_for_one_image(self, tmp_path):
        found = read(write_rsna(tmp_path / "rsna", [*ROWS[:2], f"{POSITIVE},,,,,0"]))
        assert found.rows["image_id"].tolist() == [NEGATIVE]
        assert all("another Target" in fault for fault in found.faults)

    def test_a_row_twice_is_one_box(self, tmp_path):
        found = read(write_rsna(tmp_path / "rsna", [*ROWS[:3], ROWS[2], ROWS[0]]))
        assert found.rows["boxes"].map(len).tolist() == [0, 2]
        assert found.dropped == {"the same row twice": 2}

    def test_a_target_that_is_none_names_file_and_row(self, tmp_path):
        with pytest.raises(ValueError, match=r"stage_2_train_labels.csv, row 1, column 'Target': found '2'"):
            read(write_rsna(tmp_path / "rsna", [f"{patient(1)},,,,,2"]))

    def test_classes_of_another_stage(self, tmp_path):
        root = write_rsna(tmp_path / "rsna", ROWS[:3])
        (root / "stage_2_detailed_class_info.csv").write_text(f"patientId,class\n{POSITIVE},Normal\n")
        with pytest.raises(ValueError, match="'Lung Opacity' is not Target 1 there"):
            read(root, classes=3)

    def test_a_name_that_leads_out_of_the_root(self, tmp_path):
        root = write_rsna(tmp_path / "rsna")
        with open(root / "stage_2_train_labels.csv", "a") as table:
            table.write("../../secret,,,,,0\n")
        with pytest.raises(ValueError, match=r"stage_2_train_labels.csv:22: the path .* leads out"):
            load(root)
