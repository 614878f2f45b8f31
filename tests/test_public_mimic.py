"""MIMIC-CXR: layouts, reports, labels and splits."""

import shutil

import numpy as np
import pytest
from fixtures.mimic_cxr import REPORT, copy_mimic, images, report_of, table
from fixtures.phantom_trees import SIDE, N, change_table

from adaptor_hf.data import report_files
from adaptor_hf.data.labels import CHEXPERT_LABELS
from adaptor_hf.data.public_datasets import describe, load_public_dataset

IMAGES = images()
PARTS = {part: [image for image in IMAGES if image.split == part] for part in ("train", "validation", "test")}
# The first training study has the report of the format description, the second neither findings nor impression but a
# last paragraph, the third an empty file; the second test study has no report.
FIRST, PARAGRAPH, EMPTY, *_ = PARTS["train"]
MISSING = PARTS["test"][1]
REPORTS = {
    FIRST.study: REPORT,
    PARAGRAPH.study: "FINAL REPORT\n EXAMINATION:  CHEST (PORTABLE AP)\n \n Portable view. Heart size is normal.\n",
    EMPTY.study: "\n",
    MISSING.study: None,
}
WITH_TEXT = {part: [image.dicom for image in rows if image not in (EMPTY, MISSING)] for part, rows in PARTS.items()}


def load(root, task="pretraining", **options):
    # One report of the tree is missing: one row of forty-seven.
    return load_public_dataset("mimic_cxr", root, task, max_fault_share=0.05, **options)


def tree(root, layout="siblings", **options):
    return copy_mimic(root, layout, reports=REPORTS, **options)


@pytest.fixture
def root(tmp_path):
    return tree(tmp_path / "mimic")


def ids(parts):
    return {name: part["image_id"][:] for name, part in parts.items()}


class TestLayouts:
    @pytest.mark.parametrize("layout", ["siblings", "zip", "lovt"])
    @pytest.mark.parametrize("gzipped", [True, False])
    def test_every_layout_gives_the_same_rows(self, tmp_path, layout, gzipped):
        parts = load(tree(tmp_path / "mimic", layout, gzipped=gzipped))
        assert ids(parts) == WITH_TEXT
        row = parts["train"][0]
        assert row["text"].startswith("No acute cardiopulmonary process. 1.5 cm nodule")
        assert row["sentences"][2] == "The lungs are clear."
        assert row["sections"]["comparison"] == "___"
        assert (row["patient_id"], row["study_id"], row["view"]) == FIRST[1:4]
        assert row["image"].size == (SIDE, SIDE)
        assert parts["train"]["view"][:] == [image.view for image in PARTS["train"] if image != EMPTY]

    def test_views_of_all_spellings_and_none(self, root):
        def change(rows):
            for row, view in zip(rows, ("LATERAL", "LL", ""), strict=False):
                row["ViewPosition"] = view

        change_table(root / table("metadata"), change)
        rows = {row["image_id"]: row["view"] for part in load(root, "classification").values() for row in part}
        assert [rows[image.dicom] for image in IMAGES[:4]] == ["LATERAL", "LL", None, IMAGES[3].view]
        frontal = load(root, "classification", views="frontal")
        assert sorted(name for part in ids(frontal).values() for name in part) == sorted(
            image.dicom for image in IMAGES[3:]
        )

    def test_reports_elsewhere_are_named(self, tmp_path):
        root = tree(tmp_path / "mimic", "zip")
        (root / "mimic-cxr/2.0.0/mimic-cxr-reports.zip").rename(tmp_path / "elsewhere.zip")
        with pytest.raises(FileNotFoundError, match=r"The JPG release has none: .* pass reports=PATH"):
            load(root)
        assert ids(load(root, reports=str(tmp_path / "elsewhere.zip"))) == WITH_TEXT
        with pytest.raises(FileNotFoundError, match=r"No reports at .*nowhere"):
            load(root, reports="nowhere")

    def test_a_zip_that_is_cut_short_is_named(self, tmp_path):
        root = tree(tmp_path / "mimic", "zip")
        path = root / "mimic-cxr/2.0.0/mimic-cxr-reports.zip"
        path.write_bytes(path.read_bytes()[:-30])
        with pytest.raises(ValueError, match=r"mimic-cxr-reports.zip: not a whole zip"):
            load(root)

    def test_the_dicom_release(self, root):
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
        place = IMAGES.index(MISSING) + 1
        expected = rf"1 of {N - 1} rows are faulty.*\n.*csv.gz:{place}: expected a report of the study"
        with pytest.raises(ValueError, match=expected):
            load_public_dataset("mimic_cxr", root, max_fault_share=0.02)

    def test_without_findings_the_default_takes_the_last_paragraph_and_mgca_leaves_the_report_out(self, root):
        assert load(root)["train"][1]["text"] == "Portable view. Heart size is normal."
        parts = load(root, sentences="mgca")
        assert PARAGRAPH.dicom not in parts["train"]["image_id"][:]
        assert describe(parts)["dropped"]["report without findings and impression"] == 1

    def test_the_option_by_its_old_name_still_chooses_with_a_warning(self, root):
        with pytest.warns(FutureWarning, match="the option recipe is now sentences"):
            old = load(root, recipe="mgca")
        assert describe(old) == describe(load(root, sentences="mgca"))

    def test_a_report_that_is_not_text_is_a_fault(self, root):
        (root / report_of(FIRST)).write_bytes(b" FINDINGS: \xff\xfe\n")
        with pytest.raises(ValueError, match="the report is not UTF-8"):
            load_public_dataset("mimic_cxr", root, max_fault_share=0.03)

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
        reports = {image.study: f"R\n FINDINGS:  Nodule number {int(image.study)}.\n" for image in IMAGES}
        assert len(reports) < N
        root = copy_mimic(tmp_path / "mimic", reports=reports)
        change_table(root / table("metadata"), np.random.default_rng(0).shuffle)
        rows = [row for part in load_public_dataset("mimic_cxr", root).values() for row in part]
        assert len(rows) == N
        for row in rows:
            assert row["text"] == f"Nodule number {int(row['study_id'])}."


