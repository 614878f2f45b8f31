"""A run is known by what it predicts: other labels, masks or reports in one output folder are other runs."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import train_downstream
from adaptor_hf.evaluation import read_results
from adaptor_hf.evaluation.report import write_report
from adaptor_hf.evaluation.results import run_key
from adaptor_hf.evaluation.tables import aggregate
from adaptor_hf.evaluation.verify import verify_tree
from adaptor_hf.tasks.compare import write_comparison
from adaptor_hf.tasks.sweep import run_sweep


@pytest.fixture
def table(labelled_table, tmp_path):
    source = labelled_table(80)
    shutil.copytree(source.parent, tmp_path / "set")
    return tmp_path / "set" / source.name


@pytest.fixture
def run(table, checkpoint, tmp_path):
    def start(*more):
        train_downstream.main(
            ["--model", str(checkpoint), "--table", str(table), "--dataset_name", "phantom-boxes", "--device", "cpu",
             "--output_dir", str(tmp_path / "out"), "--num_resamples", "20", "--controls", "none", *more]
        )  # fmt: skip
        return runs_of(tmp_path / "out")

    return start


def runs_of(folder):
    return {line["run"]: line for line in read_results(folder / "runs").lines if "/" not in line["metric"]}


def change(table, edit, split="train"):
    """Edit one row of a split."""
    with open(table, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    edit(next(row for row in rows if row["split"] == split))
    rewrite(table, rows)


def rewrite(table, rows):
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def other(column):
    return lambda row: row.update({column: str(1 - int(row[column]))})


PROMPTS = {
    "classes": {name: {"positive": [f"{name} seen"], "negative": [f"no {name}"]} for name in ("effusion", "edema")}
}
WORDS = {
    "classification": ["--seeds", "0"],
    "few_shot": ["--shots", "2", "--episodes", "1"],
    "zero_shot": ["--seeds", "0"],
}


@pytest.mark.parametrize("task", WORDS)
def test_another_label_is_another_run_and_the_same_call_is_none(run, tmp_path, task):
    words = ["--task", task, *WORDS[task]]
    if task == "zero_shot":
        (tmp_path / "mine.json").write_text(json.dumps(PROMPTS))
        words += ["--prompts", str(tmp_path / "mine.json")]
    first = run(*words, "--label_column", "effusion")
    assert len(first) == 1
    assert run(*words, "--label_column", "effusion").keys() == first.keys()
    both = run(*words, "--label_column", "edema")
    assert len(both) == 2
    assert {line["positive_class"] for line in both.values()} == {"effusion", "edema"}
    assert not any(verify_tree(tmp_path / "out" / "runs").values())


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_corrected_label_cell_is_another_run(run, table, split):
    words = ["--task", "classification", "--seeds", "0", "--label_column", "effusion", "edema"]
    first = run(*words)
    change(table, other("edema"), split)
    assert len(run(*words)) == 2
    change(table, other("edema"), split)
    assert len(run(*words)) == 2
    assert first.keys() < run(*words).keys()


def test_a_label_of_the_test_part_alone_counts_for_zero_shot(run, table, tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps(PROMPTS))
    words = ["--task", "zero_shot", "--prompts", str(tmp_path / "mine.json"), "--label_column", "effusion"]
    run(*words)
    change(table, other("effusion"), "train")
    assert len(run(*words)) == 1
    change(table, other("effusion"), "test")
    assert len(run(*words)) == 2


def test_rows_in_another_order_are_the_same_run(run, table):
    words = ["--task", "classification", "--seeds", "0", "--label_column", "effusion", "--id_column", "image"]
    first = run(*words)
    with open(table, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rewrite(table, rows[::-1])
    assert run(*words).keys() == first.keys()


def test_a_corrected_label_of_an_external_set_is_another_run_of_that_set_alone(run, table, tmp_path):
    shutil.copytree(table.parent, tmp_path / "elsewhere")
    outside = tmp_path / "elsewhere" / table.name
    words = ["--task", "classification", "--seeds", "0", "--label_column", "kind", "--external", f"hospital={outside}"]
    first = run(*words)
    assert {line["test_set"] for line in first.values()} == {None, "hospital"}
    change(outside, lambda row: row.update(kind="one" if row["kind"] != "one" else "both"), "test")
    second = run(*words)
    assert [second[key]["test_set"] for key in second.keys() - first.keys()] == ["hospital"]


def test_an_end_to_end_run_knows_its_labels_too(run, table):
    words = ["--task", "classification", "--seeds", "0", "--train_tower", "finetune", "--epochs", "1"]
    run(*words, "--label_column", "effusion", "edema")
    change(table, other("edema"))
    lines = run(*words, "--label_column", "effusion", "edema").values()
    assert sorted(line["protocol"] for line in lines) == ["finetune", "finetune", "linear", "linear"]
    for protocol in ("finetune", "linear"):
        assert len({line["targets_hash"] for line in lines if line["protocol"] == protocol}) == 2
    assert len({line["targets_hash"] for line in lines}) == 2


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_corrected_mask_is_another_run_and_a_moved_one_is_not(run, table, split):
    words = ["--task", "segmentation", "--mask_column", "mask", "--seeds", "0", "--epochs", "1"]
    words += ["--label_column", "effusion", "--image_size", "28"]
    first = run(*words)

    def move(row):
        (table.parent / row["mask"]).rename(table.parent / "moved.png")
        row["mask"] = "moved.png"

    change(table, move, split)
    assert run(*words).keys() == first.keys()
    pixels = np.array(Image.open(table.parent / "moved.png"))
    pixels[:8, :8] = 255 - pixels[:8, :8]
    Image.fromarray(pixels).save(table.parent / "moved.png")
    assert len(run(*words)) == 2


def test_a_corrected_report_is_another_run(run, table):
    words = ["--task", "retrieval", "--text_column", "text"]
    first = run(*words)
    assert run(*words).keys() == first.keys()
    change(table, lambda row: row.update(text="no pleural effusion . edema seen ."), "train")
    assert run(*words).keys() == first.keys()
    change(table, lambda row: row.update(text="no pleural effusion . edema seen ."), "test")
    assert len(run(*words)) == 2


def test_seeds_and_fractions_share_their_targets_and_tables_have_no_column_of_them(run, tmp_path):
    words = ["--task", "classification", "--label_column", "effusion", "--fraction", "0.5", "1.0", "--protocol", "mgca"]
    run(*words, "--seeds", "0", "1")
    lines = read_results(tmp_path / "out/runs").lines
    assert len({line["targets_hash"] for line in lines}) == 1
    cells = [cell for cell in aggregate(lines) if cell.metric == "auroc"]
    assert sorted((cell.fields["fraction"], len(cell.values)) for cell in cells) == [(0.5, 2), (1.0, 2)]
    pages = write_report(tmp_path / "out/runs", tmp_path / "report", figures=False)
    written = [path.read_text() for path in pages if path.suffix in (".md", ".csv", ".tex")]
    assert written
    assert not any("targets" in text or lines[0]["targets_hash"][:8] in text for text in written)


def test_two_targets_in_one_folder_have_rows_that_say_so_and_are_not_compared(run, tmp_path):
    words = ["--task", "classification", "--seeds", "0"]
    run(*words, "--label_column", "effusion")
    lines = run(*words, "--label_column", "edema").values()
    pages = write_report(tmp_path / "out/runs", tmp_path / "report")
    text = "".join(path.read_text() for path in pages if path.suffix == ".md")
    for line in lines:
        assert f"{line['positive_class']}, targets {line['targets_hash'][:8]}" in text
    with pytest.raises(ValueError, match=r"edema, targets [0-9a-f]{8}, effusion, targets [0-9a-f]{8}"):
        write_comparison(tmp_path / "out", dataset="phantom-boxes")


def test_runs_without_the_digest_keep_their_key():
    fields = {"system": "Adaptor", "task": "classification", "dataset": "set", "split_hash": "0", "protocol": "linear",
              "seed": 0, "tower_saw_dataset": "no"}  # fmt: skip
    # As version 0.1 named it.
    assert run_key(fields) == run_key(fields | {"targets_hash": None}) != run_key(fields | {"targets_hash": "0"})


def test_a_job_of_a_sweep_whose_table_changed_is_not_done(table, tmp_path):
    plan = {"common": {"table": str(table), "label_column": ["effusion"], "model": "m"},
            "over": {"task": ["classification", "few_shot"]}}  # fmt: skip
    made = []
    for _ in range(2):
        run_sweep(plan, tmp_path / "out", lambda job: made.append(job.task) or "")
    assert made == ["classification", "few_shot"]
    change(table, other("effusion"))
    run_sweep(plan, tmp_path / "out", lambda job: made.append(job.task) or "")
    assert made == ["classification", "few_shot"] * 2
