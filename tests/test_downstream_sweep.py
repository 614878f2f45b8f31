"""Sweeps go on where they stopped, comparisons pair what belongs together, and the page says "no difference"."""

import json
import os
import signal

import numpy as np
import pytest
import yaml
from PIL import Image

from adaptor_hf.configs import find_recipe, list_recipes
from adaptor_hf.evaluation import classification_predictions, read_results, write_run
from adaptor_hf.tasks.__main__ import main
from adaptor_hf.tasks.arguments import parse_arguments
from adaptor_hf.tasks.compare import (
    candidates,
    compare_pairs,
    finding,
    recommend,
    remember_costs,
    write_comparison,
)
from adaptor_hf.tasks.sweep import STATE_FILE, run_sweep, sweep_jobs
from adaptor_hf.training.interruption import EXIT_REQUEUE
from adaptor_hf.training.run_folder import REQUEUE

PLAN = {
    "common": {"table": "t.csv", "label_column": ["x"]},
    "over": {"model": ["a", "b"], "data": [{"task": "classification"}, {"task": "few_shot"}]},
    "by_task": {"few_shot": {"episodes": 2}},
}


def test_every_combination_is_a_job_and_tasks_have_their_own_options():
    jobs = list(sweep_jobs(PLAN))
    assert [(job["model"], job["task"], job.get("episodes")) for job in jobs] == [
        ("a", "classification", None), ("a", "few_shot", 2), ("b", "classification", None), ("b", "few_shot", 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "wrong", [{"protocol": "nonsense"}, {"controls": ["nonsense"]}, {"task": "zero_shot"}, {"task": "segmentation"}]
)
def test_a_job_that_cannot_be_meant_stops_the_sweep_before_the_first_one(wrong, tmp_path):
    started = []
    plan = {
        "common": {"table": "t.csv", "label_column": ["x"], "model": "a", "task": "classification"},
        "over": {"data": [{"seeds": [0]}, wrong]},
    }
    with pytest.raises(ValueError, match=r"nonsense|--prompts|--mask_column"):
        run_sweep(plan, tmp_path, started.append)
    assert started == []


@pytest.mark.parametrize("name", list_recipes("downstream"))
def test_recipes_of_the_package_are_understood(name):
    content = yaml.safe_load(find_recipe(name, "downstream").read_text(encoding="utf-8"))
    options = parse_arguments(["--recipe", name, "--model", "m", "--data_root", "r", "--output_dir", "o"])
    assert all(getattr(options, key) == value for key, value in content.items())


def test_the_plan_of_the_package_is_every_pair_of_towers_on_every_task(capsys):
    main(["sweep", "tower_pairs", "--output_dir", "nowhere", "--dry_run"])
    assert f"0 of {15 * 4} jobs are done, {15 * 4} are left" in capsys.readouterr().out


def test_an_interrupted_sweep_goes_on_and_a_failed_job_is_named(tmp_path, capsys):
    made = []

    def start(job):
        made.append((job.model, job.task))
        if len(made) == 2:
            raise KeyboardInterrupt
        if job.task == "few_shot" and job.model == "b":
            raise ValueError("no such file")
        return "table"

    with pytest.raises(KeyboardInterrupt):
        run_sweep(PLAN, tmp_path, start)
    capsys.readouterr()
    status = run_sweep(PLAN, tmp_path, start)
    shown = capsys.readouterr().out
    assert "1 of 4 jobs are done, 3 are left" in shown
    assert made == [("a", "classification"), ("a", "few_shot"), ("a", "few_shot"), ("b", "classification"),
                    ("b", "few_shot")]  # fmt: skip
    assert sorted(status.values()) == ["done", "done", "done", "no such file"]
    assert "Failed:" in shown
    made.clear()
    run_sweep(PLAN, tmp_path, start, dry_run=True)
    assert made == []
    assert "1 are left" in capsys.readouterr().out


def test_a_folder_whose_labels_changed_is_another_job(tmp_path):
    for number, name in enumerate(("ill", "ill", "well", "well")):
        (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(tmp_path / "set" / name / f"{number}.png")
    plan = {"common": {"table": str(tmp_path / "set"), "task": "classification"}, "over": {"model": ["a"]}}
    made = []
    for _ in range(2):
        run_sweep(plan, tmp_path / "out", lambda job: made.append(job.model) or "table")
    assert made == ["a"]
    (tmp_path / "set/ill/0.png").rename(tmp_path / "set/well/0.png")
    run_sweep(plan, tmp_path / "out", lambda job: made.append(job.model) or "table")
    assert made == ["a", "a"]


def test_a_signal_ends_a_sweep_with_75_and_the_file_that_asks_to_go_on(tmp_path, capsys, monkeypatch):
    def start(job):
        if job.task == "few_shot":
            os.kill(os.getpid(), signal.SIGTERM)
        return "table"

    monkeypatch.setattr("adaptor_hf.tasks.__main__._start", start)
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN, sort_keys=False))
    words = ["sweep", str(tmp_path / "plan.yaml"), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as raised:
        main(words)
    assert raised.value.code == EXIT_REQUEUE
    assert "The same command goes on" in capsys.readouterr().err
    assert (tmp_path / "out" / REQUEUE).is_file()
    monkeypatch.setattr("adaptor_hf.tasks.__main__._start", lambda job: "table")
    main(words)
    assert "1 of 4 jobs are done, 3 are left" in capsys.readouterr().out
    assert not (tmp_path / "out" / REQUEUE).exists()


def test_a_damaged_state_is_reported_and_no_plan_starts_with_a_wrong_job(tmp_path, caplog):
    (tmp_path / STATE_FILE).write_text("{")
    run_sweep(PLAN, tmp_path, lambda job: "", dry_run=True)
    assert "damaged" in caplog.text
    started = []
    with pytest.raises(ValueError, match="--fraction"):
        run_sweep(PLAN | {"by_task": {"few_shot": {"fraction": [10]}}}, tmp_path, started.append)
    assert not started
    with pytest.raises(ValueError, match="over"):
        list(sweep_jobs({"common": {}}))


def rewrite(path, text):
    """Results as someone else, or an earlier version without digests, may have written them."""
    path.write_text(text)
    path.with_name("SHA256SUMS").unlink()


def written(folder, systems, rows=120, seeds=(0, 1)):
    """Runs whose scores follow the label as strongly as `systems` says."""
    labels = np.random.default_rng(0).integers(0, 2, rows).astype(float)
    for number, (system, (strength, parameters)) in enumerate(systems.items()):
        for seed in seeds:
            noise = np.random.default_rng([number, seed]).normal(size=rows)
            scores = 1 / (1 + np.exp(-(strength * (2 * labels - 1) + noise)))
            predictions = classification_predictions(
                [f"i{row}" for row in range(rows)], [f"p{row // 2}" for row in range(rows)], labels, scores,
                problem_type="multi_label_classification", num_resamples=50,
            )  # fmt: skip
            fields = {
                "system": system, "module": system, "task": "classification", "dataset": "set", "split_hash": "h",
                "protocol": "linear", "seed": seed, "fraction": 1.0, "tower_saw_dataset": "no", "vision_tower": "v",
                "trainable_params": parameters, "selected_on": "validation",
            }  # fmt: skip
            write_run(folder / "runs" / f"{number}-{seed}", predictions, fields)
    return folder


def test_a_better_candidate_is_recommended(tmp_path):
    page = write_comparison(written(tmp_path, {"good": (2.0, 10), "poor": (0.0, 5)}), num_resamples=200)
    assert "**Take good on v, linear**" in page
    assert (tmp_path / "comparison.md").read_text() == page


def test_no_difference_is_said_and_the_smaller_one_taken(tmp_path):
    folder = written(tmp_path, {"poor": (-1.0, 1), "large": (1.0, 1000), "small": (1.0, 10)})
    page = write_comparison(folder, num_resamples=200, costs={"v": {"license": "mit", "gigabytes": 0.5, "minutes": 2}})
    assert "**No difference** shown between 2 of 3" in page
    assert "Take the simplest of them: small on v, linear." in page
    assert "| mit | 0.50 | 2.00 |" in page
    found = candidates(read_results(folder / "runs").lines, "auroc", 1.0)
    pairs = compare_pairs(found, "auroc", 200)
    assert len(pairs) == 3
    assert [len(one.values) for one in found] == [2, 2, 2]
    assert "nothing to compare" in recommend(found[:1], [])


def test_two_checkpoints_on_the_same_towers_are_told_apart_by_name_and_digest(tmp_path):
    folder = written(tmp_path, {"adaptor": (1.0, 10), "other": (1.0, 10), "third": (1.0, 10)})
    names = {"0": ("run-a", "a" * 12), "1": ("run-b", "b" * 12), "2": (None, "c" * 12)}
    for path in folder.glob("runs/*/results.jsonl"):
        name, digest = names[path.parent.name[0]]
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        same = {"system": "Adaptor", "module": "adaptor", "checkpoint": digest, "checkpoint_name": name}
        rewrite(path, "".join(json.dumps(line | same | {"run": line["run"] + digest}) + "\n" for line in lines))
    found = candidates(read_results(folder / "runs").lines, "auroc", 1.0)
    assert sorted(one.name for one in found) == [
        "Adaptor on v, linear (cccccccc)",
        "Adaptor on v, linear (run-a aaaaaaaa)",
        "Adaptor on v, linear (run-b bbbbbbbb)",
    ]
    page = write_comparison(folder, num_resamples=100, costs={"v": {"minutes": 9.0}, "a" * 12: {"minutes": 1.5}})
    (row,) = [line for line in page.splitlines() if line.startswith("| Adaptor on v, linear (run-a aaaaaaaa) | 0.")]
    assert row.endswith("| 1.50 |")


def test_no_difference_says_what_could_have_been_seen(tmp_path):
    folder = written(tmp_path, {"large": (1.0, 1000), "small": (1.0, 10)}, seeds=(3, 4))
    page = write_comparison(folder, num_resamples=400)
    (pair,) = compare_pairs(candidates(read_results(folder / "runs").lines, "auroc", 1.0), "auroc", 400)
    seen = f"{2.8016 * pair[2].standard_error:.2g}"
    assert f"a difference under about {seen} could not have been seen with 60 patients" in page
    assert f"A difference to the best under about {seen} could not have been seen with 60 patients" in page
    assert finding(pair[2], 1, {"interval_over": "images", "n_test": 120, "n_patients": 60}).endswith("with 120 images")


def test_what_was_chosen_on_the_test_split_is_marked_and_never_recommended(tmp_path):
    folder = written(tmp_path, {"adaptor": (1.5, 10), "tower": (0.0, 5)})
    for path in folder.glob("runs/0-1/results.jsonl"):
        rewrite(path, path.read_text().replace('"selected_on": "validation"', '"selected_on": "test"'))
    page = write_comparison(folder, num_resamples=100)
    assert "adaptor on v, linear, CHOSEN ON THE TEST SPLIT" in page
    assert "proves nothing" in page
    assert "**Nothing to recommend**" in page


def test_a_control_is_never_recommended(tmp_path):
    page = write_comparison(written(tmp_path, {"untrained": (2.0, 10), "adaptor": (-1.0, 5)}), num_resamples=200)
    assert "**Nothing to recommend**: untrained on v, linear is a control" in page
    page = write_comparison(written(tmp_path / "b", {"untrained": (1.0, 1), "adaptor": (1.0, 5)}), num_resamples=200)
    assert "Take the simplest of them: adaptor on v, linear." in page


def test_external_test_sets_are_left_out_of_a_comparison(tmp_path):
    folder = written(tmp_path, {"one": (1.0, 10), "two": (1.0, 5)})
    lines = read_results(folder / "runs").lines
    external = [line | {"test_set": "elsewhere"} for line in lines]
    assert [len(one.folders) for one in candidates([*lines, *external], "auroc", 1.0)] == [2, 2]


def test_runs_on_several_data_sets_are_not_compared(tmp_path):
    folder = written(tmp_path, {"one": (1.0, 10)})
    path = folder / "runs/0-0/results.jsonl"
    rewrite(path, path.read_text().replace('"split_hash": "h"', '"split_hash": "other"'))
    with pytest.raises(ValueError, match=r"several data sets or splits: set \(split h\), set \(split other\)"):
        write_comparison(folder)
    with pytest.raises(ValueError, match="fractions"):
        write_comparison(written(tmp_path / "b", {"one": (1.0, 10)}), fraction=0.1)


def test_of_several_data_sets_one_is_compared_by_its_name(tmp_path, capsys):
    folder = written(tmp_path, {"one": (1.0, 10), "two": (1.0, 5)})
    for path in folder.glob("runs/0-*/results.jsonl"):
        rewrite(path, path.read_text().replace('"dataset": "set"', '"dataset": "other"'))
    with pytest.raises(SystemExit):
        main(["compare", str(folder), "--fraction", "1.0"])
    assert "Name one with --dataset" in capsys.readouterr().err
    main(["compare", str(folder), "--fraction", "1.0", "--dataset", "other"])
    shown = capsys.readouterr().out
    assert "auroc of classification on other" in shown
    assert "two on v" not in shown


def test_a_later_comparison_knows_the_costs_and_a_second_run_does_not_shorten_them(tmp_path):
    folder = written(tmp_path, {"one": (1.0, 10)})
    cost = {"license": "mit", "gigabytes": 0.5}
    remember_costs(folder, {"v": cost | {"minutes": 4.0}})
    remember_costs(folder, {"v": cost | {"minutes": 0.1}, "w": cost | {"minutes": 1.0}})
    assert "| mit | 0.50 | 4.00 |" in write_comparison(folder)
    (folder / "costs.json").write_text("{")
    assert "| unknown |  |  |" in write_comparison(folder)
