"""Several processes evaluate into one folder: each run is made once, and nothing of it is mixed up or lost."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from test_downstream_classification import options

import train_downstream
from adaptor_hf.evaluation import read_results
from adaptor_hf.evaluation.verify import verify_tree
from adaptor_hf.tasks import compare, frozen_heads
from adaptor_hf.tasks.compare import read_costs, remember_costs
from adaptor_hf.tasks.sweep import STATE_FILE, run_sweep
from adaptor_hf.training.interruption import EXIT_REQUEUE, run_script
from adaptor_hf.training.run_folder import REQUEUE
from adaptor_hf.verify import verify

FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def table(labelled_table):
    return labelled_table(80)


@pytest.fixture
def fits(tmp_path, monkeypatch) -> Path:
    """A file with a line for each head that is trained, by whatever process."""
    path, fit_probe = tmp_path / "fits", frozen_heads.fit_probe

    def fit(*args, **kwargs):
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.2)
        return fit_probe(*args, **kwargs)

    monkeypatch.setattr(frozen_heads, "fit_probe", fit)
    return path


def start(words: list[str]):
    process = FORK.Process(target=run_script, args=(lambda: train_downstream.main(words),))
    process.start()
    return process


def wait_for(condition, process) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def names_below(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


def test_two_equal_commands_and_another_one_share_the_work_and_the_folder(table, checkpoint, fits, tmp_path):
    output = tmp_path / "out"
    words = options(table, checkpoint, output, "--fraction", "0.5", "1.0", "--controls", "tower")
    other = options(table, checkpoint, output, "--fraction", "0.25", "--controls", "none")
    processes = [start(words), start(words), start(other)]
    for process in processes:
        process.join(500)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    lines = read_results(output / "runs").lines
    runs = {(line["module"], line["fraction"], line["seed"]) for line in lines}
    expected = {(m, f, s) for m in ("adaptor", "tower") for f, s in ((0.5, 0), (0.5, 1), (1.0, 0))}
    assert runs == expected | {("adaptor", 0.25, 0), ("adaptor", 0.25, 1)}
    made = fits.read_text().split()
    assert len(made) == len(runs), "no head is trained twice"
    assert list(verify_tree(output / "runs").values()) == [[]] * len(runs)
    assert verify(output) == []
    assert names_below(output / "runs") == []
    assert not list(output.glob(".*"))


def test_after_a_kill_and_a_signal_the_same_command_goes_on(table, checkpoint, fits, tmp_path):
    output = tmp_path / "out"
    words = options(table, checkpoint, output, "--fraction", "0.5", "--controls", "none")
    for number, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, EXIT_REQUEUE)):
        fits.write_text("")
        process = start(words)
        wait_for(fits.read_text, process)
        os.kill(process.pid, number)
        process.join(300)
        assert process.exitcode == status
    assert (output / REQUEUE).is_file()
    process = start(words)
    process.join(300)
    assert process.exitcode == 0
    assert not (output / REQUEUE).exists()
    assert len(list(output.glob("runs/*/results.jsonl"))) == 2
    assert verify(output) == []
    assert names_below(output / "runs") == []


def add_costs(folder: Path, name: str) -> None:
    for number in range(10):
        remember_costs(folder, {f"{name}{number}": {"minutes": 1.0}})


def test_costs_of_jobs_beside_each_other_are_all_kept(tmp_path, monkeypatch):
    read = compare.read_costs
    monkeypatch.setattr(compare, "read_costs", lambda folder: [read(folder), time.sleep(0.003)][0])
    processes = [FORK.Process(target=add_costs, args=(tmp_path, name)) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert len(read_costs(tmp_path)) == 20


def test_a_sweep_keeps_what_another_plan_has_done_in_the_same_folder(tmp_path):
    plan = {"common": {"table": "t.csv", "label_column": ["x"], "task": "classification"}}
    for model in "ab":
        run_sweep(plan | {"over": {"model": [model]}}, tmp_path, lambda _: "table")
    assert len(json.loads((tmp_path / STATE_FILE).read_text())["done"]) == 2
    assert set(run_sweep(plan | {"over": {"model": ["a", "b"]}}, tmp_path, pytest.fail).values()) == {"done"}
