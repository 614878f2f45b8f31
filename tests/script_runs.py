"""Starts train_pretrain.py in processes of its own on a small cache, and compares what two runs have left."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent
# Eight steps of 16 pairs an epoch on the 124 training pairs of `synthetic_cache`; no step of a save is an epoch's end.
OPTIONS = {
    "aligner": '{"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 64}',
    "global_batch_size": 16,
    "learning_rate": 1e-3,
    "num_train_epochs": 8,
    "save_strategy": "steps",
    "eval_strategy": "steps",
    "logging_strategy": "steps",
    "save_steps": 5,
    "eval_steps": 5,
    "logging_steps": 3,
}
LIMIT = 900  # seconds until a test gives a process up: only a hang takes so long, also on a busy machine


def command(cache: Path | None, output: Path, **changes) -> list[str]:
    """A command line of `OPTIONS` with changes; `None` leaves an option out."""
    options = {**OPTIONS, "cache": cache, "output_dir": output, **changes}
    words = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    return [sys.executable, "train_pretrain.py", *words]


def start(words: list[str], log: Path, cwd: Path = ROOT, **variables) -> subprocess.Popen:
    """A process with its own process group, whose output is appended to a file."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "ACCELERATE_USE_CPU": "true", **variables}
    with open(log, "ab") as file:
        return subprocess.Popen(words, cwd=cwd, env=environment, stdout=file, stderr=file, start_new_session=True)


def start_ranks(words: list[str], log: Path) -> list[subprocess.Popen]:
    """Two processes that find each other by the variables that a launcher would set."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start(words, log.with_suffix(f".{rank}"), RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in "01"]


def wait_for(condition, process: subprocess.Popen, what: str) -> None:
    """Wait until `condition()` is true while the process lives."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert process.poll() is None, f"the process ended with {process.returncode} before: {what}"
        assert time.monotonic() < deadline, f"waited too long for: {what}"
        time.sleep(0.01)


def kill_group(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def steps(output: Path) -> list[int]:
    """Steps of the finished checkpoints."""
    return sorted(int(path.name.partition("-")[2]) for path in output.glob("checkpoint-*"))


def run_to_the_end(words: list[str], log: Path) -> str:
    """What the process wrote."""
    process = start(words, log)
    assert process.wait(LIMIT) == 0, log.read_text()
    return log.read_text()


def kill_at_random(words: list[str], output: Path, log: Path, moments: random.Random) -> bool:
    """SIGKILL at a random moment after the next checkpoint; whether the process was still running."""
    before = steps(output)
    process = start(words, log)
    deadline = time.monotonic() + LIMIT
    while steps(output) == before and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(moments.uniform(0, 0.4))
    running = process.poll() is None
    kill_group(process)
    return running


def states(checkpoint: Path, ranks: int = 1) -> dict:
    """Weights, optimizer, scheduler and random states of a checkpoint."""
    names = ["optimizer.pt", "scheduler.pt"]
    names += ["rng_state.pth"] if ranks == 1 else [f"rng_state_{rank}.pth" for rank in range(ranks)]
    known = [np._core.multiarray._reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32))]
    with torch.serialization.safe_globals(known):
        loaded = {name: torch.load(checkpoint / name, weights_only=True) for name in names}
    return loaded | {"weights": load_file(checkpoint / "model.safetensors")}


def differences(one: object, other: object, place: str = "") -> list[str]:
    """Where two nested values differ, tensors and arrays compared bit by bit."""
    if type(one) is not type(other):
        return [f"{place}: {type(one)} and {type(other)}"]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{place}: {one.keys() ^ other.keys()}"]
        return [found for key in one for found in differences(one[key], other[key], f"{place}/{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f"{place}: {len(one)} and {len(other)}"]
        pairs = enumerate(zip(one, other, strict=True))
        return [found for number, pair in pairs for found in differences(*pair, f"{place}/{number}")]
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [place]
    if isinstance(one, np.ndarray):
        return [] if np.array_equal(one, other) else [place]
    return [] if one == other else [f"{place}: {one} and {other}"]


def history(output: Path) -> list[dict]:
    """The log without what depends on the clock, and without the summary of the last process."""
    entries = json.loads((output / "trainer_state.json").read_text())["log_history"]
    timed = ("runtime", "per_second")
    return [
        {name: value for name, value in entry.items() if not name.endswith(timed)}
        for entry in entries
        if "train_runtime" not in entry
    ]


def train_loss(output: Path) -> float:
    """The mean loss that the summary at the end gives."""
    entries = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return next(entry["train_loss"] for entry in reversed(entries) if "train_loss" in entry)
