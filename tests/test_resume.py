"""A run that was killed and resumed ends as one that was not: weights, optimizer, schedule, random states, log."""

import os
import random
import re
import signal
import time

import pytest
from script_runs import (
    LIMIT,
    command,
    differences,
    history,
    kill_at_random,
    kill_group,
    run_to_the_end,
    start,
    start_ranks,
    states,
    steps,
    train_loss,
    wait_for,
)

from adaptor_hf.configs import accelerate_config
from adaptor_hf.folder_lock import only_writer
from adaptor_hf.training.interruption import EXIT_REQUEUE
from adaptor_hf.training.run_folder import REQUEUE

LAST = 64


@pytest.fixture(scope="module")
def cache(cache_folder):
    return cache_folder


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    """A run without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    run_to_the_end(command(cache, folder / "run"), folder / "log")
    assert steps(folder / "run")[-1] == LAST
    return folder / "run"


def assert_same_end(output, whole, ranks=1):
    folder = f"checkpoint-{LAST}"
    assert differences(states(output / folder, ranks), states(whole / folder, ranks)) == []
    # The best checkpoint was the same one, too.
    assert (output / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert history(output) == history(whole)
    assert train_loss(output) == train_loss(whole)
    assert steps(output) == steps(whole)
    assert not [name for name in names_below(output) if re.search(r"unfinished|partial|\.run\.|requeue", name)]


def names_below(folder):
    return [path.name for path in folder.rglob("*")]


def kill_and_resume(cache, whole, tmp_path, kills, seed, **changes):
    """Kill a run again and again, each time after another checkpoint, then let it end. Returns the kills that hit."""
    moments = random.Random(seed)
    output, log = tmp_path / "run", tmp_path / "log"
    hits = 0
    for number in range(kills):
        resume = {"resume_from_checkpoint": True, **changes} if number else {}
        hits += kill_at_random(command(cache, output, **resume), output, log, moments)
    said = run_to_the_end(command(cache, output, resume_from_checkpoint=True, **changes), log)
    assert "Traceback" not in said
    assert differences(states(output / f"checkpoint-{LAST}"), states(whole / f"checkpoint-{LAST}")) == []
    return hits


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_like_one_that_was_not(cache, whole, tmp_path):
    assert kill_and_resume(cache, whole, tmp_path, kills=2, seed=1) > 0
    assert_same_end(tmp_path / "run", whole)


@pytest.mark.slow
def test_ten_kills(cache, whole, tmp_path):
    for seed in range(2, 7):
        folder = tmp_path / str(seed)
        folder.mkdir()
        kill_and_resume(cache, whole, folder, kills=2, seed=seed)
        assert_same_end(folder / "run", whole)


def test_a_kill_costs_at_most_one_save_interval(cache, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    process = start(command(cache, output, logging_steps=1, num_train_epochs=100), log)
    wait_for(lambda: len(steps(output)) > 1, process, "two checkpoints")
    time.sleep(0.1)
    kill_group(process)
    logged = [int(step) for step in re.findall(r"step (\d+) of \d+, epoch [\d.]+: loss", log.read_text())]
    # The running step may already have passed the next multiple of five, whose checkpoint was being written.
    assert max(logged) - max(steps(output)) <= 5


def launch_two(cache, output, log, **changes):
    accelerate = ["-m", "accelerate.commands.launch", "--config_file", str(accelerate_config("two_cpu"))]
    python, *words = command(cache, output, **changes)
    return start([python, *accelerate, *words], log)


def children(process):
    """Processes that accelerate has started; each is in a group of its own."""
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        return [int(word) for word in file.read().split()]


@pytest.fixture(scope="module")
def whole_of_two(cache, tmp_path_factory):
    """The same on two processes."""
    folder = tmp_path_factory.mktemp("whole-of-two")
    process = launch_two(cache, folder / "run", folder / "log")
    assert process.wait(LIMIT) == 0, (folder / "log").read_text()
    assert "= 2 process(es) x 8" in (folder / "log").read_text()
    return folder / "run"


def resume_two(cache, output, log):
    for rank in start_ranks(command(cache, output, resume_from_checkpoint=True), log):
        assert rank.wait(LIMIT) == 0, log.with_suffix(".0").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc to find the processes")
def test_two_processes_killed_and_resumed_end_like_two_that_were_not(cache, whole_of_two, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    process = launch_two(cache, output, log)
    wait_for(lambda: len(steps(output)) > 1, process, "two checkpoints")
    ranks = children(process)
    assert len(ranks) == 2
    kill_group(process)
    for rank in ranks:
        os.kill(rank, signal.SIGKILL)
    resume_two(cache, output, log)
    assert_same_end(output, whole_of_two, ranks=2)


def test_a_signal_saves_the_running_step_and_exits_with_75(cache, whole, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    words = command(cache, output, logging_steps=1, save_steps=40, eval_steps=40)
    process = start(words, log)
    wait_for(lambda: b"step 9 of" in log.read_bytes(), process, "step 9")
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT) == EXIT_REQUEUE == 75
    (last,) = steps(output)
    said = log.read_text()
    assert f"Stopped by SIGTERM. The last checkpoint is {output / f'checkpoint-{last}'}. Go on with" in said
    assert "Traceback" not in said
    assert (output / REQUEUE).is_file()
    assert not (output / "model.safetensors").exists()
    # Other intervals on resuming are honoured, and change no state.
    changes = {"logging_steps": 7, "save_steps": 4, "eval_steps": 2, "save_total_limit": 30}
    run_to_the_end(command(cache, output, resume_from_checkpoint=True, **changes), log)
    assert not (output / REQUEUE).exists()
    assert differences(states(output / f"checkpoint-{LAST}"), states(whole / f"checkpoint-{LAST}")) == []
    entries = history(output)
    assert {56, 60, LAST} <= set(steps(output))
    assert [entry["step"] for entry in entries if "loss" in entry][-2:] == [56, 63]
    assert 58 in [entry["step"] for entry in entries if "eval_loss" in entry]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "reached"), [(signal.SIGUSR1, [1]), (signal.SIGTERM, [0, 1])])
def test_a_signal_to_any_process_stops_all_at_one_step(cache, whole_of_two, number, reached, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    ranks = start_ranks(command(cache, output), log)
    wait_for(lambda: steps(output), ranks[0], "a checkpoint")
    for rank in reached:
        ranks[rank].send_signal(number)
    assert [rank.wait(LIMIT) for rank in ranks] == [EXIT_REQUEUE, EXIT_REQUEUE]
    said = log.with_suffix(".0").read_text() + log.with_suffix(".1").read_text()
    assert said.count(f"The last checkpoint is {output / f'checkpoint-{steps(output)[-1]}'}") == 1
    assert "Traceback" not in said
    assert (output / REQUEUE).is_file()
    resume_two(cache, output, log)
    assert not (output / REQUEUE).exists()
    assert differences(*(states(run / f"checkpoint-{LAST}", 2) for run in (output, whole_of_two))) == []


@pytest.mark.slow
def test_a_launcher_that_swallows_the_status_leaves_the_file_that_asks_to_go_on(cache, whole_of_two, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    process = launch_two(cache, output, log)
    wait_for(lambda: steps(output), process, "a checkpoint")
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT) not in (0, EXIT_REQUEUE), "accelerate passes the status on: the page on training says no"
    last = steps(output)[-1]
    assert last < LAST
    assert log.read_text().count(f"The last checkpoint is {output / f'checkpoint-{last}'}. Go on with") == 1
    assert (output / REQUEUE).is_file()
    resume_two(cache, output, log)
    assert_same_end(output, whole_of_two, ranks=2)


@pytest.mark.slow
def test_all_processes_of_a_second_launch_are_told_that_another_run_writes_here(cache, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    with only_writer(output):
        ranks = start_ranks(command(cache, output), log)
        assert [rank.wait(LIMIT) for rank in ranks] == [1, 1]
    for rank in "01":
        said = log.with_suffix(f".{rank}").read_text()
        assert f"Another run (on this machine, process {os.getpid()}, since " in said
        assert "Traceback" not in said
    assert not output.exists()
