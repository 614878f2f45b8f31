"""NIH ChestX-ray14: labels of both releases, bracketed headers, boxes as targets and masks, splits."""

import numpy as np
import pytest
from fixtures.loaded import by_id
from fixtures.lovt import write_lovt_split
from fixtures.nih_chestxray14 import BOXES, ROWS, write_nih
from fixtures.real_tables import real_table

from adaptor_hf.data.catalog import Request, get_dataset
from adaptor_hf.data.public.nih_chestxray14 import LABELS
from adaptor_hf.data.public_datasets import describe, load_public_dataset


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_nih(tmp_path_factory.mktemp("nih") / "NIH")


def load(root, **options):
    return load_public_dataset("nih_chestxray14", root, cache_dir=root.parent / "cache", **options)


def read(root, task="classification", scheme="official", **options):
    dataset = get_dataset("nih_chestxray14")
    return dataset.read(Request(root, task, scheme, {**dataset.options, **options}))


class TestLabels:
    def test_rows(self, tree):
        splits = load(tree)
        rows = by_id(splits)
        assert len(rows) == len(ROWS)
        assert splits["train"].features["labels"].names == LABELS
        row = rows["00000001_001"]
        positive = {name for name, value in zip(LABELS, row["labels"], strict=True) if value == 1}
        assert positive == {"Cardiomegaly", "Emphysema"}
        assert (row["patient_id"], row["view"], row["sex"], row["age"]) == ("00000001", "PA", "M", 58)
        assert set(rows["00000002_000"]["labels"]) == {0.0}
        assert rows["00000002_000"]["image"].mode == "L"

    @pytest.mark.parametrize("layout", ["images", "kaggle", "lovt"])
    @pytest.mark.parametrize("release", [2017, 2020])
    def test_layouts_and_releases(self, tmp_path, layout, release):
        rows = by_id(load(write_nih(tmp_path / "NIH", ROWS[:6], BOXES[:2], release=release, layout=layout)))
        assert len(rows) == 6
        assert rows["00000001_001"]["image"].size == (1024, 1024)

    def test_ages_of_the_first_release(self, tmp_path):
        rows = [ROWS[0].replace(",58,", ",058Y,"), ROWS[1].replace(",81,", ",414Y,"), *ROWS[2:]]
        found = read(write_nih(tmp_path / "NIH", rows))
        assert found.rows["age"].iloc[0] == 58
        assert np.isnan(found.rows["age"].iloc[1])
        assert found.notes == ["1 ages are none (negative, over 130 years, or no age at all) and count as missing."]

    def test_ages_of_infants_of_the_first_release(self, tmp_path):
        rows = [ROWS[0].replace(",58,", ",018M,"), ROWS[1].replace(",81,", ",014D,"), *ROWS[2:]]
        ages = read(write_nih(tmp_path / "NIH", rows)).rows["age"]
        assert ages.iloc[0] == 1.5
        assert ages.iloc[1] == pytest.approx(14 / 365.25)
        assert ages.iloc[2] == 69

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            (ROWS[0].replace("Cardiomegaly|", "No Finding|"), "No Finding beside a finding"),
            (ROWS[0].replace("Cardiomegaly|Emphysema", ""), "no label"),
            (ROWS[0].replace("00000001_001.png", "1_001.png"), "the image's name is not"),
        ],
    )
    def test_a_malformed_row_is_counted_with_its_place(self, tmp_path, row, reason):
        found = read(write_nih(tmp_path / "NIH", [row, *ROWS[1:]]))
        assert len(found.faults) == 1
        assert found.faults[0].startswith(f"Data_Entry_2017_v2020.csv:1: {reason}")
        assert found.dropped == {"malformed row": 1}
        assert len(found.rows) == len(ROWS) - 1

    def test_a_label_that_is_none_names_file_and_row(self, tmp_path):
        rows = [*ROWS[:2], ROWS[2].replace("Infiltration", "Infiltrate"), *ROWS[3:]]
        with pytest.raises(ValueError, match=r"v2020.csv, row 3, column 'Finding Labels': unknown label 'Infiltrate'"):
            read(write_nih(tmp_path / "NIH", rows))


