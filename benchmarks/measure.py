"""CPU-seconds of variants, interleaved and rotated in one process, and the tables made of them."""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable


def arguments(description: str, repeats: int = 5) -> argparse.ArgumentParser:
    """Parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help="Measurements a variant; the median is shown.")
    return parser


def one_thread() -> None:
    """Call before any work: one thread makes CPU-seconds comparable on a machine that others use too."""
    import torch

    torch.set_num_threads(1)


def interleaved(
    variants: dict[str, Callable[[], object]], repeats: int, warm_up: bool = True
) -> dict[str, list[float]]:
    """
    CPU-seconds (user and system) of each variant, `repeats` times. Every round starts with another variant.

    A variant may return a float: then that is its measurement, for variants that must not count all they do.
    """
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    if warm_up:
        for run in variants.values():
            run()
    for turn in range(repeats):
        for offset in range(len(names)):
            name = names[(turn + offset) % len(names)]
            start = time.process_time()
            returned = variants[name]()
            taken = time.process_time() - start
            seconds[name].append(returned if isinstance(returned, float) else taken)
        print(f"\rround {turn + 1} of {repeats}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return seconds


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in seconds.items()}


def print_header(title: str, baseline: str, repeats: int) -> None:
    """Name of the machine, the versions, the baseline."""
    import torch
    import transformers

    from adaptor_hf.audit.run_record import processor_name

    print(f"\n### {title}\n")
    print(f"Machine: {processor_name()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} thread, {platform.system()}.")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}.")
    print(f"Baseline: {baseline}. Median of {repeats} interleaved and rotated measurements, CPU-seconds.\n")


def print_table(columns: list[str], rows: list[list[object]]) -> None:
    """A Markdown table."""
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(str(value) for value in row) + " |")
    print()
