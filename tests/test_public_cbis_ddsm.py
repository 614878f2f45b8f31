"""CBIS-DDSM: masks found by their content, masses and calcifications apart, patients on one side."""

import numpy as np
import pytest
from fixtures.cbis_ddsm import CASES, SIZE, region, write_cbis
from fixtures.loaded import by_id

from adaptor_hf.data.catalog import Request, get_dataset
from adaptor_hf.data.check import check_dataset, format_check
from adaptor_hf.data.public_datasets import describe, load_public_dataset

LAYOUTS = ["tcia", "tcia-new", "jpeg"]


@pytest.fixture(scope="module", params=LAYOUTS)
def tree(request, tmp_path_factory):
    return write_cbis(tmp_path_factory.mktemp(request.param) / "cbis", request.param)


def load(root, **options):
    return load_public_dataset("cbis_ddsm", root, cache_dir=root.parent / "cache", **options)


def read(root, task="classification", **options):
    dataset = get_dataset("cbis_ddsm")
    return dataset.read(Request(root, task, "official", {**dataset.options, **options}))


class TestClassification:
    def test_a_row_an_abnormality(self, tree):
        splits = load(tree)
        rows = by_id(splits)
        assert len(rows) == sum(case[0] == "mass" for case in CASES)
        names = splits["train"].features["labels"].names
        assert names == ["BENIGN_WITHOUT_CALLBACK", "BENIGN", "MALIGNANT"]
        row = rows["mass_P_00001_LEFT_CC_1"]
        assert (row["patient_id"], row["view"], names[row["labels"]]) == ("P_00001", "CC", "MALIGNANT")
        assert names[rows["mass_P_00001_LEFT_CC_2"]["labels"]] == "BENIGN"
        assert row["image"].size == SIZE
        assert splits["test"]["image_id"][:] == ["mass_P_00003_LEFT_CC_1"]

    def test_a_row_a_mammogram_with_the_gravest_pathology(self, tree):
        splits = load(tree, unit="image", classes=2)
        rows = by_id(splits)
        assert splits["train"].features["labels"].names == ["BENIGN", "MALIGNANT"]
        assert rows["mass_P_00001_LEFT_CC"]["labels"] == 1
        assert rows["mass_P_00002_RIGHT_CC"]["labels"] == 0
        assert "mass_P_00001_LEFT_CC_1" not in rows

    def test_calcifications_have_another_header(self, tree):
        rows = by_id(load(tree, abnormality="calcification"))
        assert sorted(rows) == [f"calc_P_0000{number}_LEFT_CC_1" for number in (1, 3, 4, 5)]

    def test_together_a_patient_is_on_one_side(self, tree):
        """P_00001 is in the training table of masses and in the test table of calcifications."""
        splits = load(tree, abnormality="all")
        assert set(splits["test"]["patient_id"]) == {"P_00001", "P_00003"}
        assert len(splits["test"]) == 6
        note = "4 rows of the train tables went to test: their 2 patients are in a test table too."
        assert note in describe(splits)["notes"]


class TestMasks:
    def test_the_mask_is_found_by_its_content_and_all_abnormalities_are_joined(self, tree):
        rows = by_id(load(tree, task="segmentation"))
        assert len(rows) == 10
        tolerance = 0 if "jpeg" not in str(tree) else 20
        mask = np.asarray(rows["mass_P_00001_LEFT_CC"]["mask"]) > 0
        assert mask.shape == SIZE[::-1]
        assert (mask ^ (region(1) | region(2))).sum() <= tolerance
        mask = np.asarray(rows["mass_P_00001_LEFT_MLO"]["mask"]) > 0
        assert (mask ^ region(1)).sum() <= tolerance

    def test_a_mask_of_another_size_is_brought_to_the_mammogram(self, tree):
        row = by_id(load(tree, task="segmentation"))["mass_P_00002_RIGHT_CC"]
        assert row["mask"].size == row["image"].size == SIZE
        assert (np.asarray(row["mask"]) > 0).sum() == pytest.approx(region(1).sum(), rel=0.1)

    def test_the_check_counts_it(self, tree):
        result = check_dataset("cbis_ddsm", tree, "segmentation", cache_dir=tree.parent / "check")
        assert (result["masks_resized"], result["unreadable"], result["ok"]) == (1, 0, True)
        assert "masks brought to the size of their image: 1" in format_check(result)

    def test_a_crop_where_the_mask_should_be_is_said(self, tmp_path):
        root = write_cbis(tmp_path / "cbis")
        files = root.glob("CBIS-DDSM/Mass-Training_P_00002_RIGHT_CC_1/*/*/*.dcm")
        max(files, key=lambda path: path.stat().st_size).unlink()
        train = load(root, task="segmentation", validation_fraction=0)["train"]
        place = train["image_id"][:].index("mass_P_00002_RIGHT_CC")
        with pytest.raises(ValueError, match=r"1-\d\.dcm: not a mask. Expected a picture of two values"):
            train[place]


class TestTables:
    def test_backslashes(self, tmp_path):
        root = write_cbis(tmp_path / "cbis", backslashes=True)
        assert by_id(load(root))["mass_P_00001_LEFT_CC_1"]["image"].size == SIZE

    def test_a_pathology_that_is_none_names_file_and_row(self, tmp_path):
        root = write_cbis(tmp_path / "cbis", cases=[*CASES, ("mass", "train", "P_00099", "LEFT", "CC", 1, "UNPROVEN")])
        with pytest.raises(ValueError, match=r"mass_case_description_train_set.csv, row 11, column 'pathology'"):
            read(root)

    def test_a_row_with_an_empty_cell_is_counted(self, tmp_path):
        root = write_cbis(tmp_path / "cbis", cases=[*CASES, ("mass", "train", "", "LEFT", "CC", 1, "BENIGN")])
        found = read(root)
        assert found.faults == ["mass_case_description_train_set.csv:11: an empty cell, or a path without folders"]
        assert found.dropped == {"malformed row": 1}

    @pytest.mark.parametrize("options", [{"abnormality": "calc"}, {"unit": "row"}, {"classes": 4}])
    def test_unknown_options(self, tmp_path, options):
        with pytest.raises(ValueError, match=f"{next(iter(options))} is one of"):
            read(tmp_path, **options)
