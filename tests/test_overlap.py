"""No task tests on rows that pre-training saw, whatever the split was: every task, from the script."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from labelled_images import write_labelled_images
from synthetic import synthetic_config

import train_downstream
from adaptor_hf import AdaptorModel
from adaptor_hf.data.split_rule import SplitRule
from adaptor_hf.data.training_rows import KEY_FILE, TRAINING_ROWS_FILE, id_namespaces, write_training_rows
from adaptor_hf.embeddings.contents import content_digests
from adaptor_hf.evaluation import read_results
from adaptor_hf.evaluation.tasks import TASKS
from adaptor_hf.tasks.data import load_table
from adaptor_hf.tasks.overlap import seen_rows

NAME = "phantom-boxes"
OPTIONS = {
    "classification": ["--label_column", "effusion", "--seeds", "0"],
    "few_shot": ["--label_column", "effusion", "--shots", "1", "--episodes", "1"],
    "zero_shot": ["--label_column", "effusion", "--prompts", "PROMPTS"],
    "retrieval": ["--text_column", "text"],
    "text_understanding": ["--text_column", "text"],
    "segmentation": ["--mask_column", "mask", "--image_size", "28", "--epochs", "1", "--seeds", "0"],
}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """120 images of 60 patients without a split: who is held out is the rule's choice."""
    source = write_labelled_images(tmp_path_factory.mktemp("overlap") / "set", 120)
    with open(source, encoding="utf-8") as file:
        rows = [{name: value for name, value in row.items() if name != "split"} for row in csv.DictReader(file)]
    return write(source, rows)


def write(path: Path, rows: list[dict]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def checkpoint(table, tmp_path_factory, vision_tower, text_tower):
    """A checkpoint with the training rows that the default rule gives on the table."""
    torch.manual_seed(3)
    towers = {"vision_tower": vision_tower.spec, "text_tower": text_tower.spec}
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    pairs, rule = SplitRule().apply(load_table(table))
    config = synthetic_config(vision_hidden_size=32, text_hidden_size=32, split_rule=rule.to_dict(), **towers)
    AdaptorModel(config).save_pretrained(folder)
    trained = pairs.select([row for row, split in enumerate(pairs["split"]) if split != "test"])
    write_training_rows(folder, content_digests(trained), trained["patient_id"][:], id_namespaces(NAME, table))
    return folder


@pytest.fixture
def run(table, checkpoint, tmp_path, tmp_path_factory):
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"classes": {"effusion": {"positive": ["effusion"], "negative": ["no effusion"]}}}))

    def start(task, *more, model=checkpoint, source=table):
        cache = tmp_path_factory.getbasetemp() / "overlap-embeddings"
        words = [str(prompts) if word == "PROMPTS" else word for word in OPTIONS[task]]
        train_downstream.main(
            ["--task", task, "--model", str(model), "--table", str(source), "--dataset_name", NAME, "--output_dir",
             str(tmp_path / "out"), "--cache_dir", str(cache), "--device", "cpu", "--num_resamples", "20",
             "--controls", "none", *words, *more]
        )  # fmt: skip
        return tmp_path / "out"

    return start


def overlap_of(folder: Path, task: str) -> dict:
    """What the first result says."""
    if TASKS[task].kind is None:
        return json.loads((folder / "text_understanding.json").read_text())["pretraining_overlap"]["adaptor"]
    return read_results(folder / "runs").lines[0]


