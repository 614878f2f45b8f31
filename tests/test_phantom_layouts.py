"""Phantoms in the trees of public data sets come back from `load_public_dataset` as they were drawn."""

import csv
import gzip
import json
import subprocess
import sys

import numpy as np
import pytest
from fixtures import phantom_trees
from fixtures.loaded import by_id
from fixtures.phantom_trees import SEED, N, phantom_tree
from fixtures.phantom_trees import SIDE as SMALL
from PIL import Image

import train_pretrain
from adaptor_hf.data import load_public_dataset
from adaptor_hf.data.labels import CHEXPERT_LABELS
from adaptor_hf.data.report_sentences import split_sentences
from adaptor_hf.phantom import LAYOUTS, write_layout
from adaptor_hf.phantom.generate import plan
from adaptor_hf.phantom.layout_covidx import class_of
from adaptor_hf.phantom.layout_dicom import SIZE
from adaptor_hf.phantom.layout_ids import covidx_file, covidx_patient, mimic_ids, nih_name, rsna_id, siim_id


@pytest.fixture(scope="module")
def trees():
    return {name: phantom_tree(name) for name in LAYOUTS}


@pytest.fixture(scope="module")
def plans():
    return phantom_trees.plans()


@pytest.fixture(scope="module")
def records():
    return phantom_trees.records()