class TestSplits:
    def test_mgca_merges_validation_and_test_and_says_so(self, root, caplog):
        lateral = PARTS["train"][5]

        def change(rows):
            rows[IMAGES.index(lateral)]["ViewPosition"] = "LATERAL"

        change_table(root / table("metadata"), change)
        parts = load(root, split_scheme="mgca")
        held_out = [image.dicom for image in IMAGES if image.split != "train" and image != MISSING]
        assert parts["validation"]["image_id"][:] == parts["test"]["image_id"][:] == held_out
        assert parts["train"]["image_id"][:] == [name for name in WITH_TEXT["train"] if name != lateral.dicom]
        assert "the split 'mgca' is known to leak" in caplog.text
        assert describe(parts)["overlaps"] == {
            "validation and test": len({image.subject for image in IMAGES if image.dicom in held_out})
        }

    def test_a_patient_in_two_parts_of_the_official_split_stops_the_load(self, root):
        new = "8" * 8 + FIRST.dicom[8:]

        def change(rows):
            place = IMAGES.index(FIRST)
            rows.append(rows[place] | {"dicom_id": new} | ({"split": "test"} if "split" in rows[place] else {}))

        for name in ("metadata", "split"):
            change_table(root / table(name), change)
        folder = (root / report_of(FIRST)).with_suffix("")
        shutil.copy(folder / f"{FIRST.dicom}.jpg", folder / f"{new}.jpg")
        with pytest.raises(ValueError, match="several parts of the split 'official': 1 in train and test"):
            load(root)

    def test_an_image_in_two_parts_stops_the_load(self, root):
        place = IMAGES.index(FIRST)
        change_table(root / table("split"), lambda rows: rows.append(rows[place] | {"split": "test"}))
        with pytest.raises(ValueError, match=rf"split.csv.gz, row {N + 1}: an image that an earlier row puts"):
            load(root)

    def test_a_repeated_row_counts_once(self, root):
        for name in ("metadata", "split"):
            change_table(root / table(name), lambda rows: rows.append(rows[IMAGES.index(FIRST)]))
        parts = load(root)
        assert ids(parts) == WITH_TEXT
        assert describe(parts)["dropped"]["repeats an earlier row"] == 1

    def test_an_unknown_part_is_named(self, root):
        change_table(root / table("split"), lambda rows: rows[0].update(split="valid"))
        with pytest.raises(ValueError, match=r"row 1, column 'split': found 'valid', expected train, validate or test"):
            load(root)

    @pytest.mark.parametrize(
        ("column", "value"), [("dicom_id", "../../etc"), ("subject_id", "109.0"), ("study_id", "s1")]
    )
    def test_an_id_of_another_form_is_named(self, root, column, value):
        change_table(root / table("metadata"), lambda rows: rows[0].update({column: value}))
        with pytest.raises(ValueError, match=f"metadata.csv.gz, row 1, column '{column}': found '{value}'"):
            load(root)


