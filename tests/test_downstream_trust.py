"""What must not happen in an evaluation: the faults that published ones have, tried on the script itself."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import train_downstream
from adaptor_hf import AdaptorModel
from adaptor_hf.configs import accelerate_config
from adaptor_hf.evaluation import load_predictions, read_results
from adaptor_hf.evaluation.naming import weights_digest
from adaptor_hf.evaluation.results import RESULTS_FILE
from adaptor_hf.evaluation.verify import verify_tree

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def table(labelled_table):
    return labelled_table(240)


def options(table, checkpoint, output, *more):
    return [
        "--task", "classification", "--model", str(checkpoint), "--table", str(table),
        "--dataset_name", "phantom-boxes",
        "--label_column", "effusion", "edema", "--output_dir", str(output), "--device", "cpu", "--num_resamples", "20",
        "--controls", "none", *more,
    ]  # fmt: skip


def runs_of(output):
    return {path.parent: read_results(path).lines[0] for path in sorted((output / "runs").glob(f"*/{RESULTS_FILE}"))}


@pytest.fixture(scope="module")
def few_labels(table, checkpoint, tmp_path_factory):
    output = tmp_path_factory.mktemp("few") / "out"
    train_downstream.main(options(table, checkpoint, output, "--fraction", "0.05"))
    return output


def test_five_seeds_are_five_results(few_labels):
    scores = [load_predictions(folder).columns["score"] for folder in runs_of(few_labels)]
    assert len(scores) == 5
    assert len({values.tobytes() for values in scores}) == 5


def test_predictions_on_few_labels_are_not_constant(few_labels):
    for folder, line in runs_of(few_labels).items():
        scores = load_predictions(folder).columns["score"]
        assert (np.ptp(scores, axis=0) > 1e-3).all(), line["seed"]


def test_the_checkpoint_and_its_tower_are_what_they_were(table, checkpoint, tmp_path):
    files = {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}
    train_downstream.main(
        options(table, checkpoint, tmp_path, "--seeds", "0", "--train_tower", "finetune", "--epochs", "1")
    )
    assert {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()} == files
    digest = weights_digest(AdaptorModel.from_pretrained(checkpoint, load_towers=False))
    frozen = [line for line in runs_of(tmp_path).values() if line["protocol"] == "linear"]
    assert [line["checkpoint"] for line in frozen] == [digest]


def test_a_patient_in_two_parts_stops_the_script(table, checkpoint, tmp_path):
    with open(table, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    moved = next(row for row in rows if row["split"] == "test")
    moved["patient_id"] = next(row["patient_id"] for row in rows if row["split"] == "train")
    with open(tmp_path / "leak.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    words = options(tmp_path / "leak.csv", checkpoint, tmp_path / "out", "--image_root", str(table.parent))
    with pytest.raises(ValueError, match="Patients are in several splits: 1 in both train and test"):
        train_downstream.main(words)
    assert not (tmp_path / "out" / "runs").exists()


def test_a_damaged_result_is_kept_aside_and_its_run_made_again(table, checkpoint, tmp_path, caplog):
    words = options(table, checkpoint, tmp_path, "--seeds", "0", "1")
    train_downstream.main(words)
    before = {folder.name: (folder / RESULTS_FILE).read_bytes() for folder in runs_of(tmp_path)}
    damaged = tmp_path / "runs" / sorted(before)[0]
    (damaged / RESULTS_FILE).write_bytes(before[damaged.name][:300])
    train_downstream.main(words)
    assert f"{damaged / RESULTS_FILE} is damaged" in caplog.text
    assert (damaged / f"{RESULTS_FILE}.damaged").read_bytes() == before[damaged.name][:300]
    again = {folder.name: (folder / RESULTS_FILE).read_bytes() for folder in runs_of(tmp_path)}
    values = [[(line["metric"], line["value"]) for line in map(json.loads, runs[damaged.name].splitlines())]
              for runs in (before, again)]  # fmt: skip
    assert values[0] == values[1]
    assert again.keys() == before.keys()


@pytest.mark.parametrize(("change", "message"), [
    (["--label_column", "effusionn"], "no column 'effusionn'"),
    (["--label_column", "image"], "different values in 240 rows"),
    (["--fraction", "0"], "shares in"),
    (["--seeds", "1", "1"], "different whole numbers"),
    (["--protocol", "rigorus"], "rigorus"),
    (["--recipe", "rigorus"], "rigorus"),
    (["--model", "nowhere/at/all"], "nowhere/at/all"),
    (["--image_column", "picture"], "picture"),
    (["--external", "other=missing.csv"], "missing.csv"),
    (["--do_predict", "missing.csv"], "missing.csv"),
    (["--control_model", "projections=missing"], "projections is to be in missing"),
    (["--prompts", "x", "--task", "zero_shot"], "x"),
])  # fmt: skip
def test_wrong_input_is_an_error_that_names_it(table, checkpoint, tmp_path, change, message):
    words = options(table, checkpoint, tmp_path / "out", "--seeds", "0")
    with pytest.raises((ValueError, OSError), match=message):
        train_downstream.main([*words, *change])


@pytest.mark.slow
def test_a_killed_sweep_goes_on_without_repeating_a_run(table, checkpoint, tmp_path):
    plan = {
        "common": {"model": str(checkpoint), "table": str(table), "dataset_name": "phantom-boxes", "device": "cpu",
                   "label_column": ["effusion", "edema"], "num_resamples": 20, "controls": ["tower"]},
        "over": {"task": ["classification"], "protocol": ["gloria", "mgca"]},
    }  # fmt: skip
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    command = [sys.executable, "-m", "adaptor_hf.tasks", "sweep", str(tmp_path / "plan.json")]
    command += ["--output_dir", str(tmp_path / "out")]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **quiet)
    limit = time.monotonic() + 120
    while len(runs_of(tmp_path / "out")) < 3 and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = {folder: os.stat(folder / RESULTS_FILE).st_mtime_ns for folder in runs_of(tmp_path / "out")}
    assert 3 <= len(done) < 20
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "0 of 2 jobs are done, 2 are left" in finished.stdout
    everything = runs_of(tmp_path / "out")
    assert len(everything) == 2 * 2 * 5
    assert {folder: os.stat(folder / RESULTS_FILE).st_mtime_ns for folder in done} == done
    assert not any(verify_tree(tmp_path / "out" / "runs").values())


def test_a_job_of_a_sweep_does_what_the_script_does(table, checkpoint, tmp_path, capsys):
    from adaptor_hf.tasks.__main__ import main

    torch.manual_seed(4)
    config = AdaptorModel.from_pretrained(checkpoint, load_towers=False).config
    AdaptorModel(config).save_pretrained(tmp_path / "other")
    plan = {
        "common": {"model": str(checkpoint), "more_models": [str(tmp_path / "other")], "compare": True,
                   "table": str(table), "dataset_name": "phantom-boxes", "device": "cpu", "seeds": [0],
                   "label_column": ["effusion"], "num_resamples": 20, "controls": ["none"]},
        "over": {"task": ["classification"]},
    }  # fmt: skip
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    main(["sweep", str(tmp_path / "plan.json"), "--output_dir", str(tmp_path / "out")])
    assert len({line["checkpoint"] for line in runs_of(tmp_path / "out").values()}) == 2
    assert "auroc of classification on phantom-boxes" in capsys.readouterr().out
    assert (tmp_path / "out/comparison.md").is_file()
    costs = json.loads((tmp_path / "out/costs.json").read_text())
    digests = {line["checkpoint"] for line in runs_of(tmp_path / "out").values()}
    assert digests < costs.keys()
    assert all(cost["minutes"] > 0 for cost in costs.values())
    (cost,) = [cost for name, cost in costs.items() if name not in digests]
    assert cost["gigabytes"] == 2 * 32 * 100_000 / 1e9


@pytest.mark.slow
def test_two_launched_processes_give_what_one_gives(table, checkpoint, tmp_path):
    words = ["--task", "segmentation", "--model", str(checkpoint), "--table", str(table), "--mask_column", "mask"]
    words += ["--dataset_name", "phantom-boxes", "--image_size", "28", "--seeds", "0", "--epochs", "1"]
    words += ["--device", "cpu", "--controls", "none", "--num_resamples", "20", "--output_dir"]
    train_downstream.main([*words, str(tmp_path / "one")])
    accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
    accelerate += ["--config_file", str(accelerate_config("two_cpu"))]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launched = subprocess.run([*accelerate, "train_downstream.py", *words, str(tmp_path / "two")], cwd=ROOT,
                              env=environment, capture_output=True, text=True, check=False)  # fmt: skip
    assert launched.returncode == 0, launched.stderr
    (one, first), (two, second) = (next(iter(runs_of(tmp_path / name).items())) for name in ("one", "two"))
    assert one.name == two.name
    assert first["n_train"] == second["n_train"]
    for name in ("target_pixels", "target", "image_id"):
        assert load_predictions(one).columns[name].tolist() == load_predictions(two).columns[name].tolist()
    assert first["value"] == pytest.approx(second["value"], abs=0.02)
