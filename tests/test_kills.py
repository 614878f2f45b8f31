"""SIGKILL before any change of a file of a pre-training run: it goes on, and ends as one that was not killed."""

import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from script_runs import command, differences, history, states, steps, train_loss

import train_pretrain

FORK = multiprocessing.get_context("fork")
# What changes files, of Python's audit events; safetensors, written in Rust, come between them.
CHANGES = {"open", "os.link", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.truncate"}
CHANGED = {"save_steps": 3, "eval_steps": 3, "num_train_epochs": 2, "use_cpu": True}


def main(output: str, words: list[str], die_before: int | tuple[str, str] | None, pipe) -> None:
    changes = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal changes
        if event not in CHANGES or not str(arguments[0]).startswith(output):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        changes += 1
        place = str(arguments[0]).removeprefix(output)
        if die_before == changes or (
            isinstance(die_before, tuple) and die_before == (event, place[: len(die_before[1])])
        ):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    train_pretrain.main(words)
    pipe.send(changes)


def run(cache: Path, output: Path, die_before: int | tuple[str, str] | None = None) -> int | None:
    """
    A run in a fork of this process, killed before a change by its number, or by its event and how its path begins.

    Gives the changes that it made, None if it was killed.
    """
    resume = {"resume_from_checkpoint": True} if steps(output) else {}
    words = command(cache, output, **CHANGED, **resume)[2:]
    mine, its = FORK.Pipe()
    process = FORK.Process(target=main, args=(str(output) + os.sep, words, die_before, its))
    process.start()
    its.close()
    process.join()
    if process.exitcode == -signal.SIGKILL:
        return None
    assert process.exitcode == 0
    return mine.recv()


@pytest.fixture(scope="module")
def whole(cache_folder, tmp_path_factory) -> tuple[Path, int]:
    """A run that was left alone, and how often it changed a file."""
    output = tmp_path_factory.mktemp("whole") / "run"
    return output, run(cache_folder, output)


def names(output: Path) -> set[str]:
    return {path.relative_to(output).as_posix() for path in output.rglob("*")}


def assert_same(output: Path, whole: Path) -> None:
    assert differences(load_file(output / "model.safetensors"), load_file(whole / "model.safetensors")) == []
    last = f"checkpoint-{steps(whole)[-1]}"
    assert differences(states(output / last), states(whole / last)) == []
    assert history(output) == history(whole)
    assert train_loss(output) == train_loss(whole)
    assert names(output) == names(whole)


def kill_again_and_again(cache: Path, folder: Path, whole: tuple[Path, int], kills: int, seed: int) -> None:
    """Kill runs at random, resume and kill them again, until each ends as the one that was left alone."""
    moments, number = random.Random(seed), 0
    while kills > 0:
        output, number = folder / f"run{number}", number + 1
        while run(cache, output, moments.randint(1, whole[1] // 2)) is None:
            kills -= 1
        assert_same(output, whole[0])


MOMENTS = [
    ("os.rename", "..run.holder."),  # who writes here
    ("os.link", ".training_rows.key."),  # a key that is not there yet
    ("open", "unfinished-checkpoint-6/.checkpoint.json"),
    ("os.rename", "unfinished-checkpoint-6"),
    ("open", "unfinished-checkpoint-9/"),
    ("shutil.rmtree", "checkpoint-"),  # a part of one is left
    ("os.remove", "checkpoint-12"),  # after the last save: one too many
    ("os.rename", "unfinished-model/"),
    ("os.rename", ".retrieval.json."),
    ("os.rename", ".manifest.json."),
    ("os.remove", ".run.holder"),
]


def test_a_run_that_is_killed_at_its_weakest_moments_ends_as_if_nothing_had_been(cache_folder, whole, tmp_path):
    for moment in MOMENTS:
        assert run(cache_folder, tmp_path / "run", moment) is None, moment
    run(cache_folder, tmp_path / "run")
    assert_same(tmp_path / "run", whole[0])


@pytest.mark.slow
def test_twenty_kills_at_random(cache_folder, whole, tmp_path):
    kill_again_and_again(cache_folder, tmp_path, whole, kills=20, seed=4)


@pytest.mark.slow
def test_a_kill_before_each_of_many_changes_of_a_file(cache_folder, whole, tmp_path):
    for moment in range(1, whole[1], 23):
        output = tmp_path / f"run{moment}"
        assert run(cache_folder, output, moment) is None
        run(cache_folder, output)
        assert_same(output, whole[0])