class TestLabels:
    def test_labels_are_those_of_the_study_by_name_of_the_column(self, root):
        said = {
            "Atelectasis": -1.0, "Cardiomegaly": 1.0, "Edema": 0.0, "Lung Opacity": 1.0, "Pleural Effusion": 1.0,
            "Pneumothorax": 0.0, "Support Devices": 1.0,
        }  # fmt: skip

        def change(rows):
            for row in rows:
                if row["study_id"] == PARAGRAPH.study:
                    row |= {name: str(said.get(name, "")) for name in CHEXPERT_LABELS}

        change_table(root / table("chexpert"), change)
        parts = load(root, "classification")
        names = parts["train"].features["labels"].names
        row = next(row for row in parts["train"] if row["study_id"] == PARAGRAPH.study)
        assert said == {name: value for name, value in zip(names, row["labels"], strict=True) if value == value}
        assert "text" not in parts["train"].features

    def test_a_study_without_row_and_a_row_without_label_are_counted(self, root):
        without, silent = FIRST.study, PARAGRAPH.study

        def change(rows):
            rows[:] = [row for row in rows if row["study_id"] != without]
            for row in rows:
                if row["study_id"] == silent:
                    row |= dict.fromkeys(CHEXPERT_LABELS, "")

        change_table(root / table("chexpert"), change)
        parts = load(root, "classification")
        assert describe(parts)["dropped"] == {
            "study not in the table mimic-cxr-2.0.0-chexpert.csv.gz": 1,
            "no label": 1,
        }
        assert parts["train"]["image_id"][:] == [image.dicom for image in PARTS["train"][2:]]

    def test_the_radiologists_labels_of_release_2_1(self, root):
        columns = ["Airspace Opacity" if name == "Lung Opacity" else name for name in CHEXPERT_LABELS]
        cells = ["1.0" if name == "Airspace Opacity" else "" for name in columns]
        lines = [",".join(["study_id", *columns]), ",".join([MISSING.study, *cells])]
        (root / "mimic-cxr-2.1.0-test-set-labeled.csv").write_text("\n".join(lines) + "\n")
        parts = load(root, "classification", labels="radiologist")
        assert ids(parts) == {"test": [image.dicom for image in IMAGES if image.study == MISSING.study]}
        found = dict(zip(parts["test"].features["labels"].names, parts["test"][0]["labels"], strict=True))
        assert found["Lung Opacity"] == 1.0

    def test_no_report_is_needed_for_labels(self, root):
        for path in root.rglob("s*.txt"):
            path.unlink()
        assert ids(load(root, "classification")) == {
            part: [image.dicom for image in rows] for part, rows in PARTS.items()
        }

    def test_a_study_with_two_rows_is_refused(self, root):
        rows = change_table(root / table("chexpert"), lambda rows: rows.append(rows[0]))
        expected = rf"chexpert.csv.gz, row {len(rows)}: the study stands in an earlier row too"
        with pytest.raises(ValueError, match=expected):
            load(root, "classification")