def test_every_task_is_in_this_matrix():
    assert set(OPTIONS) == set(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_a_task_follows_the_checkpoints_rule_and_says_that_nothing_was_seen(run, task, capsys):
    found = overlap_of(run(task), task)
    assert (found["pretraining_overlap"], found["seen_patients"], found["seen_images"]) == ("none", 0, 0)
    assert f"No test patient and no test image of {NAME} was in pre-training." in capsys.readouterr().out


@pytest.mark.parametrize("task", TASKS)
def test_another_split_is_refused_before_anything_is_computed_and_allowed_only_with_its_counts(run, task, capsys):
    with pytest.raises(ValueError, match=rf"{NAME} were in pre-training \(adaptor: \d+ of \d+ patients") as refused:
        run(task, "--split_seed", "5")
    assert "--allow_seen" in str(refused.value)
    assert "p1" not in str(refused.value).replace("patients", "")
    found = overlap_of(run(task, "--split_seed", "5", "--allow_seen"), task)
    assert found["pretraining_overlap"] == "found"
    assert found["seen_patients"] > 0
    assert found["seen_images"] > found["seen_patients"]
    assert "its scores are too good" in capsys.readouterr().out


@pytest.mark.parametrize("task", TASKS)
def test_without_the_file_every_result_says_unknown(run, task, checkpoint, tmp_path, capsys):
    copy = tmp_path / "model"
    shutil.copytree(checkpoint, copy)
    (copy / TRAINING_ROWS_FILE).unlink()
    found = overlap_of(run(task, model=copy), task)
    assert (found["pretraining_overlap"], found["seen_patients"], found["seen_images"]) == ("unknown", None, None)
    assert f"Overlap of {NAME} with pre-training: unknown." in capsys.readouterr().out


def test_without_the_key_copies_of_images_are_still_found(run, checkpoint, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(checkpoint, copy)
    (copy / KEY_FILE).unlink()
    assert overlap_of(run("classification", model=copy), "classification")["pretraining_overlap"] == "unknown"
    with pytest.raises(ValueError, match=r"an unknown number of \d+ patients, \d+ of \d+ images"):
        run("classification", "--split_seed", "5", model=copy)


def test_training_patients_under_other_spellings_and_other_images_are_found(run, table, tmp_path):
    """The table's own patients, written otherwise, on images that no pre-training saw."""
    other = write_labelled_images(tmp_path / "other", 120, seed=9)
    with open(other, encoding="utf-8") as file:
        rows = [
            row | {"patient_id": f" P{int(row['patient_id'][1:])} ", "split": row["split"]}
            for row in csv.DictReader(file)
        ]
    write(other, rows)
    with pytest.raises(ValueError, match=r"adaptor: \d+ of \d+ patients, 0 of \d+ images"):
        run("classification", source=other)
    # The same ids of another place are other people.
    found = overlap_of(run("classification", "--id_namespace", "another-hospital", source=other), "classification")
    assert (found["pretraining_overlap"], found["seen_images"]) == ("unknown", 0)


def test_training_images_under_new_ids_are_found(run, table, tmp_path):
    with open(table, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row |= {"patient_id": f"new-{number // 2}", "split": "train" if number % 4 < 2 else "test"}
        for column in ("image", "mask"):
            shutil.copy(table.parent / row[column], tmp_path / f"copy-{number}-{column}.png")
            row[column] = f"copy-{number}-{column}.png"
    copies = write(tmp_path / "copies.csv", rows)
    with pytest.raises(ValueError, match=r"adaptor: 0 of \d+ patients, \d+ of \d+ images"):
        run("classification", source=copies)


def test_a_set_is_disjoint_only_from_all_that_a_model_was_trained_on(tmp_path):
    """RSNA's images are NIH's: that MIMIC-CXR was trained on too says nothing of them."""
    test = load_table(write_labelled_images(tmp_path / "set", 8))
    images = np.array([b"0" * 16], "S16")
    for names, status in ((("mimic_cxr",), "none"), (("mimic_cxr", "nih_chestxray14"), "unknown")):
        write_training_rows(tmp_path, images, ["1"], names)
        assert seen_rows(test, {"adaptor": str(tmp_path)}, name="rsna")["adaptor"].status == status


def test_an_external_set_is_checked_too(run, table):
    with pytest.raises(ValueError, match="Rows of the test part of elsewhere were in pre-training"):
        run("classification", "--external", f"elsewhere={table}")


def test_byte_copies_across_the_parts_of_a_table_stop_a_task_or_are_dropped(run, table, tmp_path, caplog):
    with open(table, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    splits = dict(
        zip(*(SplitRule().apply(load_table(table))[0][name][:] for name in ("image_id", "split")), strict=True)
    )
    held_out = next(row for row in rows if splits[row["image"]] == "test")
    trained = next(row for row in rows if splits[row["image"]] == "train")
    shutil.copytree(table.parent, tmp_path / "set")
    shutil.copy(table.parent / held_out["image"], tmp_path / "set" / trained["image"])
    for task in ("classification", "few_shot", "segmentation"):
        with pytest.raises(ValueError, match="1 images are in several splits as byte copies"):
            run(task, source=tmp_path / "set" / "metadata.csv")
    lines = read_results(
        run("classification", "--duplicates", "drop", source=tmp_path / "set" / "metadata.csv") / "runs"
    ).lines
    number = sum(split == "train" for split in splits.values())
    assert {line["n_train"] for line in lines} == {number - 1}
    caplog.clear()
    run("few_shot", "--duplicates", "keep", source=tmp_path / "set" / "metadata.csv")
    assert "They stay: results are too good." in caplog.text


def test_digests_come_from_the_cache_where_a_file_was_embedded(table, tmp_path, tiny_dinov2, monkeypatch):
    from adaptor_hf.embeddings import build_cache, contents

    dataset = load_table(table).select(range(8))
    plain = content_digests(dataset)
    build_cache(dataset, vision_tower=str(tiny_dinov2), cache_dir=tmp_path / "cache")
    monkeypatch.setattr(contents, "content_key", lambda path: pytest.fail("the file was read again"))
    np.testing.assert_array_equal(content_digests(dataset, tmp_path / "cache"), plain)


def test_reports_and_comparisons_say_what_was_seen_and_set_nothing_of_it_in_bold(run, tmp_path, checkpoint):
    from adaptor_hf.evaluation.report import write_report

    torch.manual_seed(5)
    config = AdaptorModel.from_pretrained(checkpoint, load_towers=False).config
    AdaptorModel(config).save_pretrained(tmp_path / "other")
    words = ["--split_seed", "5", "--allow_seen", "--more_models", str(tmp_path / "other"), "--compare"]
    folder = run("classification", *words)
    seen = next(line for line in read_results(folder / "runs").lines if line["pretraining_overlap"] == "found")
    counts = f"{seen['seen_patients']} patients, {seen['seen_images']} images"
    assert counts in (folder / "comparison.md").read_text()
    assert "its scores are too good" in (folder / "comparison.md").read_text()
    write_report(folder / "runs", tmp_path / "report")
    pages = {path.suffix: path.read_text() for path in (tmp_path / "report").glob("**/metrics_*")}
    pages[".page"] = (tmp_path / "report" / "phantom.md").read_text()
    assert {".csv", ".tex", ".page"} <= pages.keys()
    for suffix in (".csv", ".page"):
        assert counts in pages[suffix], suffix
    for suffix in (".tex", ".page"):
        assert "its scores are too good" in " ".join(pages[suffix].split()), suffix
    assert "Overlap of phantom-boxes with pre-training: unknown." in pages[".page"]


def test_options_of_a_split_that_the_table_has_are_said_to_change_nothing(run, tmp_path, caplog):
    own = write_labelled_images(tmp_path / "own", 120, seed=4)
    run("retrieval", "--split_seed", "5", "--id_namespace", "elsewhere", source=own)
    assert "The table has splits of its own: --split_seed changes none of them." in caplog.text
