"""MIMIC-CXR: layouts, reports, labels and splits."""

import numpy as np
import pytest
from fixtures.mimic_cxr import IMAGES, write_mimic_cxr

from adaptor_hf.data import report_files
from adaptor_hf.data.public_datasets import describe, load_public_dataset


def load(root, task="pretraining", **options):
    # One report of the tree is missing: one row of eight.
    return load_public_dataset("mimic_cxr", root, task, max_fault_share=0.2, **options)


@pytest.fixture
def root(tmp_path):
    return write_mimic_cxr(tmp_path / "mimic")


class TestLayouts:
    @pytest.mark.parametrize("layout", ["siblings", "zip", "lovt"])
    @pytest.mark.parametrize("gzipped", [True, False])
    def test_every_layout_gives_the_same_rows(self, tmp_path, layout, gzipped):
        parts = load(write_mimic_cxr(tmp_path / "mimic", layout=layout, gzipped=gzipped))
        assert {name: part["image_id"][:] for name, part in parts.items()} == {
            "train": [IMAGES[0][0], IMAGES[1][0], IMAGES[2][0]],
            "validation": [IMAGES[4][0], IMAGES[5][0]],
            "test": [IMAGES[6][0]],
        }
        row = parts["train"][0]
        assert row["text"].startswith("No acute cardiopulmonary process. 1.5 cm nodule")
        assert row["sentences"][2] == "The lungs are clear."
        assert row["sections"]["comparison"] == "___"
        assert (row["patient_id"], row["study_id"], row["view"]) == ("10999991", "50999991", "PA")
        assert row["image"].size == (25, 30)
        assert parts["train"]["view"][:] == ["PA", "LATERAL", None]

    def test_reports_elsewhere_are_named(self, tmp_path):
        root = write_mimic_cxr(tmp_path / "mimic", layout="zip")
        (root / "mimic-cxr/2.0.0/mimic-cxr-reports.zip").rename(tmp_path / "elsewhere.zip")
        with pytest.raises(FileNotFoundError, match=r"The JPG release has none: .* pass reports=PATH"):
            load(root)
        assert len(load(root, reports=str(tmp_path / "elsewhere.zip"))["train"]) == 3
        with pytest.raises(FileNotFoundError, match=r"No reports at .*nowhere"):
            load(root, reports="nowhere")

    def test_a_zip_that_is_cut_short_is_named(self, tmp_path):
        root = write_mimic_cxr(tmp_path / "mimic", layout="zip")
        path = root / "mimic-cxr/2.0.0/mimic-cxr-reports.zip"
        path.write_bytes(path.read_bytes()[:-30])
        with pytest.raises(ValueError, match=r"mimic-cxr-reports.zip: not a whole zip"):
            load(root)

    def test_the_dicom_release(self, tmp_path):
        root = write_mimic_cxr(tmp_path / "mimic")
        for path in root.glob("files/*/*/*/*.jpg"):
            path.rename(path.with_suffix(".dcm"))
        train = load(root, images="dicom")["train"]
        assert train.cast_column("image", type(train.features["image"])(decode=False))[0]["image"]["path"].endswith(
            ".dcm"
        )


class TestReports:
    def test_missing_and_empty_reports_are_counted_apart(self, root):
        report = describe(load(root))
        assert report["dropped"] == {"empty report": 1}
        assert report["faults"] == 1
        with pytest.raises(ValueError, match=r"1 of 7 rows are faulty.*\n.*csv.gz:8: expected a report of the study"):
            load_public_dataset("mimic_cxr", root)

    def test_without_findings_the_default_takes_the_last_paragraph_and_mgca_leaves_the_report_out(self, root):
        assert load(root)["train"][2]["text"] == "Portable view. Heart size is normal."
        parts = load(root, sentences="mgca")
        assert IMAGES[2][0] not in parts["train"]["image_id"][:]
        assert describe(parts)["dropped"]["report without findings and impression"] == 1

    def test_the_option_by_its_old_name_still_chooses_with_a_warning(self, root):
        with pytest.warns(FutureWarning, match="the option recipe is now sentences"):
            old = load(root, recipe="mgca")
        assert describe(old) == describe(load(root, sentences="mgca"))

    def test_a_report_that_is_not_text_is_a_fault(self, root):
        (root / "files/p10/p10999991/s50999991.txt").write_bytes(b" FINDINGS: \xff\xfe\n")
        with pytest.raises(ValueError, match="the report is not UTF-8"):
            load_public_dataset("mimic_cxr", root, max_fault_share=0.2)

    def test_several_processes_read_the_same(self, tmp_path, monkeypatch):
        paths = []
        for number in range(40):
            paths.append(str(tmp_path / f"{number}.txt"))
            (tmp_path / f"{number}.txt").write_text(f"R\n FINDINGS:  Nodule {number}.\n")
        paths[7] = None
        alone = report_files.read_reports(paths, "default", ("findings",), 1)
        monkeypatch.setattr(report_files, "_FEW", 1)
        monkeypatch.setattr(report_files, "_CHUNK", 3)
        together = report_files.read_reports(paths, "default", ("findings",), 2)
        assert together.to_pylist() == alone.to_pylist()
        assert together["sentences"][8].as_py() == ["Nodule 8."]
        assert together["problem"][7].as_py() == "missing"

    def test_text_of_many_rows_comes_from_the_right_study(self, tmp_path, monkeypatch):
        monkeypatch.setattr(report_files, "_CHUNK", 4)
        images, reports = [], {}
        for number in range(30):
            study = f"50{number:06}"
            reports[study] = f"R\n FINDINGS:  Nodule number {number}.\n"
            for view in range(1 + number % 3):
                dicom = f"{number:08x}-{view:08x}-" + IMAGES[0][0][18:]
                part = ("train", "test", "validate")[number % 3]
                images.append((dicom, f"10{number:06}", study, "PA", part))
        generator = np.random.default_rng(0)
        images = [images[place] for place in generator.permutation(len(images))]
        root = write_mimic_cxr(tmp_path / "mimic", images=images, reports=reports)
        for part in load_public_dataset("mimic_cxr", root).values():
            for row in part.select_columns(["study_id", "text"]):
                assert row["text"] == f"Nodule number {int(row['study_id'][2:])}."