def enlarged(mask: Image.Image) -> np.ndarray:
    return np.asarray(mask).repeat(SIZE // SMALL, axis=0).repeat(SIZE // SMALL, axis=1)


def test_mimic_cxr_gives_ids_splits_texts_and_pictures_back(trees, plans, records):
    dataset = load_public_dataset("mimic_cxr", trees["mimic_cxr"])
    rows = by_id(dataset)
    assert len(rows) == N
    for planned, record in zip(plans, records, strict=True):
        subject, study, dicom = mimic_ids(planned, SEED)
        row = rows[dicom]
        assert (row["patient_id"], row["study_id"]) == (subject, study)
        assert (row["view"], row["split"]) == (record["view"], record["split"])
        difference = np.asarray(row["image"], dtype=float) - np.asarray(record["image"], dtype=float)
        assert row["image"].size == (SMALL, SMALL)
        assert np.abs(difference).mean() < 4
        # The recipe puts the impression first and leaves list numbers out.
        findings, _, impression = record["text"].partition("IMPRESSION: ")
        texts = (impression, findings.removeprefix("FINDINGS: "))
        assert row["text"] == " ".join(s for text in texts for s in split_sentences(text))


LABELS = {
    "Consolidation": "consolidation", "Pleural Effusion": "effusion", "Pneumothorax": "pneumothorax",
    "Cardiomegaly": "cardiomegaly", "Lung Lesion": "nodule", "Atelectasis": "atelectasis", "Edema": "edema",
    "Support Devices": "device",
}  # fmt: skip


def test_mimic_cxr_gives_labels_back(trees, plans, records):
    rows = by_id(load_public_dataset("mimic_cxr", trees["mimic_cxr"], task="classification"))
    values = []
    for planned, record in zip(plans, records, strict=True):
        labels = dict(zip(CHEXPERT_LABELS, rows[mimic_ids(planned, SEED)[2]]["labels"], strict=True))
        for name, finding in LABELS.items():
            # What is there is said, perhaps with doubt; what is not is denied or not spoken of.
            assert (labels[name] in (1, -1)) == bool(record[finding])
            expected = planned.report.mentions.get(finding, np.nan)
            np.testing.assert_equal(labels[name], expected)
            values.append(expected)
        assert (labels["No Finding"] == 1) == all(f.name == "device" for f in planned.findings)
        assert np.isnan(labels["Fracture"])
    assert {0.0, 1.0, -1.0} < set(values)


def test_the_mimic_cxr_tree_has_the_published_form(trees):
    root = trees["mimic_cxr"]
    tables = root / "mimic-cxr-jpg/2.0.0"
    headers, dates = {}, {}
    for name in ("metadata", "split", "chexpert", "negbio"):
        with gzip.open(tables / f"mimic-cxr-2.0.0-{name}.csv.gz", "rt") as lines:
            headers[name], *table = csv.reader(lines)
        for row in table if name == "metadata" else ():
            assert 2100 < int(row[7][:4]) < 2250
            # Two images of a study are of one day.
            assert dates.setdefault(row[2], row[7]) == row[7]
    assert headers["metadata"][:5] == [
        "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition"
    ]  # fmt: skip
    assert headers["split"] == ["dicom_id", "study_id", "subject_id", "split"]
    assert headers["chexpert"][2:] == sorted(headers["chexpert"][2:])
    assert len(headers["chexpert"]) == 16
    for path in (root / "mimic-cxr/2.0.0/files").rglob("s*.txt"):
        subject = path.parent.name
        assert path.parent.parent.name == subject[:3]
        text = path.read_text()
        assert all(line.startswith(" ") for line in text.splitlines())
        assert "FINAL REPORT\n EXAMINATION:  CHEST (P" in text
        # The study's folder is in the other release, under the same name.
        assert (tables / "files" / subject[:3] / subject / path.stem).is_dir()


def test_rsna_gives_ids_labels_boxes_and_patients_back(trees, plans, records):
    match = "pneumonia-challenge-dataset-mappings_2018.json"
    dataset = load_public_dataset("rsna", trees["rsna"], task="detection", nih_match=match)
    rows, boxes = by_id(dataset), 0
    assert len(rows) == N
    for planned, record in zip(plans, records, strict=True):
        row = rows[rsna_id(planned, SEED)]
        assert row["patient_id"] == nih_name(planned)[:8]
        chosen = [label == "consolidation" for label in record["box_labels"]]
        expected = record["boxes"][chosen] * (SIZE // SMALL)
        np.testing.assert_array_equal(np.array(row["boxes"]).reshape(-1, 4), expected)
        boxes += len(expected)
        assert row["labels"] == record["consolidation"]
    assert boxes > 5
    row = next(iter(rows.values()))
    assert row["image"].size == (SIZE, SIZE)
    three = by_id(load_public_dataset("rsna", trees["rsna"], classes=3))
    for planned in plans:
        assert (three[rsna_id(planned, SEED)]["labels"] == 0) == (not planned.findings)


def test_rsna_pictures_are_those_that_were_drawn(trees, plans, records):
    rows = by_id(load_public_dataset("rsna", trees["rsna"]))
    for planned, record in list(zip(plans, records, strict=True))[:4]:
        small = rows[rsna_id(planned, SEED)]["image"].resize((SMALL, SMALL), Image.Resampling.BOX)
        assert np.abs(np.asarray(small, dtype=float) - np.asarray(record["image"])).mean() < 4


def test_siim_gives_ids_labels_and_masks_back_to_the_pixel(trees, plans, records):
    rows = by_id(load_public_dataset("siim", trees["siim"], task="segmentation"))
    assert len(rows) == N
    for planned, record in zip(plans, records, strict=True):
        row = rows[siim_id(planned, SEED)]
        assert row["labels"] == record["pneumothorax"]
        np.testing.assert_array_equal(np.asarray(row["mask"]), enlarged(record["masks"]["pneumothorax"]))
    assert sum(record["pneumothorax"] for record in records) > 3
    lines = (trees["siim"] / "stage_2_train.csv").read_text().splitlines()
    assert lines[0] == "ImageId,EncodedPixels"
    assert sum(line.endswith(",-1") for line in lines) == sum(not record["pneumothorax"] for record in records)


def test_covidx_gives_ids_labels_and_splits_back(trees, plans, records):
    dataset = load_public_dataset("covidx", trees["covidx"])
    rows = by_id(dataset)
    assert len(rows) == N
    names = next(iter(dataset.values())).features["labels"].names
    for planned, record in zip(plans, records, strict=True):
        row = rows[covidx_file(planned)]
        assert row["patient_id"] == covidx_patient(planned)
        assert names[row["labels"]] == class_of(planned)
        # A part of the training patients becomes the validation part.
        assert (row["split"] == "test") == (record["split"] == "test")
        difference = np.asarray(row["image"].convert("L"), dtype=float) - np.asarray(record["image"])
        assert np.abs(difference).mean() < 4
    endings = {path.suffix for path in (trees["covidx"] / "train").iterdir()}
    assert endings == {".png", ".jpg", ".jpeg", ".JPG", ".PNG"}


@pytest.mark.parametrize("name", LAYOUTS)
def test_equal_seeds_write_equal_files(tmp_path, name):
    again = write_layout(tmp_path / name, 6, name, image_size=SMALL, seed=SEED, num_workers=2)
    other = write_layout(tmp_path / "other", 6, name, image_size=SMALL, seed=SEED)
    files = sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    assert all((again / file).read_bytes() == (other / file).read_bytes() for file in files)


def test_ids_are_unique():
    plans = list(plan(1500, SMALL, 0))
    for make in (lambda p: mimic_ids(p, 0)[2], lambda p: rsna_id(p, 0), lambda p: siim_id(p, 0), covidx_file, nih_name):
        made = [make(planned) for planned in plans]
        assert len(set(made)) == len(made)
    studies, patients = {}, {}
    for planned in plans:
        subject, study, _ = mimic_ids(planned, 0)
        assert studies.setdefault(study, planned.study_id) == planned.study_id
        assert patients.setdefault(subject, planned.patient_index) == planned.patient_index
        assert len(subject) == len(study) == 8


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"Unknown layout 'nih'. Choose one of: covidx"):
        write_layout(tmp_path / "x", 2, "nih")
    with pytest.raises(ValueError, match="image_size must divide 1024"):
        write_layout(tmp_path / "x", 2, "rsna", image_size=100)
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="empty"):
        write_layout(tmp_path, 2, "siim", image_size=64)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_the_command_writes_a_layout(tmp_path):
    words = [sys.executable, "-m", "adaptor_hf.phantom", str(tmp_path / "tree"), "--n", "3", "--layout", "siim"]
    subprocess.run([*words, "--image_size", "64"], check=True, capture_output=True)
    assert len(load_public_dataset("siim", tmp_path / "tree")["train"]) > 0


def test_training_starts_from_a_mimic_cxr_tree(trees, tmp_path):
    output = tmp_path / "model"
    words = {
        "dataset": "mimic_cxr", "data_root": trees["mimic_cxr"], "vision_tower": "lite0", "text_tower": "minilm",
        "output_dir": output, "cache_dir": tmp_path / "embeddings", "hidden_size": 32, "num_attention_heads": 2,
        "intermediate_size": 64, "num_hidden_layers": 1, "global_batch_size": 8, "num_train_epochs": 1,
        "use_cpu": True, "report_to": "none",
    }  # fmt: skip
    train_pretrain.main([word for name, value in words.items() for word in (f"--{name}", str(value))])
    assert json.loads((output / "config.json").read_text())["vision_hidden_size"] == 1280
    assert "mimic_cxr" in (output / "README.md").read_text()
