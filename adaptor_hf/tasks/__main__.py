"""Sweeps and comparisons of downstream runs from the command line."""

import argparse
import json
import logging

from ..configs import find_recipe, read_words
from ..evaluation.tasks import TASKS
from ..privacy.gate import guarded, knows, refuses
from ..privacy.mode import error_text
from ..privacy.runs import check_private_runs
from ..progress import no_bars_in_a_log
from ..training.interruption import EXIT_REQUEUE, Interrupted, catch_signals
from ..training.run_folder import requeue_file
from .compare import compared_tasks, write_comparison
from .sweep import run_sweep


@guarded({
    "sweep": refuses("Run train_downstream.py once for each job of the plan, with --private and --key_file."),
    "compare": knows("places; it takes results of private runs alone"),
})  # fmt: skip
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
            check_private_runs(options.output_dir)
            found = {name: getattr(options, name) for name in ("task", "dataset", "metric", "fraction")}
            print(write_comparison(options.output_dir, **found))
            return
        plan = read_words(find_recipe(options.plan, "sweep"))
        with catch_signals(), requeue_file(options.output_dir):
            status = _sweep(plan, options.output_dir, options.dry_run)
    except Interrupted:
        parser.exit(EXIT_REQUEUE, "Stopped by a signal. The same command goes on: finished runs are kept.\n")
    except (ValueError, OSError) as error:
        parser.exit(1, f"error: {error_text(error)}\n")
    if failed := [name for name, state in status.items() if state not in ("done", "left")]:
        parser.exit(1, f"{len(failed)} of {len(status)} jobs failed: {json.dumps(failed)}\n")


def _sweep(plan: dict, output_dir: str, dry_run: bool) -> dict[str, str]:
    """`run_sweep`, and the manifest of its folder when a job was made."""
    from ..audit.manifest import files_before, refuse_folder_of, write_downstream_manifest
    from .loading import cache_dir_of, used_models

    refuse_folder_of("train_downstream", output_dir)
    before, made = files_before(output_dir), []

    def start(arguments) -> str:
        said = _start(arguments)
        made.append(arguments)
        return said

    status = run_sweep(plan, output_dir, start, dry_run=dry_run)
    if made:
        models = dict.fromkeys(model for one in made for model in used_models(one))
        last = made[-1]
        write_downstream_manifest(output_dir, models, cache_dir_of(last), last.table, before, check=last.check)
    return status


def _start(arguments) -> str:
    import torch

    from .run import run_job

    said: list[str] = []
    run_job(arguments, arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"), said.append)
    return "\n\n".join(said)


if __name__ == "__main__":
    main()
