"""train_downstream.py from a table to results: runs that are scored once, controls beside them, faults named."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from labelled_images import write_labelled_images

import train_downstream
from adaptor_hf import AdaptorForImageClassification
from adaptor_hf.evaluation import load_predictions, read_results
from adaptor_hf.evaluation.verify import verify_tree
from adaptor_hf.tasks.arguments import parse_arguments
from adaptor_hf.tasks.frozen_heads import set_aside_earlier_probes
from adaptor_hf.tasks.logistic import STRENGTHS


@pytest.fixture(scope="module")
def table(labelled_table):
    return labelled_table(80)


def options(table, checkpoint, output, *more):
    return [
        "--task", "classification", "--model", str(checkpoint), "--table", str(table),
        "--dataset_name", "phantom-boxes",
        "--label_column", "effusion", "edema", "--seeds", "0", "1", "--output_dir", str(output), "--device", "cpu",
        "--num_resamples", "50", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(table, checkpoint, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "out"
    train_downstream.main(options(table, checkpoint, output, "--fraction", "0.5", "1.0", "--controls", "tower"))
    return output


def test_every_module_fraction_and_seed_is_a_run_that_verifies(finished):
    lines = read_results(finished / "runs").lines
    runs = {(line["module"], line["fraction"], line["seed"]) for line in lines}
    # Both seeds train on all rows at 100 %, and the probe has no other chance: one run, not two equal ones.
    assert runs == {(m, f, s) for m in ("adaptor", "tower") for f, s in ((0.5, 0), (0.5, 1), (1.0, 0))}
    line = next(line for line in lines if line["module"] == "adaptor" and line["metric"] == "auroc")
    assert (line["task"], line["protocol"], line["recipe"]) == ("classification", "linear", "rigorous")
    assert (line["selected_on"], line["tower_saw_dataset"], line["input_size"]) == ("validation", "no", 28)
    assert line["head_params"] == 48 * 2 + 2
    assert line["lr"] is None
    assert line["C"] in STRENGTHS
    assert line["ci_lo"] <= line["value"] <= line["ci_hi"]
    assert line["trivial_baseline"] == 0.5
    assert list(verify_tree(finished / "runs").values()) == [[]] * 6


def test_a_head_on_bright_halves_beats_chance(finished):
    lines = read_results(finished / "runs").lines
    areas = [line["value"] for line in lines if line["metric"] == "auroc" and line["fraction"] == 1]
    assert len(areas) == 2
    assert min(areas) > 0.7


def test_predictions_name_every_test_image_with_its_patient_and_subgroups(finished, table):
    with open(table, encoding="utf-8") as file:
        expected = {r["image"]: r for r in csv.DictReader(file) if r["split"] == "test"}
    for folder in (finished / "runs").iterdir():
        columns = load_predictions(folder).columns
        assert set(columns["image_id"]) == set(expected)
        for image, patient, sex, target in zip(
            columns["image_id"], columns["patient_id"], columns["sex"], columns["target"], strict=True
        ):
            row = expected[image]
            assert (patient, sex) == (row["patient_id"], row["sex"])
            np.testing.assert_array_equal(target, [float(row["effusion"]), float(row["edema"])])


def test_results_hold_no_path(finished, table):
    text = "".join(path.read_text() for path in finished.rglob("results.jsonl"))
    assert str(table.parent) not in text
    assert "/" not in json.loads(text.splitlines()[0])["vision_tower"]


def test_finished_runs_are_not_made_again_and_missing_ones_are(finished, table, checkpoint, capsys):
    folders = sorted((finished / "runs").iterdir())
    before = {folder: (folder / "results.jsonl").stat().st_mtime_ns for folder in folders}
    (folders[0] / "results.jsonl").unlink()
    train_downstream.main(options(table, checkpoint, finished, "--fraction", "0.5", "1.0", "--controls", "tower"))
    assert "5 runs were finished before" in capsys.readouterr().out
    after = {folder: (folder / "results.jsonl").stat().st_mtime_ns for folder in folders}
    assert [folder for folder in folders if before[folder] != after[folder]] == folders[:1]


def test_runs_of_the_earlier_probe_stand_in_no_mean_with_todays(finished, tmp_path, caplog):
    folders = sorted(shutil.copytree(finished / "runs", tmp_path / "runs").iterdir())
    changes = [{}, {"protocol": "fewshot", "task": "few_shot"}, {"protocol": "mlp2"}, {"recipe": "mgca"}]
    for folder, change in zip(folders, changes, strict=False):
        lines = [json.loads(line) | change for line in (folder / "results.jsonl").read_text().splitlines()]
        for line in lines:
            line.pop("C")
        (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    set_aside_earlier_probes(tmp_path)
    left = [(folder / "results.jsonl").exists() for folder in folders]
    assert left == [False, False, True, True, True, True]
    assert all((folder / "results.jsonl.earlier_probe").exists() for folder in folders[:2])
    assert "2 runs are by the linear probe of an earlier version" in caplog.text
    caplog.clear()
    set_aside_earlier_probes(tmp_path)
    assert not caplog.records


def test_an_external_set_is_scored_by_the_same_heads(table, checkpoint, tmp_path):
    other = write_labelled_images(tmp_path / "other", 20, seed=7)
    more = ["--external", f"phantom-other={other}", "--controls", "none", "--seeds", "0"]
    train_downstream.main(options(table, checkpoint, tmp_path / "out", *more))
    lines = read_results(tmp_path / "out/runs").lines
    sets = {line["test_set"]: line["n_test"] for line in lines}
    assert set(sets) == {None, "phantom-other"}
    assert len({line["split_hash"] for line in lines}) == 2
    assert len({line["run"] for line in lines}) == 2


def test_classes_that_exclude_each_other(table, checkpoint, tmp_path):
    words = options(table, checkpoint, tmp_path / "out", "--controls", "none", "--head", "mlp2")
    place = words.index("--label_column")
    words[place + 1 : place + 3] = ["kind"]
    train_downstream.main(words)
    lines = {line["metric"]: line for line in read_results(tmp_path / "out/runs").lines}
    assert {"auroc/both", "auroc/normal", "auroc/one", "balanced_accuracy"} <= set(lines)
    assert lines["accuracy"]["protocol"] == "mlp2"


def test_a_fraction_of_one_class_is_named_and_the_other_runs_go_on(table, checkpoint, tmp_path, capsys):
    words = options(table, checkpoint, tmp_path / "out", "--controls", "none", "--fraction", "0.03", "1.0")
    place = words.index("--label_column")
    words[place + 1 : place + 3] = ["effusion"]
    train_downstream.main(words)
    shown = capsys.readouterr().out
    lines = read_results(tmp_path / "out/runs").lines
    assert {line["fraction"] for line in lines} >= {1.0}
    assert len({line["run"] for line in lines}) + shown.count("Not run: Adaptor, 3 %") == 3
    assert shown.count("larger fraction or another seed") >= 1


def test_one_class_in_the_test_part_gives_nan_with_a_sentence(table, checkpoint, tmp_path):
    with open(table, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["image"] = str(table.parent / row["image"])
        row["effusion"] = "1" if row["split"] == "test" else row["effusion"]
    with open(tmp_path / "one.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    words = options(tmp_path / "one.csv", checkpoint, tmp_path / "out", "--controls", "none", "--seeds", "0")
    train_downstream.main(words)
    lines = {line["metric"]: line for line in read_results(tmp_path / "out/runs").lines}
    assert np.isnan(lines["auroc/effusion"]["value"])
    assert "no negative" in lines["auroc/effusion"]["note"]
    assert np.isfinite(lines["auroc/edema"]["value"])


def test_predictions_of_a_table_without_labels_are_those_of_the_scored_heads(table, checkpoint, tmp_path):
    with open(table, encoding="utf-8") as file:
        rows = [{"image": str(table.parent / row["image"])} for row in csv.DictReader(file) if row["split"] == "test"]
    with open(tmp_path / "new.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["image"])
        writer.writeheader()
        writer.writerows(rows)
    more = ["--controls", "none", "--seeds", "1", "--do_predict", str(tmp_path / "new.csv"), "--head", "mlp2"]
    train_downstream.main(options(table, checkpoint, tmp_path / "out", *more))
    with open(tmp_path / "out/predictions.csv", encoding="utf-8") as file:
        written = [[float(row["effusion"]), float(row["edema"])] for row in csv.DictReader(file)]
    scored = load_predictions(next((tmp_path / "out/runs").iterdir())).columns["score"]
    np.testing.assert_allclose(written, scored, atol=1e-6)
    # The checkpoint gives the same, from pixels.
    from PIL import Image
    from transformers import pipeline

    from adaptor_hf.prediction.arguments import PredictionArguments
    from adaptor_hf.prediction.run import predict

    model = AdaptorForImageClassification.from_pretrained(tmp_path / "out/model").eval()
    assert model.config.id2label == {0: "effusion", 1: "edema"}
    pixels = model.adaptor.vision_model.processor([Image.open(row["image"]) for row in rows], return_tensors="pt")
    with torch.no_grad():
        np.testing.assert_allclose(model(**pixels).logits.sigmoid(), scored, atol=2e-3)
    arguments = PredictionArguments(
        model=str(tmp_path / "out/model"), table=str(tmp_path / "new.csv"), output_dir=str(tmp_path / "later")
    )
    predict(arguments)
    with open(tmp_path / "later/predictions.csv", encoding="utf-8") as file:
        later = [[float(row["effusion"]), float(row["edema"])] for row in csv.DictReader(file)]
    np.testing.assert_allclose(later, scored, atol=2e-3)
    found = pipeline("image-classification", model=str(tmp_path / "out/model"))(rows[0]["image"])
    assert {one["label"]: one["score"] for one in found} == pytest.approx(
        dict(zip(("effusion", "edema"), scored[0], strict=True)), abs=2e-3
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--fraction", "10"], "For 10 % pass 0.1"),
        (["--seeds", "1", "1"], "different whole numbers"),
        (["--external", "here"], "NAME=PLACE"),
        (["--task", "zero_shot", "--external", "a=b"], "--external is for --task classification or segmentation"),
        (["--task", "retrieval", "--do_predict", "x.csv"], "--do_predict is for --task classification, not retrieval"),
        (["--dataset", "rsna", "--data_root", "x"], "one of them"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(change, message):
    words = ["--task", "classification", "--model", "m", "--table", "t.csv", *change]
    with pytest.raises(ValueError, match=message):
        parse_arguments(words)