class TestBoxes:
    @pytest.mark.parametrize("commas", ["", ",,,"])
    def test_the_bracketed_header_with_and_without_commas(self, tmp_path, commas):
        root = write_nih(tmp_path / "NIH", commas=commas)
        splits = load(root, task="detection", split_scheme="patient")
        rows = by_id(splits)
        assert len(rows) == 10
        names = splits["train"].features["box_labels"].feature.names
        row = rows["00013118_008"]
        assert [names[code] for code in row["box_labels"]] == ["Atelectasis", "Infiltration"]
        x, y, width, height = map(float, BOXES[0].split(",")[2:])
        np.testing.assert_allclose(row["boxes"][0], [x, y, x + width, y + height], rtol=1e-6)
        assert row["boxes"][1].tolist() == [600, 100, 800, 400]

    def test_masks_of_all_findings_or_one(self, tree):
        row = by_id(load(tree, task="segmentation", split_scheme="patient"))["00013118_008"]
        mask = np.asarray(row["mask"]) > 0
        expected = np.zeros((1024, 1024), bool)
        expected[547:626, 225:312] = expected[100:400, 600:800] = True
        np.testing.assert_array_equal(mask, expected)
        one = by_id(load(tree, task="segmentation", split_scheme="patient", finding="Infiltration"))
        expected[547:626, 225:312] = False
        np.testing.assert_array_equal(np.asarray(one["00013118_008"]["mask"]) > 0, expected)
        assert not np.asarray(one["00000101_000"]["mask"]).any()
        with pytest.raises(ValueError, match="finding is one of Atelectasis"):
            load(tree, task="segmentation", split_scheme="patient", finding="Hernia")
        with pytest.raises(ValueError, match="it is for task='segmentation'"):
            load(tree, finding="Mass")

    def test_the_official_test_list_has_them_all_and_the_user_is_told(self, tree):
        splits = load(tree, task="detection")
        assert list(splits) == ["test"]
        assert any("take split_scheme='patient'" in note for note in describe(splits)["notes"])

    @pytest.mark.parametrize(
        ("box", "reason"),
        [
            ("00000101_000.png,Effusion,10,10,0,5", "the box is empty or outside 1024 x 1024 pixels"),
            ("00000101_000.png,Effusion,1100,10,5,5", "the box is empty or outside 1024 x 1024 pixels"),
            ("00000999_000.png,Effusion,10,10,5,5", "the image is not in the table of labels"),
        ],
    )
    def test_a_malformed_box_is_counted_with_its_place(self, tmp_path, box, reason):
        found = read(write_nih(tmp_path / "NIH", boxes=[box, *BOXES]), "detection", "patient")
        assert found.faults == [f"BBox_List_2017.csv:1: {reason}"]
        assert not set(found.rows["image_id"]) & {"00000101_000"} or "999" in box

    def test_another_class_names_file_and_row(self, tmp_path):
        with pytest.raises(ValueError, match=r"BBox_List_2017.csv, row 1, column 'Finding Label': found 'Hernia'"):
            read(write_nih(tmp_path / "NIH", boxes=["00000101_000.png,Hernia,1,1,5,5"]), "detection", "patient")


class TestSplits:
    def test_official(self, tree):
        splits = load(tree)
        tested = {row.split(",")[0][:8] for row in BOXES} | {"00000119"}
        assert set(splits["test"]["patient_id"]) == tested
        assert not set(splits["train"]["patient_id"]) & set(splits["validation"]["patient_id"])

    def test_an_image_in_no_list_is_counted(self, tmp_path):
        root = write_nih(tmp_path / "NIH")
        names = (root / "train_val_list.txt").read_text().split()
        (root / "train_val_list.txt").write_text("\n".join(names[1:]))
        assert describe(load(root))["dropped"] == {"in no part of the split 'official'": 1}

    def test_an_image_in_both_lists_is_refused(self, tmp_path):
        root = write_nih(tmp_path / "NIH")
        with open(root / "test_list.txt", "a") as lines:
            lines.write((root / "train_val_list.txt").read_text().split()[0])
        with pytest.raises(ValueError, match="an image is in the list of train too"):
            load(root)

    def test_lists_of_chexnet(self, tree, tmp_path):
        flags = " ".join("0" * 14)
        for name, lines in {
            "train_list": ["images_012/00000001_001.png " + flags],
            "val_list": [f"00000002_000.png {flags}"],
            "test_list": [f"00013118_008.png {flags}"],
        }.items():
            (tmp_path / f"{name}.txt").write_text("\n".join(lines))
        splits = load(tree, split_scheme="chexnet", split_files=str(tmp_path))
        ids = {name: part["image_id"][:] for name, part in splits.items()}
        assert ids == {"train": ["00000001_001"], "validation": ["00000002_000"], "test": ["00013118_008"]}

    def test_lovt_adds_images_without_boxes(self, tree, tmp_path):
        ids = {"train": ["00000101_000", "00000102_000"], "validation": ["00013118_008"], "test": ["00000104_001"]}
        folder = write_lovt_split(tmp_path, ids)
        splits = load(tree, task="detection", split_scheme="lovt", split_files=str(folder))
        assert [len(row["boxes"]) for row in splits["train"]] == [1, 0]
        assert splits["validation"][0]["box_labels"] == [0, 3]


class TestRealTables:
    @pytest.fixture(scope="class")
    def real(self, tmp_path_factory):
        root = tmp_path_factory.mktemp("real")
        for name in ("Data_Entry_2017_v2020.csv", "BBox_List_2017.csv"):
            real_table(f"{name}.gz", root / name)
        return root

    def test_counts_of_labels(self, real):
        found = read(real, scheme="patient")
        counts = found.rows[LABELS].sum().astype(int).to_dict()
        assert counts == {
            "Infiltration": 19894, "Effusion": 13317, "Atelectasis": 11559, "Nodule": 6331, "Mass": 5782,
            "Pneumothorax": 5302, "Consolidation": 4667, "Pleural_Thickening": 3385, "Cardiomegaly": 2776,
            "Emphysema": 2516, "Edema": 2303, "Fibrosis": 1686, "Pneumonia": 1431, "Hernia": 227,
        }  # fmt: skip
        assert (found.rows[LABELS].sum(axis=1) == 0).sum() == 60361
        assert found.rows["patient_id"].nunique() == 30805
        assert found.rows["view"].value_counts().to_dict() == {"PA": 67310, "AP": 44810}
        assert not found.faults

    def test_counts_of_boxes(self, real):
        rows = read(real, "detection", "patient").rows
        assert (len(rows), rows["patient_id"].nunique(), rows["boxes"].map(len).sum()) == (880, 726, 984)
        counts = rows["box_labels"].explode().value_counts().to_dict()
        assert counts == {0: 180, 2: 153, 1: 146, 3: 123, 6: 120, 7: 98, 4: 85, 5: 79}
        # Every box's finding is among the labels of its image.
        for classes, labels in zip(rows["box_labels"], rows[LABELS].to_numpy(), strict=True):
            assert all(labels[code] == 1 for code in classes)