class TestSplits:
    def test_mgca_merges_validation_and_test_and_says_so(self, root, caplog):
        parts = load(root, split_scheme="mgca")
        assert parts["validation"]["image_id"][:] == parts["test"]["image_id"][:] == [IMAGES[5][0], IMAGES[6][0]]
        assert parts["train"]["view"][:] == ["PA"]
        assert "the split 'mgca' is known to leak" in caplog.text
        assert describe(parts)["overlaps"] == {"validation and test": 2}

    def test_a_patient_in_two_parts_of_the_official_split_stops_the_load(self, tmp_path):
        images = [*IMAGES, ("8" + IMAGES[0][0][1:], "10999991", "50999991", "AP", "test")]
        with pytest.raises(ValueError, match="several parts of the split 'official': 1 in train and test"):
            load(write_mimic_cxr(tmp_path / "mimic", images=images))

    def test_an_image_in_two_parts_stops_the_load(self, tmp_path):
        images = [*IMAGES, (*IMAGES[0][:4], "test")]
        with pytest.raises(ValueError, match=r"split.csv.gz, row 9: an image that an earlier row puts"):
            load(write_mimic_cxr(tmp_path / "mimic", images=images))

    def test_a_repeated_row_counts_once(self, tmp_path):
        parts = load(write_mimic_cxr(tmp_path / "mimic", images=[*IMAGES, IMAGES[0]]))
        assert len(parts["train"]) == 3
        assert describe(parts)["dropped"]["repeats an earlier row"] == 1

    def test_an_unknown_part_is_named(self, tmp_path):
        images = [(*IMAGES[0][:4], "valid"), *IMAGES[1:]]
        with pytest.raises(ValueError, match=r"row 1, column 'split': found 'valid', expected train, validate or test"):
            load(write_mimic_cxr(tmp_path / "mimic", images=images))

    @pytest.mark.parametrize(
        ("place", "value", "column"), [(0, "../../etc", "dicom_id"), (1, "109.0", "subject_id"), (2, "s1", "study_id")]
    )
    def test_an_id_of_another_form_is_named(self, tmp_path, place, value, column):
        images = [tuple(value if at == place else cell for at, cell in enumerate(IMAGES[0])), *IMAGES[1:]]
        root = write_mimic_cxr(tmp_path / "mimic", images=IMAGES)
        table = root / "mimic-cxr-2.0.0-metadata.csv.gz"
        table.unlink()
        fields = [images[0][0], images[0][1], images[0][2], "CHEST", "PA", *["x"] * 7]
        names = "dicom_id,subject_id,study_id,a,ViewPosition,b,c,d,e,f,g,h"
        table.with_suffix("").write_text(f"{names}\n{','.join(fields)}\n")
        with pytest.raises(ValueError, match=f"metadata.csv, row 1, column '{column}': found '{value}'"):
            load(root)


class TestLabels:
    def test_labels_are_those_of_the_study_by_name_of_the_column(self, root):
        parts = load(root, "classification")
        names = parts["train"].features["labels"].names
        row = next(row for row in parts["train"] if row["study_id"] == "50999992")
        found = {name: value for name, value in zip(names, row["labels"], strict=True) if value == value}
        assert found == {
            "Atelectasis": -1.0, "Cardiomegaly": 1.0, "Edema": 0.0, "Lung Opacity": 1.0, "Pleural Effusion": 1.0,
            "Pneumothorax": 0.0, "Support Devices": 1.0,
        }  # fmt: skip
        assert "text" not in parts["train"].features

    def test_a_study_without_row_and_a_row_without_label_are_counted(self, root):
        assert describe(load(root, "classification"))["dropped"] == {
            "study not in the table mimic-cxr-2.0.0-chexpert.csv.gz": 1,
            "no label": 1,
        }

    def test_the_radiologists_labels_of_release_2_1(self, root):
        parts = load(root, "classification", labels="radiologist")
        assert list(parts) == ["test"]
        found = dict(zip(parts["test"].features["labels"].names, parts["test"][0]["labels"], strict=True))
        assert found["Lung Opacity"] == 1.0

    def test_no_report_is_needed_for_labels(self, tmp_path):
        root = write_mimic_cxr(tmp_path / "mimic", reports={})
        assert len(load(root, "classification")["train"]) == 4

    def test_a_study_with_two_rows_is_refused(self, root):
        path = root / "mimic-cxr-2.0.0-chexpert.csv.gz"
        path.unlink()
        header = "subject_id,study_id,Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,"
        header += "Lung Lesion,Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,"
        rows = ["10999991,50999991" + "," * 14] * 2
        path.with_suffix("").write_text("\n".join([header + "Support Devices", *rows]) + "\n")
        with pytest.raises(ValueError, match=r"chexpert.csv, row 2: the study stands in an earlier row too"):
            load(root, "classification")
