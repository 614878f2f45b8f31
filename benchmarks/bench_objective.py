"""
A step of AdaptorTrainer (objective `adaptor`) beside another version of this package, with GradCache and without.

    python benchmarks/bench_objective.py --against ../checkout-of-the-version-before

Each version trains in a process of its own, by turns, on the same cache; a ratio is of two runs that followed each
other. Without --against this checkout is measured against itself: how far a ratio of equals strays from 1 here. The
small models are all overhead: what a step costs around its arithmetic.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from bench_loader import write_rows
from measure import arguments, medians, one_thread, print_header, print_table
from trainer_often import CASES

HERE = Path(__file__).resolve().parents[1]
ROUNDS = 3
"""Rounds that two processes live for."""


def start(name: str, version: Path, folder: Path) -> subprocess.Popen:
    """A process that trains by the package in `version`; it logs to a file, for a pipe that nobody empties stops it."""
    command = [sys.executable, str(Path(__file__).with_name("trainer_often.py")), str(folder)]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with open(folder / f"{name}.log", "w") as log:
        environment = os.environ | {"PYTHONPATH": str(version)}
        return subprocess.Popen(command, env=environment, text=True, bufsize=1, stderr=log, **streams)


def ask(process: subprocess.Popen, case: str, log: Path) -> float:
    process.stdin.write(f"{case}\n")
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"a process ended in {case!r}:\n{log.read_text()[-2000:]}")
    return float(answer)


def stop(processes: dict[str, subprocess.Popen]) -> None:
    for process in processes.values():
        process.communicate()


def quartiles(ratios: list[float]) -> str:
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    parser = arguments(__doc__, repeats=9)
    parser.add_argument("--against", type=Path, default=HERE, help="checkout of another version")
    options = parser.parse_args()
    one_thread()
    from adaptor_hf.embeddings import import_embeddings

    processes: dict[str, subprocess.Popen] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image, text = write_rows(folder, 4096)
        import_embeddings(image=image, text=text, cache_dir=folder / "cache")
        versions = {"before": options.against.resolve(), "now": HERE}
        seconds: dict[str, dict[str, list[float]]] = {case: {"before": [], "now": []} for case in CASES}
        for turn in range(options.repeats):
            if turn % ROUNDS == 0:
                # A process keeps what chance gave it at its start, where its memory lies for one.
                stop(processes)
                processes.update({name: start(name, version, folder) for name, version in versions.items()})
            for case, spent in seconds.items():
                for version in list(versions)[:: 1 if turn % 2 else -1]:
                    spent[version].append(ask(processes[version], case, folder / f"{version}.log"))
            print(f"\rround {turn + 1} of {options.repeats}", end="", file=sys.stderr, flush=True)
        stop(processes)
    print_header(
        "A step of AdaptorTrainer on a float16 cache, objective adaptor", "the other checkout", options.repeats
    )
    rows = []
    for case, spent in seconds.items():
        middle = medians(spent)
        ratios = [now / before for before, now in zip(spent["before"], spent["now"], strict=True)]
        rows.append([case, *(f"{1e3 * middle[version]:.2f}" for version in versions), quartiles(ratios)])
    print_table(["", "CPU-ms a step before", "now", "ratio, median (quartiles)"], rows)


if __name__ == "__main__":
    main()
