"""Sweeps and comparisons of downstream runs from the command line."""

import argparse
import json
import logging

from ..configs import find_recipe, read_words
from ..evaluation.tasks import TASKS
from ..progress import no_bars_in_a_log
from .compare import compared_tasks, write_comparison
from .sweep import run_sweep


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m adaptor_hf.tasks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    sweep = commands.add_parser("sweep", help="make the runs of a plan that are not done")
    sweep.add_argument("plan", help="a YAML or JSON file, or the name of a packaged plan: tower_pairs")
    sweep.add_argument("--output_dir", required=True, help="where all runs go")
    sweep.add_argument("--dry_run", action="store_true", help="only print what is left")
    compare = commands.add_parser("compare", help="compare the finished runs of a folder in pairs")
    compare.add_argument("output_dir")
    first, *others = compared_tasks()
    compare.add_argument("--task", default=first, help=f"{', '.join([first, *others])}; default: {first}")
    compare.add_argument("--dataset", help="which, if the folder holds runs on several")
    compare.add_argument("--metric", help=f"default: the task's own, such as {TASKS[first].decides_by}")
    compare.add_argument("--fraction", type=float, help="share of the training rows; default: all runs without one")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    no_bars_in_a_log()
    try:
        if options.command == "compare":
            found = {name: getattr(options, name) for name in ("task", "dataset", "metric", "fraction")}
            print(write_comparison(options.output_dir, **found))
            return
        plan = read_words(find_recipe(options.plan, "sweep"))
        status = run_sweep(plan, options.output_dir, _start, dry_run=options.dry_run)
    except (ValueError, OSError) as error:
        parser.exit(1, f"error: {error}\n")
    if failed := [name for name, state in status.items() if state not in ("done", "left")]:
        parser.exit(1, f"{len(failed)} of {len(status)} jobs failed: {json.dumps(failed)}\n")


def _start(arguments) -> str:
    import torch

    from .run import run_job

    said: list[str] = []
    run_job(arguments, arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"), said.append)
    return "\n\n".join(said)


if __name__ == "__main__":
    main()
